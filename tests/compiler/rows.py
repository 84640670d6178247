"""A small kernel, launched as a model would: what the tests of golden figures compile."""

import torch
import triton
import triton.language as tl

from vitkern.kernels.machine.launch import launch

NAME, ARCH = "rows", 80


@triton.jit
def _scale(x, out, columns, TIMES: tl.constexpr, BLOCK: tl.constexpr):
    row, i = tl.program_id(0), tl.arange(0, BLOCK)
    for start in range(0, columns, BLOCK):
        value = tl.load(x + row * columns + start + i).to(tl.float32)
        for _ in tl.static_range(TIMES):
            value = tl.exp2(value) * 0.5
        tl.store(out + row * columns + start + i, value)


def scale_rows(columns=4096, times=2, block=1024, num_warps=4):
    x = torch.empty(4, columns, dtype=torch.bfloat16)
    options = dict(num_warps=num_warps, num_stages=1)
    launch(_scale, (4,), x, torch.empty_like(x), columns, TIMES=times, BLOCK=block, **options)
