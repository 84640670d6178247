"""Attention of each token of an image over those near it: one operator for neighbourhoods, halos, chunks, windows and
grids."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypedDict, overload

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from vitkern.dispatch import HAS_TRITON, autocast
from vitkern.ops.checks import check_flag, check_same, check_scale, check_tensor
from vitkern.ops.local_attention.checks import check_locality, check_terms
from vitkern.ops.local_attention.softmax import kernel_in_pytorch, local_softmax
from vitkern.ops.sdpa import differentiable_sdpa
from vitkern.ops.window_attention.windows import padded_size
from vitkern.plans import plan_of
from vitkern.register import kernel_op

if TYPE_CHECKING:
    from typing_extensions import Unpack

MAX_HEAD_DIM = 128

if HAS_TRITON:
    from vitkern.kernels import local_attention as kernels

    local_attention_op = kernel_op(
        kernels.local_attention_outputs,
        differentiable=("qkv", "table", "rel_h", "rel_w", "padding"),
        graded=2,
        fallback=kernel_in_pytorch,
    )(kernels.local_attention_forward)
    local_attention_op.backward(kernels.local_attention_gradients)(kernels.local_attention_backward)

    def _product(qkv_shape: Sequence[int], block: Sequence[int], halo: Sequence[int]) -> int:
        """FLOPs of one matrix product: every query of whole blocks with all that its interval holds."""
        batch, img_h, img_w, packed = qkv_shape
        tokens = batch * padded_size(img_h, block[0]) * padded_size(img_w, block[1])
        return 2 * tokens * (block[0] + 2 * halo[0]) * (block[1] + 2 * halo[1]) * packed // 3

    @register_flop_formula(torch.ops.vitkern.local_attention)
    def _forward_flops(
        qkv_shape: Sequence[int],
        table: Any,
        rel_h: Any,
        rel_w: Any,
        padding: Any,
        num_heads: int,
        block: Sequence[int],
        halo: Sequence[int],
        *args: Any,
        **kwargs: Any,
    ) -> int:
        return 2 * _product(qkv_shape, block, halo)

    @register_flop_formula(torch.ops.vitkern.local_attention_backward)
    def _backward_flops(grad: Any, lse_grad: Any, out: Any, lse: Any, *inputs: Any, **kwargs: Any) -> int:
        return _forward_flops(*inputs) * 5 // 2


class _Sizes(TypedDict):
    num_heads: int
    block: tuple[int, int]


class Arguments(_Sizes, total=False):
    """Those of `local_attention` that change weights, not what is returned."""

    halo: tuple[int, int]
    border: str
    dilation: tuple[int, int]
    table: Tensor | None
    rel_h: Tensor | None
    rel_w: Tensor | None
    padding: Tensor | None
    neighbor: tuple[int, int] | None
    scale: float | None


@overload
def local_attention(qkv: Tensor, *, return_lse: Literal[False] = False, **arguments: "Unpack[Arguments]") -> Tensor: ...
@overload
def local_attention(
    qkv: Tensor, *, return_lse: Literal[True], **arguments: "Unpack[Arguments]"
) -> tuple[Tensor, Tensor]: ...
@overload
def local_attention(
    qkv: Tensor, *, return_lse: bool, **arguments: "Unpack[Arguments]"
) -> Tensor | tuple[Tensor, Tensor]: ...
def local_attention(
    qkv: Tensor,
    *,
    num_heads: int,
    block: tuple[int, int],
    halo: tuple[int, int] = (0, 0),
    border: str = "keep",
    dilation: tuple[int, int] = (1, 1),
    table: Tensor | None = None,
    rel_h: Tensor | None = None,
    rel_w: Tensor | None = None,
    padding: Tensor | None = None,
    neighbor: tuple[int, int] | None = None,
    scale: float | None = None,
    return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention of each token over an interval of rows and of columns; differentiable in every tensor.

    Along an axis, tokens whose places have the same remainder modulo the dilation see one another, and count as ranks
    0, 1, ... The query of rank r sees E = block + 2 halo ranks, from r // block * block - halo on:

        block 1, border "clamp"         neighbourhood attention (NAT, arXiv 2204.07143; DiNAT, arXiv 2209.15001)
        block 1, border "keep"          stand-alone self-attention (arXiv 1906.05909)
        block b, halo h, "keep"         HaloNet (arXiv 2103.12731)
        block w, halo w, "exclude"      the chunks of ViL (arXiv 2103.15358); "wrap" for the cyclic kind
        block w, halo 0                 windows; with dilation size / w and block w a grid (MaxViT, arXiv 2204.01697)

    What is not finite spreads within a head. Queries are computed in tiles: blocks, or of single queries 8 x 8
    neighbours of a class (fewer in a small image, on the kernels), and a tile reads an interval of keys that begins
    where that of its first query does and is as long as all of them need. From q a NaN reaches its own query, from v,
    in its channel, every query of a tile that reads it, since 0 * NaN is NaN; from k the queries that see it on the
    kernels, and up to the whole tile in PyTorch, where masks are added to scores.

    Args:
        qkv: (B, img_h, img_w, 3 * C) in natural token order, the channels split as (3, H, D); float16, bfloat16,
            float32; float64 and D > 128 in PyTorch.
        num_heads: H, divides C.
        block, halo, dilation: (height, width) in tokens.
        border: what ranks beyond the image are. "clamp": the interval is moved inside it. "exclude": not seen. "keep":
            seen, ``padding`` there. "wrap": those of the other end; not seen where the last block is not full.
        table: (H, T_h, T_w), T odd: biases by offset of the key from the query, added to the scores in float32; the
            middle entry is the query's own place. T is at least 2 E - 1 for "clamp" and 2 (block + halo) - 1 else.
        rel_h, rel_w: (B, img_h, img_w, H, E_h) and (..., E_w): what a query adds to the scores of the keys in row, and
            in column, j of its interval (MViTv2, arXiv 2112.01526, equation 4).
        padding: (3 * C,) what ``qkv`` is beyond the image, zeros by default. For border "keep" and no halo.
        neighbor: (dy, dx) in -1 .. 1: of the blocks around its own a query sees this one alone. For halo = block.
        scale: factor of q k^T; D ** -0.5 by default.
        return_lse: also return the logarithm of the softmax denominators; it has a gradient.

    Returns:
        (B, img_h, img_w, C), contiguous, in the dtype of ``qkv`` (under autocast: the autocast dtype). With
        ``return_lse`` also (B, H, img_h, img_w), float32, natural logarithm.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: shapes, devices or values that do not fit; the message says which.
        NotImplementedError: a kernel was forced and cannot run.
    """
    op = "local_attention"
    options = num_heads, block, halo, border, dilation, neighbor, scale, return_lse
    call = plan_of(op, (qkv, table, rel_h, rel_w, padding), options)
    if not call.known:
        check_tensor(op, "qkv", qkv, ndim=4)
        check_flag(op, "return_lse", return_lse)
        block, halo, dilation = check_locality(op, qkv, num_heads, block, halo, border, dilation, neighbor)
        check_terms(op, qkv, num_heads, block, halo, border, table, rel_h, rel_w, padding)
        check_scale(op, scale)
    if call.casts:
        qkv, rel_h, rel_w, padding = autocast(qkv, rel_h, rel_w, padding)
    if not call.known:
        check_same(op, qkv=qkv, rel_h=rel_h, rel_w=rel_w, padding=padding)
    scale = (qkv.shape[-1] // 3 // num_heads) ** -0.5 if scale is None else float(scale)
    tensors = (qkv, table, rel_h, rel_w, padding)
    chosen = () if neighbor is None else tuple(neighbor)
    if call.known or call.runs_kernel(tensors, head_dim_reasons(qkv.shape[-1] // 3 // num_heads)):
        pairs = list(block), list(halo), border, list(dilation), list(chosen)
        out, lse = call.run(local_attention_op, *tensors, num_heads, *pairs, scale)
    else:
        with differentiable_sdpa(qkv):
            out, lse = local_softmax(*tensors, num_heads, block, halo, border, dilation, chosen, scale, return_lse)
    return (out, lse) if return_lse else out


def head_dim_reasons(head_dim: int) -> list[str]:
    """Why the kernel cannot run, beside the tensors themselves."""
    return [f"the head dim is {head_dim}, above {MAX_HEAD_DIM}"] if head_dim > MAX_HEAD_DIM else []
