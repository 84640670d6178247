"""Dense attention beyond 2^31 elements, by the kernels of the loop, of the tile and Hopper's."""

from collections.abc import Callable
from functools import partial

import torch

from vitkern.lab.addressing.offset_case import HALF, Case, scaled
from vitkern.lab.specimens._streaming import SHORT, STREAMING, start, stride

BOUNDED = {
    **{
        f"*.{hook}": "takes no pointer"
        for hook in ("SCORE=plain", "LOGIT=plain", "LOGIT=capped", "START=empty", "WEIGH=plain")
    },
    "*.WEIGH=dropout": "one element",
    "*.START=sink": "one element a head",
    "_stream_hopper_fwd.lse": "one element a row, and rows have more than 32 elements: q alone takes 128 GiB",
}


def _dense(tensors, size, *, launcher, dims, strides=None, bias=None, bias_strides=None, keys=None, hook=None):
    """``dims(size)``: (B, H, N, M, D); ``hook``: more of `Problem`."""
    from vitkern.kernels import attention
    from vitkern.kernels.loop.problem import Problem, dense_rows, per_token
    from vitkern.kernels.tile import short_attention

    batch, heads, n, m, dim = dims(size)
    q, k, v = (tensors(lambda s, i=i: (*dims(s)[:2], dims(s)[i], dims(s)[4]), strides=strides) for i in (2, 3, 3))
    term = None if bias is None else tensors(bias, strides=bias_strides)
    key_mask = None if keys is None else tensors(lambda s: (dims(s)[0], dims(s)[3]), torch.bool, keys)
    in_tile = launcher in SHORT.values()
    terms = attention._score(None if in_tile else term, None, key_mask, q, k) if hook is None else hook(tensors)
    problem, short = Problem(batch, heads, heads, n, m, dim, 0.5, **terms), None
    out = tensors(lambda s: (dims(s)[0], dims(s)[2], dims(s)[1], dims(s)[4]))  # laid out as the operators do
    lse, delta = (tensors(lambda s: dims(s)[:3], torch.float32) for _ in range(2))
    grad = tensors(lambda s: (*dims(s)[:2], dims(s)[2], dims(s)[4]), strides=strides)
    if in_tile:
        more = dict(lse=lse) if launcher == "short_forward" else dict(bias_grad=bias is not None)
        short = dict(bias=short_attention.dense_bias(term, problem)) | more
    start(
        launcher, problem, *(dense_rows(x) for x in (q, k, v)), out=dense_rows(out.transpose(1, 2)),
        lse=per_token(lse), grad=dense_rows(grad), delta=delta,
        found=[dense_rows(torch.empty(batch, t, heads, dim, dtype=HALF).transpose(1, 2)) for t in (n, m, m)],
        lse_grad=tensors(lambda s: dims(s)[:3], torch.float32) if launcher == "stream_dq" else None,
        per_group=True, short=short,
    )  # fmt: skip


def _tile(tensors) -> dict:
    import triton.language as tl

    from vitkern.kernels.loop import scores

    side = tl.constexpr(128)
    return dict(score=scores.tile, score_args=(tensors(lambda s: (s, 128, 128), torch.float32), side, side))


def _cases(kernel: str, launcher: str) -> list[Case]:
    """Batch, heads and tokens beyond 2^31 in what launchers allocate; strides beyond it in what callers give."""
    case: Callable[..., Case] = partial(scaled, kernel, function=_dense, launcher=launcher)
    square, m = (lambda s: (1, 1, 16, 16, 16)), 1 if launcher == "stream_bias" else 16
    cases = [
        case("batch", small=3, offset=2**27, dims=lambda s: (s, 1, 16, m, 1)),
        case("heads", small=3, offset=2**27, dims=lambda s: (1, s, 16, m, 1)),
        case("key stride of a mask", small=16, offset=2**28, dims=square, keys=lambda s: (1, s)),
        # other strides are counted in units of 16 bytes, where 2^31 is further off
        case("odd token stride", small=1025, offset=2**28, dims=square, strides=stride(2, 256)),
    ]
    for axis, what, extents, offset in (
        (0, "batch", (3, 1, 16, 16), 2**30),
        (1, "head", (1, 3, 16, 16), 2**30),
        (2, "token", (1, 1, 16, 16), 2**28),
    ):
        steps, fixed = stride(axis, 256), lambda s, extents=extents: extents
        terms = {} if axis == 1 and kernel in SHORT else dict(bias=fixed, bias_strides=steps)
        dims = lambda s, extents=extents: (*extents, 16)  # noqa: E731
        cases.append(case(f"{what} stride", small=1024, offset=offset, dims=dims, strides=steps, **terms))
    if launcher == "stream_bias":
        cases.append(case("batch of keys", small=3, offset=2**27, dims=lambda s: (s, 1, 1, 16, 1)))
    if launcher == "short_backward":
        bias = dict(dims=lambda s: (s, 1, 16, 16, 16), bias=lambda s: (s, 1, 16, 16))
        cases.append(case("bias gradient", small=3, offset=2**23, **bias))
    if kernel in STREAMING:
        queries, keys = (lambda s: (1, 1, s, 16, 16)), (lambda s: (1, 1, 16, s, 16))
        which, extents = ("keys", keys) if launcher == "stream_dkdv" else ("queries", queries)
        cases.append(case(which, small=20, offset=2**27, dims=extents))
        cases.append(case("tile of a table", small=3, offset=2**17, dims=lambda s: (1, s, 16, 16, 16), hook=_tile))
    return cases


def _hopper_cases() -> list[Case]:
    """As `_cases`, of what descriptors reach: rows that start at multiples of 16 bytes."""
    case = partial(scaled, "_stream_hopper_fwd", function=_dense, launcher="stream_hopper_forward")
    few, strides = (lambda s: (1, 1, 2, 2, 16)), {axis: stride(axis, 256) for axis in range(3)}
    batch, heads = (lambda s: (s, 1, 16, 16, 16)), (lambda s: (1, s, 16, 16, 16))
    return [
        case("batch", small=3, offset=2**23, dims=batch, bias=lambda s: batch(s)[:4]),
        case("heads", small=3, offset=2**23, dims=heads, bias=lambda s: heads(s)[:4]),
        case("batch stride", small=1024, offset=2**30, dims=lambda s: batch(3), strides=strides[0]),
        case("head stride", small=1024, offset=2**30, dims=lambda s: heads(3), strides=strides[1]),
        case("token stride", small=1024, offset=2**31, dims=few, strides=strides[2]),
    ]


def _parts(tensors, size, *, of: str, dims: Callable, strides: Callable | None = None):
    """Two parts of (B, H, N, D) = ``dims(size)`` are added up; ``strides``: of the whole."""
    from vitkern.kernels.loop import splits
    from vitkern.kernels.loop.problem import dense_rows, per_token

    parts = dense_rows(tensors(lambda s: (2, *dims(s)), torch.float32).flatten(0, 1))
    whole = dense_rows(tensors(dims, strides=strides))
    if of == "_add_parts":
        splits.add_parts(2, parts, whole)
        return
    logs = per_token(tensors(lambda s: (2, *dims(s)[:3]), torch.float32).flatten(0, 1))
    steps = None if strides is None else lambda s: strides(s)[:3]
    splits.combine_softmax(2, parts, logs, whole, per_token(tensors(lambda s: dims(s)[:3], torch.float32, steps)))


def _split_cases(kernel: str) -> list[Case]:
    case = partial(scaled, kernel, function=_parts, of=kernel)
    apart = partial(case, small=1024, offset=2**29)
    return [
        case("batch", small=3, offset=2**27, dims=lambda s: (s, 1, 16, 1)),
        case("heads", small=3, offset=2**27, dims=lambda s: (1, s, 16, 1)),
        case("tokens", small=20, offset=2**27, dims=lambda s: (1, 1, s, 16)),
        apart("batch stride", dims=lambda s: (7, 1, 16, 16), strides=stride(0, 256)),
        apart("head stride", dims=lambda s: (1, 7, 16, 16), strides=stride(1, 256)),
        case("token stride", small=1024, offset=2**28, dims=lambda s: (1, 1, 16, 16), strides=stride(2, 256)),
    ]


def offsets() -> list[Case]:
    cases = [case for kernel, launcher in (STREAMING | SHORT).items() for case in _cases(kernel, launcher)]
    return (
        cases
        + [case for kernel in ("_combine_softmax", "_add_parts") for case in _split_cases(kernel)]
        + _hopper_cases()
    )
