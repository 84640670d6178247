"""Cases of `offsets` for sampled attention."""

from functools import partial

import torch

from vitkern.lab.addressing.offset_case import HALF, Case, scaled


def _sparse(tensors, size, *, backward, dims, strides=None):
    """``dims(size)``: (B, H, N, D), with as many keys as queries, gates, a key mask and an index."""
    from vitkern.kernels import sparse_attention as kernels

    batch, heads, n, dim = dims(size)
    q, k, v = (tensors(dims, strides=strides) for _ in range(3))
    key_mask = tensors(lambda s: (dims(s)[0], dims(s)[2]), torch.bool)
    gates = [tensors(lambda s: (dims(s)[0], dims(s)[2]), torch.float32) for _ in range(2)]
    index = torch.empty(batch, n, dtype=torch.int64)
    index[-3:] = torch.arange(n).flip(0)
    if not backward:
        kernels.sparse_attention_forward(q, k, v, index, key_mask, *gates, 0.5, 2.0)
        return
    grad = tensors(lambda s: (dims(s)[0], dims(s)[2], dims(s)[1], dims(s)[3]))
    found = [torch.empty(batch, heads, n, dim, dtype=HALF) for _ in range(3)]
    kernels.run_backward(grad, q, k, v, *found, index, key_mask, *gates, 0.5, 2.0)


def sparse_cases() -> list[Case]:
    """Sequences and heads beyond 2^31 in what launchers allocate; strides beyond it in what callers give."""
    cases = []
    for kernel, backward in (("_sparse_fwd", False), ("_sparse_bwd", True)):
        case = partial(scaled, kernel, function=_sparse, backward=backward)
        cases += [
            case("sequences", small=3, offset=2**27, dims=lambda s: (s, 1, 16, 1)),
            case("heads", small=3, offset=2**27, dims=lambda s: (1, s, 16, 1)),
        ]
        for axis, what, extents in ((0, "sequence", (3, 1, 16)), (1, "head", (1, 3, 16)), (2, "token", (1, 1, 16))):
            steps = lambda s, axis=axis: tuple(s if i == axis else n for i, n in enumerate((256, 256, 16, 1)))  # noqa: E731
            dims = lambda s, extents=extents: (*extents, 16)  # noqa: E731
            offset = 2**28 if axis == 2 else 2**30
            cases.append(case(f"{what} stride", small=1024, offset=offset, dims=dims, strides=steps))
        odd = lambda s: (256, 256, s, 1)  # noqa: E731 other strides are counted in units of 16 bytes
        cases.append(case("odd token stride", small=1025, offset=2**28, dims=lambda s: (1, 1, 16, 16), strides=odd))
    return cases
