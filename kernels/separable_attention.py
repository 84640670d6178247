"""Separable attention of MobileViT v2 and v3 (Mehta and Rastegari, arXiv 2206.02680, section 3.1), on the image.

    s = softmax_n(q)    c = sum_n s_n k_n    out_n = relu(v_n) c                within each class of pixels
    dc = sum_n dout_n relu(v_n)    dv_n = dout_n c [v_n > 0]    dk_n = dc s_n    dq_n = s_n dc . (k_n - c)

A class is the pixels of one place in a patch, y % PATCH_H and x % PATCH_W; its n-th pixel is that of the n-th patch.
Classes are addressed (machine/patches.py), so that nothing is unfolded and any strides will do. Legend: B images, C
channels. A program has the classes of one row and COLS columns of the patch in one image, and BLOCK_C channels; its
tiles are [BLOCK * COLS, BLOCK_C], of BLOCK patches.

Launches: one each way. Bytes, in units of a tensor (B, C, H, W): forward 3 (read k and v, write out), backward 5 (read
dout, v, k; write dv, dk), which is the floor; q, its gradient and c are 1 / C of one. Where several programs share the
channels, each leaves a share of dq in float32, 2 / BLOCK_C of a unit of half precision, and PyTorch adds them up: two
launches more. Sums are float32 and in a fixed order; nothing is atomic.
Compiled for sm_90 in bfloat16 (Triton 3.9): channels first 64 registers forward and 79 backward, loads of 128 bits;
channels last 62 and 128, loads of 16 bits, because pixels are 1 + 2 C elements apart. Nothing spills.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .machine.architecture import INTERPRETER, arch_of
from .machine.blocks import Config, alignment
from .machine.choices import choice
from .machine.launch import launch
from .machine.numbers import all_plain, disguised
from .machine.patches import channels_at, over_patches, pixels, turns
from .machine.tiles import LOG2E


@triton.jit
def _classes(channels, PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, COLS: tl.constexpr, BLOCK_C: tl.constexpr):
    """Of a program: image, row and first column of the patch, block of channels."""
    blocks, groups = tl.cdiv(channels, BLOCK_C), (PATCH_W + COLS - 1) // COLS
    row = tl.program_id(0) // blocks // groups
    column = tl.program_id(0) // blocks % groups * COLS
    return row // PATCH_H, row % PATCH_H, column, tl.program_id(0) % blocks


@triton.jit
def _context_at(
    channels, image, row, column, c,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, T: tl.constexpr, COLS: tl.constexpr,
):  # fmt: skip
    """Places [T, BLOCK_C] in a context [B, PATCH_H, PATCH_W, C], and which classes there are [T]."""
    j = column + tl.arange(0, T) % COLS
    at = ((image.to(tl.int64) * PATCH_H + row) * PATCH_W + j) * channels
    return at[:, None] + c[None, :], j < PATCH_W


@triton.jit
def _softmax(
    q, strides, grid, image, row, column,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr, COLS: tl.constexpr,
    ALIGN: tl.constexpr,
):  # fmt: skip
    """Largest score and 1 / sum of exponentials of each class, at its pixels [BLOCK * COLS, 1]."""
    largest = tl.full([BLOCK * COLS, 1], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK * COLS, 1], tl.float32)
    for turn in tl.range(0, turns(grid, PATCH_W, ACROSS, BLOCK, ALIGN)):
        y, x, inside = pixels(turn, grid, row, column, PATCH_H, PATCH_W, ACROSS, BLOCK, COLS, ALIGN)
        s = _scores(q, strides, image, y, x, inside, ALIGN)
        top = tl.maximum(largest, s)
        pivot = tl.where(top == float("-inf"), 0.0, top)  # no score so far: exp2(-inf - 0) = 0
        total = total * tl.exp2((largest - pivot) * LOG2E) + tl.exp2((s - pivot) * LOG2E)
        largest = top
    top = over_patches(largest, True, BLOCK, COLS, 1)
    pivot = tl.where(top == float("-inf"), 0.0, top)
    return pivot, 1.0 / over_patches(total * tl.exp2((largest - pivot) * LOG2E), False, BLOCK, COLS, 1)


@triton.jit
def _scores(q, strides, image, y, x, inside, ALIGN: tl.constexpr):
    at = channels_at(strides, image, y, x, tl.arange(0, 1), ALIGN)
    return tl.load(q + at, mask=inside[:, None], other=float("-inf"))


@triton.jit
def _separable_fwd(
    q, k, v, out, context, k_strides, v_strides, out_strides, k_grid, v_grid, channels,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr, COLS: tl.constexpr,
    BLOCK_C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """context [B, PATCH_H, PATCH_W, C] is c. Grids as in machine/patches.py, disguised."""
    k_grid, v_grid = all_plain(k_grid), all_plain(v_grid)
    image, row, column, block = _classes(channels, PATCH_H, PATCH_W, COLS, BLOCK_C)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    pivot, inverse = _softmax(
        q, k_strides, k_grid, image, row, column, PATCH_H, PATCH_W, ACROSS, BLOCK, COLS, ALIGN
    )  # fmt: skip
    sums = tl.zeros([BLOCK * COLS, BLOCK_C], tl.float32)
    for turn in tl.range(0, turns(k_grid, PATCH_W, ACROSS, BLOCK, ALIGN)):
        y, x, inside = pixels(turn, k_grid, row, column, PATCH_H, PATCH_W, ACROSS, BLOCK, COLS, ALIGN)
        weights = tl.exp2((_scores(q, k_strides, image, y, x, inside, ALIGN) - pivot) * LOG2E) * inverse
        mask = inside[:, None] & (c < channels)[None, :]
        sums += weights * tl.load(k + channels_at(k_strides, image, y, x, c, ALIGN), mask=mask, other=0.0)
    sums = over_patches(sums, False, BLOCK, COLS, BLOCK_C)
    at, there = _context_at(channels, image, row, column, c, PATCH_H, PATCH_W, BLOCK * COLS, COLS)
    first = there & (tl.arange(0, BLOCK * COLS) < COLS)
    tl.store(context + at, sums, mask=first[:, None] & (c < channels)[None, :])
    for turn in tl.range(0, turns(v_grid, PATCH_W, ACROSS, BLOCK, ALIGN)):
        y, x, inside = pixels(turn, v_grid, row, column, PATCH_H, PATCH_W, ACROSS, BLOCK, COLS, ALIGN)
        mask = inside[:, None] & (c < channels)[None, :]
        value = tl.load(v + channels_at(v_strides, image, y, x, c, ALIGN), mask=mask, other=0.0)
        result = tl.where(value < 0.0, 0.0, value) * sums  # NaN stays
        tl.store(out + channels_at(out_strides, image, y, x, c, ALIGN), result.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _separable_bwd(
    q, k, v, grad, context, dq, dk, dv,
    k_strides, v_strides, grad_strides, dq_strides, dk_strides, dv_strides, k_grid, v_grid, channels,
    PATCH_H: tl.constexpr, PATCH_W: tl.constexpr, ACROSS: tl.constexpr, BLOCK: tl.constexpr, COLS: tl.constexpr,
    BLOCK_C: tl.constexpr, ALIGN: tl.constexpr,
):  # fmt: skip
    """dq has as many channels as there are programs that share the channels: each fills its own."""
    k_grid, v_grid = all_plain(k_grid), all_plain(v_grid)
    image, row, column, block = _classes(channels, PATCH_H, PATCH_W, COLS, BLOCK_C)
    c = block * BLOCK_C + tl.arange(0, BLOCK_C)
    at, there = _context_at(channels, image, row, column, c, PATCH_H, PATCH_W, BLOCK * COLS, COLS)
    held = tl.load(context + at, mask=there[:, None] & (c < channels)[None, :], other=0.0)
    sums = tl.zeros([BLOCK * COLS, BLOCK_C], tl.float32)
    for turn in tl.range(0, turns(v_grid, PATCH_W, ACROSS, BLOCK, ALIGN)):
        y, x, inside = pixels(turn, v_grid, row, column, PATCH_H, PATCH_W, ACROSS, BLOCK, COLS, ALIGN)
        mask = inside[:, None] & (c < channels)[None, :]
        value = tl.load(v + channels_at(v_strides, image, y, x, c, ALIGN), mask=mask, other=0.0)
        slope = tl.load(grad + channels_at(grad_strides, image, y, x, c, ALIGN), mask=mask, other=0.0).to(tl.float32)
        sums += slope * tl.where(value < 0.0, 0.0, value)
        dvalue = tl.where(value <= 0.0, 0.0, slope * held)
        tl.store(dv + channels_at(dv_strides, image, y, x, c, ALIGN), dvalue.to(dv.dtype.element_ty), mask=mask)
    sums = over_patches(sums, False, BLOCK, COLS, BLOCK_C)  # dc
    pivot, inverse = _softmax(
        q, k_strides, k_grid, image, row, column, PATCH_H, PATCH_W, ACROSS, BLOCK, COLS, ALIGN
    )  # fmt: skip
    for turn in tl.range(0, turns(k_grid, PATCH_W, ACROSS, BLOCK, ALIGN)):
        y, x, inside = pixels(turn, k_grid, row, column, PATCH_H, PATCH_W, ACROSS, BLOCK, COLS, ALIGN)
        weights = tl.exp2((_scores(q, k_strides, image, y, x, inside, ALIGN) - pivot) * LOG2E) * inverse
        mask = inside[:, None] & (c < channels)[None, :]
        key = tl.load(k + channels_at(k_strides, image, y, x, c, ALIGN), mask=mask, other=0.0)
        dkey = (weights * sums).to(dk.dtype.element_ty)
        tl.store(dk + channels_at(dk_strides, image, y, x, c, ALIGN), dkey, mask=mask)
        dscore = weights * tl.sum(sums * (key - held), 1)[:, None]  # zero in channels past the last, whose sums are 0
        dq_at = channels_at(dq_strides, image, y, x, block + tl.arange(0, 1), ALIGN)
        tl.store(dq + dq_at, dscore.to(dq.dtype.element_ty), mask=inside[:, None])


@choice
def separable_config(channels_last, arch):
    """Rows of a tile are pixels, columns channels: longer along what is contiguous. 16 elements a thread."""
    if arch == INTERPRETER:
        return Config(16, 16, 4, 1)
    return Config(32, 64, 4, 1) if channels_last else Config(128, 16, 4, 1)


def _is_last(x):
    """Whether the channels of an image lie side by side."""
    return x.shape[1] > 1 and x.stride(1) == 1


def _image_like(x, channels):
    """(B, channels, H, W) in the memory format of x."""
    layout = torch.channels_last if _is_last(x) else torch.contiguous_format
    shape = (x.shape[0], channels, x.shape[2], x.shape[3])
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _channels_of(qkv, value):
    return (qkv.shape[1] - 1) // (2 if value is None else 1)


def _parts(qkv, value):
    """Views q (B, 1, H, W), k and v (B, C, H, W) of one tensor, or of two."""
    channels = _channels_of(qkv, value)
    return qkv[:, :1], qkv[:, 1 : 1 + channels], qkv[:, 1 + channels :] if value is None else value


def _blocks(v):
    """Block sizes for values, and blocks of channels."""
    config = separable_config(_is_last(v), arch_of(v))
    return config, triton.cdiv(v.shape[1], config.block_n)


def _tiles(k, v, patch_h, patch_w, *others):
    """Number of programs, (strides, grids) of these images, and the constants of both kernels."""
    config, blocks = _blocks(v)
    cols, widest = min(8, triton.next_power_of_2(patch_w)), max(k.shape[3], v.shape[3]) // patch_w
    images = (k, v, *others)
    align = alignment(v.element_size(), *(n for x in images for n in (*x.stride()[:3], x.shape[3])))
    strides = [(*(stride // align for stride in x.stride()[:3]), x.stride(3)) for x in images]
    grids = [(disguised(x.shape[2] // patch_h), disguised(x.shape[3] // align)) for x in (k, v)]
    constants = dict(
        PATCH_H=patch_h,
        PATCH_W=patch_w,
        ACROSS=min(config.block_m // cols, triton.next_power_of_2(max(widest, 1))),
        BLOCK=config.block_m // cols,
        COLS=cols,
        BLOCK_C=config.block_n,
        ALIGN=align,
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    return v.shape[0] * patch_h * triton.cdiv(patch_w, cols) * blocks, (*strides, *grids), constants


def separable_attention_outputs(qkv, value, patch_h, patch_w):
    """out (B, C, H, W) in the memory format of the values, and c (B, patch_h, patch_w, C)."""
    channels = _channels_of(qkv, value)
    context = qkv.new_empty((qkv.shape[0], patch_h, patch_w, channels), dtype=torch.float32)
    return _image_like(qkv if value is None else value, channels), context


def separable_attention_forward(qkv: Tensor, value: Tensor | None, patch_h: int, patch_w: int) -> tuple[Tensor, Tensor]:
    """qkv (B, 1 + 2 C, H, W); with a value (B, C, H, W), (B, 1 + C, H', W') -> out, c; any strides."""
    out, context = separable_attention_outputs(qkv, value, patch_h, patch_w)
    run_forward(*_parts(qkv, value), out, context)
    return out, context


def run_forward(q, k, v, out, context):
    """Fills out, an image of any strides, and context; q has the strides of k."""
    programs, sizes, constants = _tiles(k, v, context.shape[1], context.shape[2], out)
    launch(_separable_fwd, (programs,), q, k, v, out, context, *sizes, v.shape[1], **constants)


def separable_attention_gradients(grad, out, context, qkv, value, patch_h, patch_w, needs):
    """(dqkv, dvalue), in their memory formats; dvalue is empty where there is no value."""
    return _image_like(qkv, qkv.shape[1]), qkv.new_empty(0) if value is None else _image_like(value, value.shape[1])


def separable_attention_backward(
    grad: Tensor,
    out: Tensor,
    context: Tensor,
    qkv: Tensor,
    value: Tensor | None,
    patch_h: int,
    patch_w: int,
    needs: list[bool],
) -> tuple[Tensor, Tensor]:
    """Gradients of `separable_attention_forward`; deterministic."""
    dqkv, dvalue = separable_attention_gradients(grad, out, context, qkv, value, patch_h, patch_w, needs)
    run_backward(*_parts(qkv, value), grad, context, *_parts(dqkv, None if value is None else dvalue))
    return dqkv, dvalue


def run_backward(q, k, v, grad, context, dq, dk, dv):
    """Fills dq, dk, dv, images of any strides; q has the strides of k."""
    shares, blocks = dq, _blocks(v)[1]
    if blocks > 1:
        shares = torch.empty((q.shape[0], blocks, *q.shape[2:]), dtype=torch.float32, device=q.device)
    programs, sizes, constants = _tiles(k, v, context.shape[1], context.shape[2], grad, shares, dk, dv)
    launch(
        _separable_bwd, (programs,), q, k, v, grad, context, shares, dk, dv, *sizes, v.shape[1], **constants
    )  # fmt: skip
    if blocks > 1:
        dq.copy_(shares.sum(1, keepdim=True))
