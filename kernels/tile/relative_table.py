"""Relative-position biases of a window: from the table to a tile that a loop can read, and back.

The table holds one bias per head for each offset (dh, dw) = query - key: entry (dh + window_h - 1) * (2 window_w - 1)
+ dw + window_w - 1 (Swin, arXiv 2103.14030, equation 4). Looking it up per score costs more than the attention itself,
so it is expanded once per call.

Legend: N = window_h * window_w tokens, H heads, T = (2 window_h - 1)(2 window_w - 1) entries.
"""

import torch
import triton
import triton.language as tl

from ..machine.launch import launch
from ..machine.tiles import LOG2E


@triton.jit
def _expand_table(
    table, tile, entry_stride, head_stride, row_blocks,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    block = tl.program_id(0)
    qi = block % row_blocks * BLOCK_M + tl.arange(0, BLOCK_M)
    ki = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    head = block // row_blocks
    N: tl.constexpr = WINDOW_H * WINDOW_W
    dy = (qi // WINDOW_W)[:, None] - (ki // WINDOW_W)[None, :] + WINDOW_H - 1
    dx = (qi % WINDOW_W)[:, None] - (ki % WINDOW_W)[None, :] + WINDOW_W - 1
    valid = (qi < N)[:, None] & (ki < N)[None, :]
    entry = dy * (2 * WINDOW_W - 1) + dx  # [BLOCK_M, BLOCK_N]
    where = table + entry.to(tl.int64) * entry_stride + head.to(tl.int64) * head_stride
    bias = tl.load(where, mask=valid, other=0.0).to(tl.float32) * LOG2E
    bias = tl.where((ki < N)[None, :], bias, float("-inf"))
    place = tile + (block * BLOCK_M + tl.arange(0, BLOCK_M)).to(tl.int64)[:, None] * COLUMNS + ki[None, :]
    tl.store(place, bias, mask=(ki < COLUMNS)[None, :])


@triton.jit
def _reduce_table(
    tile, dtable, heads, rows,
    WINDOW_H: tl.constexpr, WINDOW_W: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    head = tl.program_id(0) % heads
    entry = tl.program_id(0) // heads * BLOCK_T + tl.arange(0, BLOCK_T)
    N: tl.constexpr = WINDOW_H * WINDOW_W
    ENTRIES: tl.constexpr = (2 * WINDOW_H - 1) * (2 * WINDOW_W - 1)
    dy = entry // (2 * WINDOW_W - 1) - (WINDOW_H - 1)
    dx = entry % (2 * WINDOW_W - 1) - (WINDOW_W - 1)
    total = tl.zeros([BLOCK_T], tl.float32)
    for start in tl.range(0, N, BLOCK_M):
        qi = start + tl.arange(0, BLOCK_M)
        y = (qi // WINDOW_W)[None, :] - dy[:, None]  # the one key at this offset from each query: [BLOCK_T, BLOCK_M]
        x = (qi % WINDOW_W)[None, :] - dx[:, None]
        valid = (y >= 0) & (y < WINDOW_H) & (x >= 0) & (x < WINDOW_W) & (qi < N)[None, :] & (entry < ENTRIES)[:, None]
        where = (head * rows + qi)[None, :].to(tl.int64) * COLUMNS + y * WINDOW_W + x
        total += tl.sum(tl.load(tile + where, mask=valid, other=0.0), 1)
    tl.store(dtable + entry * heads + head, total, mask=entry < ENTRIES)


def expand_table(table, window, rows, columns):
    """(T, H) of any float dtype and strides -> (H, rows, columns) float32: biases times log2(e), -inf past the last
    key, 0 past the last query.

    ``rows`` is a multiple of 16; ``columns`` at least N.
    """
    heads = table.shape[1]
    tile = table.new_empty((heads, rows, columns), dtype=torch.float32)
    launch(
        _expand_table, (heads * (rows // 16), -(-columns // 64)), table, tile, table.stride(0), table.stride(1), rows
        // 16, WINDOW_H=window[0], WINDOW_W=window[1], COLUMNS=columns, BLOCK_M=16, BLOCK_N=64, num_warps=4,
        num_stages=1,
    )  # fmt: skip
    return tile


def reduce_table(tile, window):
    """Gradient of a table (T, H) float32 from that of its expansion (H, rows, columns) float32; in a fixed order."""
    heads, rows, columns = tile.shape
    entries = (2 * window[0] - 1) * (2 * window[1] - 1)
    dtable = tile.new_empty((entries, heads))
    launch(
        _reduce_table, (heads * -(-entries // 16),), tile, dtable, heads, rows,
        WINDOW_H=window[0], WINDOW_W=window[1], COLUMNS=columns, BLOCK_T=16, BLOCK_M=64, num_warps=4, num_stages=1,
    )  # fmt: skip
    return dtable
