"""LayerNorm, or RMSNorm, of rows of a head in the tile, and its gradients. Rows are a tuple of tiles, as heads.py has
them, zero from DIM on; statistics are float32 and two-pass.

    y = u weight + bias,  u = (x - mean) rstd    dx = rstd (g - mean(g) - u mean(g u)) with g = dy weight

RMSNorm: neither mean, and rstd is 1 / root mean square. HEAD: see constants.py of the loop.
"""

import triton
import triton.language as tl

from ..loop.heads import inner_products


@triton.jit
def load_channels(pointer, other, HEAD: tl.constexpr):
    """One float32 of each channel, [1, BLOCK_D] and [1, TAIL_D]; ``other`` for all where there is no pointer, and zero
    from DIM on where there is one."""
    parts = ()
    for n in tl.static_range(1 if HEAD.TAIL_D == 0 else 2):
        d = n * HEAD.BLOCK_D + tl.arange(0, HEAD.TAIL_D if n == 1 else HEAD.BLOCK_D)[None, :]
        if pointer is None:
            parts += (tl.zeros(d.shape, tl.float32) + other,)
        else:
            parts += (tl.load(pointer + d, mask=d < HEAD.DIM, other=0.0).to(tl.float32),)
    return parts


@triton.jit
def _mean(rows, HEAD: tl.constexpr):
    total = tl.sum(rows[0].to(tl.float32), 1)
    for n in tl.static_range(1, len(rows)):
        total += tl.sum(rows[n].to(tl.float32), 1)
    return (total / HEAD.DIM)[:, None]


@triton.jit
def unit_rows(rows, eps, CENTRED: tl.constexpr, HEAD: tl.constexpr):
    """u, float32, and rstd [BLOCK, 1]."""
    centred = ()
    for n in tl.static_range(len(rows)):
        part = rows[n].to(tl.float32)
        if CENTRED:
            part -= _mean(rows, HEAD)
            if (n + 1) * HEAD.BLOCK_D > HEAD.DIM:
                part = tl.where((n * HEAD.BLOCK_D + tl.arange(0, part.shape[1]) < HEAD.DIM)[None, :], part, 0.0)
        centred += (part,)
    rstd = tl.math.rsqrt(inner_products(centred, centred) / HEAD.DIM + eps)[:, None]
    parts = ()
    for n in tl.static_range(len(rows)):
        parts += (centred[n] * rstd,)
    return parts, rstd


@triton.jit
def multiplied(a, b):
    """By the element."""
    parts = ()
    for n in tl.static_range(len(a)):
        parts += (a[n] * b[n],)
    return parts


@triton.jit
def normalised(rows, weight, bias, eps, CENTRED: tl.constexpr, HEAD: tl.constexpr):
    """y, as products take it; ``bias`` may be None."""
    unit, _ = unit_rows(rows, eps, CENTRED, HEAD)
    parts = ()
    for n in tl.static_range(len(rows)):
        part = unit[n] * weight[n]
        if bias is not None:
            part += bias[n]
        parts += (part.to(rows[n].dtype),)
    return parts


@triton.jit
def norm_backward(grad, unit, rstd, weight, CENTRED: tl.constexpr, HEAD: tl.constexpr):
    """dx from dy; from DIM on it is anything."""
    inner = multiplied(grad, weight)
    along = (inner_products(inner, unit) / HEAD.DIM)[:, None]
    parts = ()
    for n in tl.static_range(len(grad)):
        part = inner[n] - unit[n] * along
        if CENTRED:
            part -= _mean(inner, HEAD)
        parts += (part * rstd,)
    return parts


@triton.jit
def store_channel_sums(pointer, rows, there, HEAD: tl.constexpr):
    """The sum of the rows that are ``there`` [BLOCK], D numbers."""
    for n in tl.static_range(len(rows)):
        d = n * HEAD.BLOCK_D + tl.arange(0, rows[n].shape[1])
        tl.store(pointer + d, tl.sum(tl.where(there[:, None], rows[n], 0.0), 0), mask=d < HEAD.DIM)
