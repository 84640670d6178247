"""Products that mix the tokens of an image: one weight (R, K) times each image (K, C), channels side by side, so that
nothing is transposed. B images; a product (B, R, C) passes through a hook before it is stored.

    EPILOGUE(acc, image, row, col, part, rows, cols, args, ACT, EXACT)

with ``acc`` [BLOCK_M, BLOCK_N] float32, ``row`` and ``col`` its place in the image, ``part`` that of its column sums,
``rows`` and ``cols`` the size of an image, ``args`` the hook's own tuple. The hook stores.
"""

import torch
import triton
import triton.language as tl

from ..machine.architecture import INTERPRETER, arch_of
from ..machine.blocks import Config, dot_precision
from ..machine.choices import choice
from ..machine.launch import launch
from .activations import activate, activate_with_slope
from .blocks import INTERPRETED


@choice
def mixing_shares(arch):
    """Shares of the images that leave a partial gradient of a weight each."""
    return 2 if arch == INTERPRETER else 32


@choice
def mixing_config(itemsize, arch):
    """Of both products. Returns (Config, inner block); full-precision float32 has no tensor cores, and few registers
    for its operands."""
    if arch == INTERPRETER:
        return INTERPRETED, 64
    return (Config(32, 32, 4, 2), 32) if itemsize == 4 else (Config(128, 64, 8, 3), 64)


@triton.jit
def _places(image, row, col, rows, cols):
    """Offsets [BLOCK_M, BLOCK_N] in (B, rows, cols), contiguous, and which there are."""
    where = (image.to(tl.int64) * rows + row)[:, None] * cols + col[None, :]
    return where, (row < rows)[:, None] & (col < cols)[None, :]


@triton.jit
def _load_rows(pointer, row, rows):
    return tl.load(pointer + row, mask=row < rows, other=0.0).to(tl.float32)[:, None]


@triton.jit
def activate_tokens(acc, image, row, col, part, rows, cols, args, ACT: tl.constexpr, EXACT: tl.constexpr):
    """hidden = act(product + bias). args (bias, pre, hidden); ``pre``, if not None, receives the argument of act."""
    bias, pre, hidden = args
    where, inside = _places(image, row, col, rows, cols)
    if bias is not None:
        acc += _load_rows(bias, row, rows)
    if pre is not None:
        tl.store(pre + where, acc.to(pre.dtype.element_ty), mask=inside)
    tl.store(hidden + where, activate(acc, ACT, EXACT).to(hidden.dtype.element_ty), mask=inside)


@triton.jit
def add_tokens(acc, image, row, col, part, rows, cols, args, ACT: tl.constexpr, EXACT: tl.constexpr):
    """out = base + row_scale * (product + bias). args (bias, row_scale, base, out), of which only out must be."""
    bias, row_scale, base, out = args
    where, inside = _places(image, row, col, rows, cols)
    if bias is not None:
        acc += _load_rows(bias, row, rows)
    if row_scale is not None:
        acc *= tl.load(row_scale + image).to(tl.float32)
    if base is not None:
        acc += tl.load(base + where, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + where, acc.to(out.dtype.element_ty), mask=inside)


@triton.jit
def activation_backward(acc, image, row, col, part, rows, cols, args, ACT: tl.constexpr, EXACT: tl.constexpr):
    """dpre = product * act'(pre), hidden = act(pre), and the sums of dpre over these columns.

    args (pre, hidden, dpre, partial); ``partial`` (parts, rows) float32.
    """
    pre, hidden, dpre, partial = args
    where, inside = _places(image, row, col, rows, cols)
    value, slope = activate_with_slope(tl.load(pre + where, mask=inside, other=0.0).to(tl.float32), ACT, EXACT)
    tl.store(hidden + where, value.to(hidden.dtype.element_ty), mask=inside)
    acc *= slope  # zero outside, as the product is
    tl.store(dpre + where, acc.to(dpre.dtype.element_ty), mask=inside)
    tl.store(partial + part.to(tl.int64) * rows + row, tl.sum(acc, 1), mask=row < rows)


@triton.jit
def _mix_tokens(
    weight, x, args, rows, inner, cols, weight_rows, weight_inner, row_stride, inner_stride,
    EPILOGUE: tl.constexpr, ACT: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """weight (rows, inner) of any strides times x (B, inner, cols); blocks of rows of one image are neighbours. The
    weight has zeros up to (weight_rows, weight_inner)."""
    row_blocks, col_blocks = tl.cdiv(rows, BLOCK_M), tl.cdiv(cols, BLOCK_N)
    part = tl.program_id(0) // row_blocks
    image = part // col_blocks
    row = tl.program_id(0) % row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    col = part % col_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    a_at = weight + row.to(tl.int64)[:, None] * row_stride + k.to(tl.int64)[None, :] * inner_stride
    b_at = x + (image.to(tl.int64) * inner + k)[:, None] * cols + col[None, :]
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, inner, BLOCK_K):
        a_mask = (row < weight_rows)[:, None] & (start + k < weight_inner)[None, :]
        a = tl.load(a_at, mask=a_mask, other=0.0)
        b = tl.load(b_at, mask=(start + k < inner)[:, None] & (col < cols)[None, :], other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
        a_at += BLOCK_K * tl.cast(inner_stride, tl.int64)
        b_at += BLOCK_K * tl.cast(cols, tl.int64)
    EPILOGUE(acc, image, row, col, part, rows, cols, args, ACT, EXACT)


@triton.jit
def _mix_weight_bwd(
    left, right, partial, images, rows, cols, inner,
    PRECISION: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """left (B, rows, inner) times right^T (B, cols, inner), added up over every num_programs(1)-th image, to
    ``partial`` (shares, rows, cols) float32."""
    col_blocks = tl.cdiv(cols, BLOCK_N)
    row = tl.program_id(0) // col_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    col = tl.program_id(0) % col_blocks * BLOCK_N + tl.arange(0, BLOCK_N)
    k = tl.arange(0, BLOCK_K)
    turns = tl.cdiv(inner, BLOCK_K)
    share = tl.program_id(1)
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for turn in range(0, tl.cdiv(images - share, tl.num_programs(1)) * turns):
        image = (share + turn // turns * tl.num_programs(1)).to(tl.int64)
        c = turn % turns * BLOCK_K + k
        a_at = left + (image * rows + row)[:, None] * inner + c[None, :]
        b_at = right + (image * cols + col)[None, :] * inner + c[:, None]
        a = tl.load(a_at, mask=(row < rows)[:, None] & (c < inner)[None, :], other=0.0)
        b = tl.load(b_at, mask=(col < cols)[None, :] & (c < inner)[:, None], other=0.0)
        acc = tl.dot(a, b, acc, input_precision=PRECISION)
    where = partial + (share.to(tl.int64) * rows + row)[:, None] * cols + col[None, :]
    tl.store(where, acc, mask=(row < rows)[:, None] & (col < cols)[None, :])


def _blocks(like):
    config, block_k = mixing_config(like.element_size(), arch_of(like))
    return dict(
        PRECISION=dot_precision(like.dtype), BLOCK_M=config.block_m, BLOCK_N=config.block_n, BLOCK_K=block_k,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def mixed_parts(x):
    """Column sums that a hook leaves of products with x (B, K, C)."""
    return x.shape[0] * triton.cdiv(x.shape[2], _blocks(x)["BLOCK_N"])


def in_whole_lines(weight):
    """A weight (R, K) with zeros up to a K whose rows are loaded 16 bytes at a time: 196 tokens are 208."""
    spare = -weight.shape[1] % 16
    return torch.nn.functional.pad(weight, (0, spare)) if spare else weight.contiguous()


def mix_tokens(weight, x, epilogue, args, *, rows, act="gelu"):
    """EPILOGUE(weight @ x) of a weight (rows, K), which zeros may follow in either direction, and x (B, K, C),
    contiguous."""
    (images, inner, cols), blocks = x.shape, _blocks(x)
    launch(
        _mix_tokens, (images * triton.cdiv(rows, blocks["BLOCK_M"]) * triton.cdiv(cols, blocks["BLOCK_N"]),),
        weight, x, args, rows, inner, cols, *weight.shape, *weight.stride(),
        EPILOGUE=epilogue, ACT=act, EXACT=x.dtype == torch.float32, **blocks,
    )  # fmt: skip


def mix_weight_backward(left, right):
    """Sum over images of left (B, R, C) times right^T (B, K, C), both contiguous: (R, K) float32."""
    (images, rows, inner), cols, blocks = left.shape, right.shape[1], _blocks(left)
    shares = min(images, mixing_shares(arch_of(left)))
    partial = torch.empty(shares, rows, cols, dtype=torch.float32, device=left.device)
    launch(
        _mix_weight_bwd, (triton.cdiv(rows, blocks["BLOCK_M"]) * triton.cdiv(cols, blocks["BLOCK_N"]), shares),
        left, right, partial, images, rows, cols, inner, **blocks,
    )  # fmt: skip
    return partial.sum(0)
