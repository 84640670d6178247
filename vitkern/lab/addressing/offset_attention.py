"""Cases of `offsets` for the attention kernels."""

from collections.abc import Callable
from functools import partial

import torch

from vitkern.lab.addressing.offset_case import HALF, Case, scaled


def _attention(tensors, size, *, launcher, dims, strides=None, bias=None, bias_strides=None, keys=None, hook=None):
    """Dense attention by ``launcher``. ``dims(size)``: (B, H, N, M, D); ``hook``: more of `Problem`."""
    from vitkern.kernels import attention
    from vitkern.kernels.loop import stream, stream_backward, stream_hopper
    from vitkern.kernels.loop import stream_bias as streamed
    from vitkern.kernels.loop.problem import Problem, dense_rows, per_token
    from vitkern.kernels.tile import short_attention, short_attention_backward

    batch, heads, n, m, dim = dims(size)
    q, k, v = (tensors(lambda s, i=i: (*dims(s)[:2], dims(s)[i], dims(s)[4]), strides=strides) for i in (2, 3, 3))
    term = None if bias is None else tensors(bias, strides=bias_strides)
    key_mask = None if keys is None else tensors(lambda s: (dims(s)[0], dims(s)[3]), torch.bool, keys)
    short = launcher.startswith("short")
    terms = attention._hook(None if short else term, None, key_mask, q, k) if hook is None else hook(tensors)
    problem = Problem(batch, heads, heads, n, m, dim, 0.5, **terms)
    q, k, v = operands = [dense_rows(x) for x in (q, k, v)]
    held = short_attention.dense_bias(term, problem) if short else None
    out = tensors(lambda s: (dims(s)[0], dims(s)[2], dims(s)[1], dims(s)[4]))  # laid out as the operators do
    lse, delta = (tensors(lambda s: dims(s)[:3], torch.float32) for _ in range(2))
    if launcher == "short_forward":
        short_attention.run_forward(problem, *operands, dense_rows(out.transpose(1, 2)), lse=lse, bias=held)
    elif launcher == "stream_forward":
        stream.stream_forward(problem, *operands, dense_rows(out.transpose(1, 2)), per_token(lse))
    elif launcher == "stream_hopper_forward":
        stream_hopper.stream_hopper_forward(problem, *operands, dense_rows(out.transpose(1, 2)), per_token(lse))
    grad = dense_rows(tensors(lambda s: (*dims(s)[:2], dims(s)[2], dims(s)[4]), strides=strides))
    if launcher == "stream_bias":
        streamed.stream_bias_gradient(problem, *operands, grad, per_token(lse), delta, per_group=True, per_head=True)
    found = [dense_rows(torch.empty(batch, t, heads, dim, dtype=HALF).transpose(1, 2)) for t in (n, m, m)]
    if launcher == "short_backward":
        short_attention_backward.run_backward(problem, grad, *operands, *found, bias=held, bias_grad=bias is not None)
    out, lse = dense_rows(out.transpose(1, 2)), per_token(lse)
    if launcher == "stream_dq":
        lse_grad = tensors(lambda s: dims(s)[:3], torch.float32)
        stream_backward.stream_dq(problem, *operands, out, grad, lse, delta, found[0], lse_grad)
    stream_backward.stream_dkdv(problem, *operands, grad, lse, delta, *found[1:])


def _tile(tensors) -> dict:
    import triton.language as tl

    from vitkern.kernels.loop import scores

    side = tl.constexpr(128)
    return dict(score=scores.tile, score_args=(tensors(lambda s: (s, 128, 128), torch.float32), side, side))


def _windows(tensors, size, *, launcher, dims, strides=None):
    """Windows of 4 x 4 tokens, shifted by 2, on images that they do not divide. ``dims(size)``: (B, h, w, D)."""
    import triton.language as tl

    from vitkern.kernels.loop import stream, stream_backward, stream_bias, tokens
    from vitkern.kernels.loop.problem import Problem, Rows, per_token
    from vitkern.kernels.tile import short_attention, short_attention_backward

    batch, height, width, dim = dims(size)
    rows, cols = -(-height // 4), -(-width // 4)
    parts = [tl.constexpr(n) for n in (4, 4, 2, 2, False)]
    args = (height, width, 4 * rows, 4 * cols, rows, cols, *parts)
    padding, cosine = tensors(lambda s: (3, 1, dim)), tensors(lambda s: (1,), torch.float32)
    places = dict(q_tokens=tokens.window, k_tokens=tokens.window, q_args=args, k_args=args)
    problem = Problem(batch * rows * cols, 1, 1, 16, 16, dim, 0.5, padding=padding, cosine=cosine, **places)
    q, k, v, grad, out = (
        Rows(x, dim, x.stride()[:3]) for x in (tensors(dims, strides=strides) for _ in range(5))
    )  # fmt: skip
    found = [Rows(x, dim, x.stride()[:3]) for x in (torch.empty(dims(size), dtype=HALF) for _ in range(3))]
    if launcher == "short_forward":
        short_attention.run_forward(problem, q, k, v, found[0])
    if launcher == "short_backward":
        short_attention_backward.run_backward(problem, grad, q, k, v, *found)
    lse, delta = (tensors(lambda s: (dims(s)[0], 1, *dims(s)[1:3]), torch.float32) for _ in range(2))
    lse = per_token(lse)
    if launcher == "stream_forward":
        stream.stream_forward(problem, q, k, v, found[0], lse)
    if launcher == "stream_bias":
        stream_bias.stream_bias_gradient(problem, q, k, v, grad, lse, delta, per_group=False, per_head=True)
    if launcher == "stream_dq":
        stream_backward.stream_dq(problem, q, k, v, out, grad, lse, delta, found[0])
    stream_backward.stream_dkdv(problem, q, k, v, grad, lse, delta, *found[1:])


def _stride(axis: int, count: int) -> Callable:
    """Strides of 4-D tensors of ``count`` elements, apart from ``axis``, which steps by the size."""
    return lambda s: tuple(s if i == axis else n for i, n in enumerate((count, count, 16, 1)))


def attention_cases(kernel: str, launcher: str) -> list[Case]:
    """Batch, heads and tokens beyond 2^31 in what launchers allocate; strides beyond it in what callers give."""
    stream, walks_keys = launcher.startswith("stream"), kernel == "_stream_bwd_dkdv"
    m = 1 if launcher == "stream_bias" else 16
    case = partial(scaled, kernel, function=_attention, launcher=launcher)
    cases = [
        case("batch", small=3, offset=2**27, dims=lambda s: (s, 1, 16, m, 1)),
        case("heads", small=3, offset=2**27, dims=lambda s: (1, s, 16, m, 1)),
    ]
    for axis, what, extents in (
        (0, "batch", (3, 1, 16, 16)),
        (1, "head", (1, 3, 16, 16)),
        (2, "token", (1, 1, 16, 16)),
    ):
        offset = 2**28 if axis == 2 else 2**30
        dims = lambda s, extents=extents: (*extents, 16)  # noqa: E731
        terms = dict(bias=lambda s, extents=extents: extents, bias_strides=_stride(axis, 256))
        if axis == 1:
            terms = terms if stream else {}
        cases.append(case(f"{what} stride", small=1024, offset=offset, dims=dims, strides=_stride(axis, 256), **terms))
    cases.append(
        case(
            "key stride of a mask", small=16, offset=2**28, dims=lambda s: (1, 1, 16, 16, 16),
            keys=lambda s: (1, s),
        )
    )  # fmt: skip
    cases.append(  # other strides are counted in units of 16 bytes, where 2^31 is further off
        case("odd token stride", small=1025, offset=2**28, dims=lambda s: (1, 1, 16, 16, 16), strides=_stride(2, 256))
    )
    if launcher == "stream_bias":
        cases.append(case("batch of keys", small=3, offset=2**27, dims=lambda s: (s, 1, 1, 16, 1)))
    if launcher == "short_backward":
        cases.append(
            case(
                "bias gradient", small=3, offset=2**23, dims=lambda s: (s, 1, 16, 16, 16), bias=lambda s: (s, 1, 16, 16)
            )
        )
    if stream:
        extents = (lambda s: (1, 1, 16, s, 16)) if walks_keys else (lambda s: (1, 1, s, 16, 16))
        cases.append(case("keys" if walks_keys else "queries", small=20, offset=2**27, dims=extents))
        cases.append(case("tile of a table", small=3, offset=2**17, dims=lambda s: (1, s, 16, 16, 16), hook=_tile))
    window = partial(scaled, kernel, function=_windows, launcher=launcher)
    if launcher != "stream_bias":  # whose programs walk over all images
        offset = 2**26 if walks_keys else 2**27
        cases.append(window("images", small=3, offset=offset, dims=lambda s: (s, 1, 1, 16)))
    cases += [
        window("image row stride", small=1024, offset=2**29, dims=lambda s: (1, 7, 5, 16), strides=_stride(1, 1)),
        window("image column stride", small=1024, offset=2**29, dims=lambda s: (1, 5, 7, 16), strides=_stride(2, 1)),
    ]
    return cases


def hopper_cases() -> list[Case]:
    """As `attention_cases`, of what descriptors reach: rows that start at multiples of 16 bytes."""
    case = partial(scaled, "_stream_hopper_fwd", function=_attention, launcher="stream_hopper_forward")
    few, strides = (lambda s: (1, 1, 2, 2, 16)), {axis: _stride(axis, 256) for axis in range(3)}
    batch, heads = (lambda s: (s, 1, 16, 16, 16)), (lambda s: (1, s, 16, 16, 16))
    return [
        case("batch", small=3, offset=2**23, dims=batch, bias=lambda s: batch(s)[:4]),
        case("heads", small=3, offset=2**23, dims=heads, bias=lambda s: heads(s)[:4]),
        case("batch stride", small=1024, offset=2**30, dims=lambda s: batch(3), strides=strides[0]),
        case("head stride", small=1024, offset=2**30, dims=lambda s: heads(3), strides=strides[1]),
        case("token stride", small=1024, offset=2**31, dims=few, strides=strides[2]),
    ]
