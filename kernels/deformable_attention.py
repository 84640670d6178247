"""Multi-scale deformable attention (Zhu et al., Deformable DETR, arXiv 2010.04159, equation 3).

    out = sum over levels l and points p of w_lp value_l(x, y)    x = u W_l - 1/2, y = v H_l - 1/2, (u, v) a location
    value_l(x, y) = sum over pixels (j, i) of value_l[j, i] hat(y - j) hat(x - i)     hat(t) = max(0, 1 - |t|)

Legend: B images, S pixels of all levels, Q queries, H heads, D head dim, P points of a level. A cell is what lies
between four neighbouring pixels, or between those at the border and the zeros around them: a level has
(H_l + 1) (W_l + 1), and a point that is in none of them counts for nothing.

Launches: one forward. Backward two, and between them PyTorch sorts the points by cell: the gradient of a value is then
a sum over what lies in its four cells, which one program finds side by side. Nothing is atomic, sums are float32 and in
a fixed order, what is not finite stays so, and no float32 copy of the gradient is held.

Bytes of the values' gradient, for a point of a head of 32 dims in half precision: four rows are gathered, 256, each
with place and weight, 4 x 64 in sectors; sorting moves about 100 (four passes over a key and an index); 612. Scattered,
they would be 512 of float32 atomics, whose order is not fixed, or 1024 of int64 ones in fixed point, whose unit must
bound a sum; and both need zeros and a rounding pass over 4 or 8 bytes a channel. Forward and the other gradients gather
256 each. Where all points are in one cell its four pixels are slow: a program adds them up alone.

Compiled for sm_90 in bfloat16 (Triton 3.9): 48 registers forward, 56 for points, 95 for values, loads of 128 bits.
"""

import torch
import triton
from torch import Tensor

from .loop.problem import aligned, dense_rows, unit_last
from .machine.architecture import CDNA, INTERPRETER, arch_of, family
from .machine.blocks import Config, head_tile
from .machine.choices import choice
from .machine.launch import launch
from .machine.numbers import disguised
from .sampling.points import _deformable_bwd, _deformable_fwd
from .sampling.values import _deformable_bwd_value


@choice
def deformable_config(arch):
    """Rows are queries, of heads of 32 dims: wider heads have fewer. 8 elements a thread."""
    if arch == INTERPRETER:
        return Config(16, 1, 4, 1)
    return Config(64 if family(arch) == CDNA else 32, 1, 4, 1)


@choice
def deformable_value_config(arch):
    """Rows are pixels, and columns the points that each adds up at a time, of heads of 32 dims: wider ones fewer."""
    return Config(16, 4, 4, 1) if arch == INTERPRETER else Config(8, 16, 4, 1)


def _of_heads(rows, like):
    """(B, Q, H * D) -> (B, H, Q, D), H and D those of ``like`` (..., H, D)."""
    return rows.unflatten(2, like.shape[2:]).transpose(1, 2)


def _constants(value, weights, config, align):
    return dict(
        LEVELS=weights.shape[3],
        POINTS=weights.shape[4],
        HEAD_DIM=value.shape[3],
        ALIGN=align,
        BLOCK_D=head_tile(value.shape[3]),
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )


def _sizes(shapes):
    return tuple((disguised(h), disguised(w)) for h, w in zip(shapes[::2], shapes[1::2], strict=True))


def _of_queries(value, weights, align):
    """Programs and constants of a kernel whose rows are queries."""
    batch, queries, heads = weights.shape[:3]
    config = deformable_config(arch_of(value))
    rows = max(1, config.block_m * 32 // head_tile(value.shape[3]))
    return batch * heads * triton.cdiv(queries, rows), dict(_constants(value, weights, config, align), BLOCK_Q=rows)


def deformable_attention_outputs(value, locations, weights, shapes):
    """out (B, Q, H * D)."""
    return value.new_empty(locations.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


def deformable_attention_forward(value: Tensor, locations: Tensor, weights: Tensor, shapes: list[int]) -> Tensor:
    """value (B, S, H, D), any strides, S pixels of levels of ``shapes`` (height, width, height, ...); locations
    (B, Q, H, L, P, 2), weights (B, Q, H, L, P) -> out."""
    out = deformable_attention_outputs(value, locations, weights, shapes)
    values, results = dense_rows(unit_last(value).transpose(1, 2)), dense_rows(_of_heads(out, value))
    align = aligned(values, results)
    programs, constants = _of_queries(value, weights, align)
    launch(
        _deformable_fwd, (programs,), values.tensor, locations.contiguous(), weights.contiguous(), out,
        values.strides_over(align), results.strides_over(align), _sizes(shapes), disguised(weights.shape[1]),
        value.shape[2], **constants,
    )  # fmt: skip
    return out


def deformable_attention_gradients(grad, out, value, locations, weights, shapes, needs):
    """(dvalue, dlocations, dweights), contiguous; dvalue is empty where it is not wanted."""
    dvalue = value.new_empty(value.shape if needs[0] else 0)
    return dvalue, *(torch.empty_like(x, memory_format=torch.contiguous_format) for x in (locations, weights))


def deformable_attention_backward(
    grad: Tensor,
    out: Tensor,
    value: Tensor,
    locations: Tensor,
    weights: Tensor,
    shapes: list[int],
    needs: list[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of `deformable_attention_forward`; deterministic."""
    found = deformable_attention_gradients(grad, out, value, locations, weights, shapes, needs)
    dvalue, dlocations, dweights = found
    locations, weights = locations.contiguous(), weights.contiguous()
    cells = run_of_points(grad, value, locations, weights, dlocations, dweights, shapes)
    if needs[0]:
        order, starts = _by_cell(cells, shapes)
        run_of_values(grad, locations, weights, order, starts, dvalue, shapes)
    return found


def _by_cell(cells, shapes):
    """What orders points (B, H, Q, L, P) by image, head and cell, and where each cell begins; the same in every run."""
    batch, heads = cells.shape[:2]
    count = 1 + sum((height + 1) * (width + 1) for height, width in zip(shapes[::2], shapes[1::2], strict=True))
    end = batch * heads * count
    options = dict(dtype=torch.int32 if end < 2**31 else torch.int64, device=cells.device)
    keys = (cells + torch.arange(0, end, count, **options).view(batch, heads, 1, 1, 1)).view(-1)
    order = torch.argsort(keys, stable=True)
    return order, torch.searchsorted(keys, torch.arange(end + 1, **options), sorter=order)


def run_of_points(grad, value, locations, weights, dlocations, dweights, shapes):
    """Fills dlocations and dweights; the cells of all points."""
    batch, queries, heads, levels, points = weights.shape
    cells = torch.empty((batch, heads, queries, levels, points), dtype=torch.int32, device=value.device)
    values, slopes = dense_rows(unit_last(value).transpose(1, 2)), dense_rows(_of_heads(unit_last(grad), value))
    align = aligned(values, slopes)
    programs, constants = _of_queries(value, weights, align)
    launch(
        _deformable_bwd, (programs,), slopes.tensor, values.tensor, locations, weights, dlocations, dweights, cells,
        slopes.strides_over(align), values.strides_over(align), _sizes(shapes), disguised(queries), heads, **constants,
    )  # fmt: skip
    return cells


def run_of_values(grad, locations, weights, order, starts, dvalue, shapes):
    """Fills dvalue."""
    batch, pixels, heads, head_dim = dvalue.shape
    config = deformable_value_config(arch_of(dvalue))
    slopes = dense_rows(_of_heads(unit_last(grad), dvalue))
    align = aligned(slopes, dense_rows(dvalue.transpose(1, 2)))
    count = max(1, config.block_n * 32 // head_tile(head_dim))
    launch(
        _deformable_bwd_value, (batch * heads * triton.cdiv(pixels, config.block_m),),
        slopes.tensor, locations, weights, order, starts, dvalue, slopes.strides_over(align), _sizes(shapes),
        disguised(weights.shape[1]), disguised(pixels), heads, BLOCK=config.block_m, COUNT=count,
        **_constants(dvalue, weights, config, align),
    )  # fmt: skip
