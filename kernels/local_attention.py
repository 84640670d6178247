"""Local attention where the image lies: the loop of stream.py under the hooks of locality.py. Nothing is gathered,
padded or unfolded, and no mask is in memory.

    out = softmax(scale q k^T + table[k - q] + rel_h[q, row of k] + rel_w[q, column of k]) v   over the keys near q

Forward and dQ walk tiles of queries against regions of keys; dK and dV tiles of keys against regions of queries, which
is why lse and delta are kept by token and not by group. The gradient of the table is summed over all tiles in a frame
that is the same for each.

Legend: B images of img_h x img_w tokens, C channels, H heads, D = C / H, E = block + 2 halo of an axis.
"""

import functools
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from .loop import locality
from .loop.blocks import local_tile
from .loop.problem import Problem, Rows, aligned, image_rows, per_token, unit_last
from .loop.stream import stream_forward
from .loop.stream_axes import stream_axes_gradient
from .loop.stream_backward import stream_dkdv, stream_dq
from .loop.stream_bias import stream_bias_gradient
from .machine.architecture import arch_of
from .machine.numbers import disguised, inverse
from .tile.short_attention import LOG2_OF_E

BORDERS = {"clamp": locality.CLAMP, "exclude": locality.EXCLUDE, "keep": locality.KEEP, "wrap": locality.WRAP}


class _Axis(NamedTuple):
    """``args``: as locality.py takes it. ``sized``: its tokens follow the size of the image."""

    args: tuple
    groups: int
    tile: int
    span: int
    sized: bool


@functools.lru_cache(maxsize=256)
def _axis(size, block, halo, border, dilation, kind, tile, constants):
    """The span of a region of queries is the largest that a tile of keys needs. ``constants``: what of the axis kernels
    know, "size" and all else, "block" and all but the size, "tile", or nothing, where it is one block."""
    count, extent = -(-size // dilation), block + 2 * halo
    tiles = -(-count // tile)
    if kind == "keys":
        lengths = {-(-(size - first) // dilation) for first in range(min(dilation, size))}
        needed = (
            _queries(start, min(start + tile, length) - 1, length, block, halo, border)
            for length in lengths
            for start in range(0, length, tile)
        )
        span = max((last - first + 1 for first, last in needed), default=1)
    else:
        span = extent if block > 1 else tile + extent - 1
        span += 2 * halo if kind == "fixed" and border == "clamp" else 0
    kinds = {"queries": locality.OF_QUERIES, "keys": locality.OF_KEYS, "fixed": locality.FIXED}
    if constants == "tile":  # odd: tokens are no multiple of 16, which would be another kernel; see `inverse`
        span = max(span | 1, 3)
    given = tl.constexpr(disguised(size)) if constants == "size" else disguised(size)
    known = {"": (0, 0, 0), "tile": (tile, 0, block)}.get(constants, (tile, span, block))
    args = (
        given, dilation, disguised(tiles), *(tl.constexpr(n) for n in (*known, halo)),
        BORDERS[border], kinds[kind], disguised(span), inverse(max(span, 2)),
    )  # fmt: skip
    return _Axis(args, dilation * tiles, tile, span, constants in ("", "tile"))


def _queries(first, last, length, block, halo, border):
    """The first and the last query that see any of the keys ``first`` .. ``last``, as `locality` has them."""
    begin, end = (first - halo) // block * block, (last + halo) // block * block + block - 1
    if border == "wrap":
        return begin, end
    if border == "clamp":
        begin = 0 if first < block + 2 * halo else begin
        end = length - 1 if last >= length - (block + 2 * halo) else end
    return max(begin, 0), min(end, length - 1)


def _is_whole(image, block, halo, border, dilation, table):
    """Whether the image is one block and one kernel serves all sizes: not one with a table, whose shape is theirs."""
    alone = border == "keep" and table is None and not any(halo) and all(step == 1 for step in dilation)
    height, width = image
    return alone and tuple(image) == tuple(block) and width > 1 and height * width**2 < 2**29  # see `divided`


def _is_even(image):
    return image[1] % 32 == 0


def _axes(qkv, block, halo, border, dilation, kind, table):
    """Of y and x, with as few constants as cost nothing: where the image is one block, a width of whole pieces of 32,
    for which the logits of a row are loaded at once; of tiles of keys, the region of those amid the image, which at
    some sizes is too small for those at a border that moves windows inside."""
    arch, image = arch_of(qkv), qkv.shape[1:3]
    tiles = [
        local_tile(b, h, -(-size // d), border == "wrap", kind == "keys", arch)
        for size, b, h, d in zip(image, block, halo, dilation, strict=True)
    ]

    def axes(*constants):
        sizes = zip(image, block, halo, dilation, tiles, constants, strict=True)
        return [_axis(size, b, h, border, d, kind, tile, known) for size, b, h, d, tile, known in sizes]

    if _is_whole(image, block, halo, border, dilation, table or None):
        return axes("", "size" if _is_even(image) else "")
    found = axes("block", "block")
    if kind == "keys" and border == "clamp" and any(a.span != a.tile + 2 * h for a, h in zip(found, halo, strict=True)):
        return axes("tile", "tile")
    return found


def _problem(qkv, kind, table, rel, padding, num_heads, block, halo, border, dilation, neighbor, scale):
    y, x = _axes(qkv, block, halo, border, dilation, kind, table)
    axes, in_tile, in_region, by_keys = (y.args, x.args), y.tile * x.tile, y.span * x.span, kind == "keys"
    multiple = 1 if x.sized else x.span if y.sized else 0
    n, m = (in_region, in_tile) if by_keys else (in_tile, in_region)
    places = (locality.region, locality.tile) if by_keys else (locality.tile, locality.region)
    return Problem(
        qkv.shape[0] * y.groups * x.groups, num_heads, num_heads, n, m, qkv.shape[3] // 3 // num_heads, scale,
        *places, axes, axes, locality.near, (axes, table, rel, tuple(neighbor)), locality.own_ranks,
        padding=None if padding is None else padding.to(qkv.dtype).contiguous().view(3, num_heads, -1),
        ragged=True, multiple=multiple,
    )  # fmt: skip


def _table(table):
    """As `locality.near` takes it."""
    if table is None:
        return ()
    table = (table.float() * LOG2_OF_E).contiguous()
    return table, *(tl.constexpr(size) for size in table.shape[1:])


def _logits_rows(tensor):
    """(B, img_h, img_w, H, E)."""
    image, y, x, head, _ = tensor.stride()
    return Rows(tensor, 0, (image, y, x, head))


def _rel(rel_h, rel_w, whole):
    """As `locality.near` takes it; ``whole``: see `_is_whole`."""
    if rel_h is None:
        return ()
    rows = [_logits_rows(rel_h), _logits_rows(rel_w)]
    aligns = [1 if whole else aligned(one) for one in rows]
    if whole and _is_even(rel_w.shape[1:3]):
        aligns[1] = aligned(rows[1])
    strides = (one.over(align)[2] for one, align in zip(rows, aligns, strict=True))
    return *(one.tensor for one in rows), *strides, *map(tl.constexpr, aligns)


def local_attention_outputs(
    qkv, table, rel_h, rel_w, padding, num_heads, block, halo, border, dilation, neighbor, scale
):
    """out (B, img_h, img_w, C) and lse (B, H, img_h, img_w) float32."""
    batch, img_h, img_w, packed = qkv.shape
    lse = qkv.new_empty((batch, num_heads, img_h, img_w), dtype=torch.float32)
    return qkv.new_empty((batch, img_h, img_w, packed // 3)), lse


def local_attention_forward(
    qkv: Tensor,
    table: Tensor | None,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    padding: Tensor | None,
    num_heads: int,
    block: list[int],
    halo: list[int],
    border: str,
    dilation: list[int],
    neighbor: list[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Attention of each token over those near it.

    Args:
        qkv: (B, img_h, img_w, 3 C), natural token order.
        table: (H, T_h, T_w) of any float dtype, T odd, or None. rel_h, rel_w: (B, img_h, img_w, H, E), or None.
        padding: (3 C,), what a token outside the image holds; zeros where None. Only without a halo.
        block, halo, dilation: pairs of ints. border: "clamp", "exclude", "keep" or "wrap". neighbor: a pair of ints, or
        empty. See locality.py.
    """
    arguments = (num_heads, block, halo, border, dilation, neighbor, scale)
    out, lse = local_attention_outputs(qkv, table, rel_h, rel_w, padding, *arguments)
    qkv, rel_h, rel_w = (None if t is None else unit_last(t) for t in (qkv, rel_h, rel_w))
    rel = _rel(rel_h, rel_w, _is_whole(qkv.shape[1:3], block, halo, border, dilation, table))
    problem = _problem(qkv, "queries", _table(table), rel, padding, *arguments)
    stream_forward(
        problem, *image_rows(qkv, problem.head_dim, 3), *image_rows(out, problem.head_dim, 1), per_token(lse)
    )
    return out, lse


def local_attention_gradients(
    grad, lse_grad, out, lse, qkv, table, rel_h, rel_w, padding,
    num_heads, block, halo, border, dilation, neighbor, scale, needs,
):  # fmt: skip
    """(dqkv, dtable, drel_h, drel_w, dpadding), each like its input; empty where there is no such input or ``needs`` is
    false."""
    return tuple(
        x.new_empty(x.shape) if x is not None and needed else qkv.new_empty(0)
        for x, needed in zip((qkv, table, rel_h, rel_w, padding), needs, strict=True)
    )


def local_attention_backward(
    grad: Tensor | None,
    lse_grad: Tensor | None,
    out: Tensor,
    lse: Tensor,
    qkv: Tensor,
    table: Tensor | None,
    rel_h: Tensor | None,
    rel_w: Tensor | None,
    padding: Tensor | None,
    num_heads: int,
    block: list[int],
    halo: list[int],
    border: str,
    dilation: list[int],
    neighbor: list[int],
    scale: float,
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `local_attention_forward`; deterministic."""
    arguments, tensors = (
        (num_heads, block, halo, border, dilation, neighbor, scale),
        (qkv, table, rel_h, rel_w, padding),
    )
    dqkv, grad = qkv.new_empty(qkv.shape), torch.zeros_like(out) if grad is None else unit_last(grad)
    qkv, rel_h, rel_w = (None if t is None else unit_last(t) for t in (qkv, rel_h, rel_w))
    whole = _is_whole(qkv.shape[1:3], block, halo, border, dilation, table)
    hooked = (_table(table), _rel(rel_h, rel_w, whole), padding)
    by_queries, by_keys = (_problem(qkv, kind, *hooked, *arguments) for kind in ("queries", "keys"))
    operands, (dq, dk, dv) = image_rows(qkv, by_queries.head_dim, 3), image_rows(dqkv, by_queries.head_dim, 3)
    (grad,), (out,) = image_rows(grad, by_queries.head_dim, 1), image_rows(out, by_queries.head_dim, 1)
    statistics, delta = per_token(lse), torch.empty_like(lse)
    dtable = drel_h = drel_w = dpadding = None
    stream_dq(
        by_queries, *operands, out, grad, statistics, delta, dq, None if lse_grad is None else lse_grad.contiguous()
    )
    if needs[0] or needs[4]:
        dpadding = stream_dkdv(by_keys, *operands, grad, statistics, delta, dk, dv)
    if needs[2] or needs[3]:
        drel_h, drel_w = (torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (rel_h, rel_w))
        axes, hooks = (_logits_rows(drel_h), _logits_rows(drel_w)), (locality.first_seen, locality.in_region)
        y, x = _axes(qkv, block, halo, border, dilation, "queries", hooked[0])
        stream_axes_gradient(by_queries, *operands, grad, statistics, delta, *axes, *hooks, (y.span, x.span))
    if needs[1]:
        fixed = _problem(qkv, "fixed", *hooked, *arguments)
        slopes = stream_bias_gradient(fixed, *operands, grad, statistics, delta, per_group=False, per_head=True)[0]
        dtable = _of_table(slopes, fixed.q_args, table.shape)
    return tuple(
        result.reshape(x.shape).to(x.dtype) if needed else qkv.new_empty(0)
        for result, x, needed in zip((dqkv, dtable, drel_h, drel_w, dpadding), tensors, needs, strict=True)
    )


def _of_table(slopes, axes, shape):
    """Gradient of a table from dS (H, N, M) in the frame that all tiles share: an entry sums one key of each query, the
    next query's one step further on, in a fixed order."""
    heads, sizes = slopes.shape[0], shape[1:]
    tiles, spans = zip(*((axis[3].value, axis[4].value) for axis in axes), strict=True)
    starts, pads = [], []
    for axis, tile, span, size in zip(axes, tiles, spans, sizes, strict=True):
        halo, border = axis[6].value, axis[7].value
        start = (2 * halo if border == locality.CLAMP.value else halo) - size // 2  # the first query's first key
        before, after = max(0, -start), max(0, start + tile + size - 1 - span)  # an entry whose key is no one's is 0
        starts.append(start + before)
        pads += [after, before]
    frame = F.pad(slopes.view(heads, *tiles, *spans), pads[::-1])  # (H, Q_h, Q_w, K_h, K_w), the last axis first
    head, query_y, query_x, key_y, key_x = frame.stride()
    strides = (head, key_y, key_x, query_y + key_y, query_x + key_x)
    diagonals = frame.as_strided((heads, *sizes, *tiles), strides, starts[0] * key_y + starts[1] * key_x)
    return diagonals.sum((3, 4))  # (H, T_h, T_w)
