"""What tables of block sizes are made of; the tables stand in loop/blocks.py, tile/blocks.py and rows/blocks.py."""

from typing import NamedTuple

import torch

from .architecture import family
from .choices import choice


class Config(NamedTuple):
    """Tile of a kernel: rows, columns of the inner loop, warps per program, software-pipelining stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def first_row(tables, size, arch, **conditions):
    """The entry for ``arch`` of the table of the smallest tile that holds ``size``, or of the last: that of its first
    row whose conditions all hold.

    A row is keyed by the names of its conditions, with a space between, "" for none. It holds one `Config` for all
    architectures, or five tuples, one for each `family`.
    """
    table = tables[next((tile for tile in tables if size <= tile), max(tables))]
    row = next(row for names, row in table.items() if all(conditions[name] for name in names.split()))
    return row if isinstance(row, Config) else Config(*row[family(arch)])


def head_tile(head_dim):
    """Power of two that holds a head; tl.dot needs at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())


@choice
def alignment(itemsize, *strides):
    """Largest power of two of elements, up to 16 bytes, that divides every stride.

    Strides travel to a kernel divided by it and are multiplied back by a constexpr: the only way in which the compiler
    learns that a row stride of, say, 216 elements still allows 16-byte loads.
    """
    width = 16 // itemsize
    while width > 1 and any(stride % width for stride in strides):
        width //= 2
    return width


def dot_precision(dtype):
    """How tl.dot multiplies float32: as PyTorch's own matrix products are set to (IEEE unless TF32 is allowed)."""
    return "tf32" if dtype == torch.float32 and allows_tf32() else "ieee"


def allows_tf32():
    """``fp32_precision``, of torch 2.9, tells of the older switch too, which cannot be read where this one was set."""
    matmul = torch.backends.cuda.matmul
    precision = getattr(matmul, "fp32_precision", None)
    return matmul.allow_tf32 if precision is None else precision == "tf32"
