"""Cases of `offsets` for local attention: the streaming kernels where an image lies, and the gradient of decomposed
positions."""

from functools import partial

import torch

from vitkern.lab.addressing.offset_case import HALF, Case, scaled


def _near(tensors, size, *, launcher, dims, strides=None, block=2, halo=1):
    """One head. ``dims(size)``: (B, img_h, img_w, D)."""
    from vitkern.kernels import local_attention
    from vitkern.kernels.loop import locality, stream, stream_axes, stream_backward, stream_bias
    from vitkern.kernels.loop.problem import Rows, per_token

    q, k, v, grad, out = (Rows(x, 0, x.stride()[:3]) for x in (tensors(dims, strides=strides) for _ in range(5)))
    dq, dk, dv = (Rows(x, 0, x.stride()[:3]) for x in (torch.empty(dims(size), dtype=HALF) for _ in range(3)))
    table = tensors(lambda s: (1, 5, 5), torch.float32)
    steps = None if strides is None else lambda s: (*strides(s)[:3], 1, 1)
    rel = [tensors(lambda s: (*dims(s)[:3], 1, block + 2 * halo), strides=steps) for _ in range(2)]
    lse, delta, lse_grad = (tensors(lambda s: (dims(s)[0], 1, *dims(s)[1:3]), torch.float32) for _ in range(3))
    lse, hooked = per_token(lse), (local_attention._table(table), local_attention._rel(*rel), None)
    image = torch.empty(()).expand(*dims(size)[:3], 3 * dims(size)[3])
    kind = {"stream_dkdv": "keys", "stream_bias": "fixed"}.get(launcher, "queries")
    pairs = (block, block), (halo, halo), "keep", (1, 1), ()
    problem = local_attention._problem(image, kind, *hooked, 1, *pairs, 0.5)
    if launcher == "stream_forward":
        stream.stream_forward(problem, q, k, v, dq, lse)
    if launcher == "stream_dq":
        stream_backward.stream_dq(problem, q, k, v, out, grad, lse, delta, dq, lse_grad)
    if launcher == "stream_dkdv":
        stream_backward.stream_dkdv(problem, q, k, v, grad, lse, delta, dk, dv)
    if launcher == "stream_bias":
        stream_bias.stream_bias_gradient(problem, q, k, v, grad, lse, delta, per_group=False, per_head=True)
    found = [local_attention._logits_rows(torch.empty(x.shape, dtype=x.dtype)) for x in rel]
    stream_axes.stream_axes_gradient(
        problem, q, k, v, grad, lse, delta, *found, locality.first_seen, problem.q_args[1][4].value
    )


def local_cases(kernel: str, launcher: str) -> list[Case]:
    """Images beyond 2^31 tokens, and rows and columns beyond it in what callers give."""
    case = partial(scaled, kernel, function=_near, launcher=launcher)

    def apart(axis):
        return lambda s: tuple(s if i == axis else 1 for i in range(4))

    cases = [] if launcher == "stream_bias" else [
        case("images, near", small=3, offset=2**27, dims=lambda s: (s, 4, 4, 1), block=1, halo=0)
    ]  # fmt: skip
    return [
        *cases,
        case("image row stride, near", small=1024, offset=2**29, dims=lambda s: (1, 7, 5, 16), strides=apart(1)),
        case("image column stride, near", small=1024, offset=2**29, dims=lambda s: (1, 5, 7, 16), strides=apart(2)),
    ]
