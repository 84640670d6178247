"""Block sizes, warps and stages: plain functions of shape, dtype and architecture. Every entry is compiled in the
tests.

``arch``: see architecture.py; block sizes follow its `family`. The interpreter gets small tiles, so that small tests
cross block boundaries.
"""

from contextlib import contextmanager
from typing import NamedTuple

import torch

from .architecture import AMPERE, BLACKWELL, CDNA, HOPPER, INTERPRETER, SMALL_SHARED, family

# (head tile, whether there is a bias) -> fewest queries and keys from which stream_hopper.py was measured to be faster
# than stream.py on sm_90. UNMEASURED: no GPU has timed it, so nothing is here and the pointer kernel runs.
DESCRIPTORS_FROM = {}
_asked_descriptors = None
_one_tile = False


class Config(NamedTuple):
    """Tile of a kernel: rows, columns of the inner loop, warps per program, software-pipelining stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def head_tile(head_dim):
    """Power of two that holds a head; tl.dot needs at least 16."""
    return max(16, 1 << (head_dim - 1).bit_length())


def head_parts(head_dim, arch, hooked):
    """Widths of the one or two tiles that hold a head: 80 dims are (64, 16), 64 are (64, 0). See heads.py; ``hooked``:
    see `stream.hooked`.

    Beyond 128 dims, where rows are no whole pieces of 16 bytes, and with a hook on consumer Blackwell, two tiles spill
    where one does not.
    """
    whole = head_tile(head_dim)
    half = whole // 2
    spills = head_dim % 8 or (hooked and arch >= 120 and family(arch) == AMPERE)
    if whole in (64, 128) and not spills and not _one_tile and head_tile(head_dim - half) < half:
        return half, head_tile(head_dim - half)
    return whole, 0


def _split(head_dim, arch):
    """Whether two tiles hold a head where no hook is."""
    return head_parts(head_dim, arch, False)[1] > 0


def _masked(head_dim, arch):
    """Whether one tile does, and has columns to spare."""
    return head_parts(head_dim, arch, False)[0] > head_dim


@contextmanager
def one_tile():
    """Within the block one tile holds a head, whatever its dims: what `head_parts` is measured against."""
    global _one_tile
    before, _one_tile = _one_tile, True
    try:
        yield
    finally:
        _one_tile = before


def alignment(itemsize, *strides):
    """Largest power of two of elements, up to 16 bytes, that divides every stride.

    Strides travel to a kernel divided by it and are multiplied back by a constexpr: the only way in which the compiler
    learns that a row stride of, say, 216 elements still allows 16-byte loads.
    """
    width = 16 // itemsize
    while width > 1 and any(stride % width for stride in strides):
        width //= 2
    return width


def short_tile(queries, keys):
    """Rows and columns of the padded score tile of `short_attention`: columns a power of two, rows a multiple of every
    row block."""
    rows = head_tile(queries) if queries <= 64 else -(-queries // 64) * 64
    return rows, head_tile(keys)


def short_forward_config(rows, columns, itemsize, arch):
    """One-pass softmax: a block of rows against all columns at once."""
    kind = family(arch)
    few_rows = (kind == AMPERE and columns > 128) or (itemsize == 4 and kind in (AMPERE, HOPPER, BLACKWELL))
    warps, stages = (2, 1) if kind == CDNA and columns <= 64 else (4, 2 if columns <= 64 and not few_rows else 1)
    return Config(min(rows, 32 if few_rows else 64), columns, 1 if max(rows, columns) <= 16 else warps, stages)


def short_backward_config(rows, columns, head_dim, itemsize, arch):
    """All columns in registers, rows in blocks: beyond 64 columns the dK and dV accumulators take the place of rows."""
    if columns > 64:
        return Config(min(rows, 32), columns, 8, 1)
    if itemsize == 4:
        return Config(min(rows, 32 if arch == INTERPRETER else 16), columns, 1 if max(rows, columns) <= 16 else 8, 1)
    warps = {AMPERE: 8 if head_dim > 32 else 4, CDNA: 2}.get(family(arch), 4)
    return Config(min(rows, 64), columns, 1 if max(rows, columns) <= 16 else warps, 2 if family(arch) == HOPPER else 1)


def short_takes(queries, keys, head_dim, itemsize, walks):
    """Whether the short kernels hold a group in registers, which the tests hold them to.

    ``walks``: a program adds over groups (the gradient of a bias, a padding vector or a cosine scale), or reads a bias
    or a mask. Beyond 64 tokens only whole heads of 64 fit.
    """
    longest = max(queries, keys)
    if itemsize == 4:
        return longest <= 64 and head_dim <= 32
    return head_dim <= 64 and longest <= (256 if head_dim == 64 and not walks else 64)


def short_columns(arch):
    """Most keys that the backward of the short kernels has room for: shared memory, registers on CDNA."""
    return 64 if family(arch) == CDNA else 128 if arch in SMALL_SHARED else 256


def groups_per_program(groups, programs_per_group, arch):
    """Groups that one program walks: several waves of programs, yet a bias tile or a partial sum that serves many
    groups."""
    if arch == INTERPRETER:
        return 2  # so that small tests have programs of several groups, and a last one that is short of them
    return max(1, min(32, groups * programs_per_group // 2048))


def sparse_takes(keys, head_dim, itemsize, arch):
    """Whether registers hold a row of scores and, in the backward, two gradients of all keys."""
    if itemsize == 4:
        return keys <= 64 and head_dim <= 32
    return head_dim <= 64 and keys <= min(short_columns(arch), 256 if head_dim <= 32 else 128)


def sparse_forward_config(queries, keys, head_dim, itemsize, arch):
    """Rows of queries against all keys: no more rows than registers hold scores of."""
    columns = head_tile(keys)
    if itemsize == 4:
        rows, warps = (32 if columns <= 64 else 16), 8
    else:
        rows, warps = (64 if columns <= 128 else 16), (4 if columns <= 128 else 8)
    rows = min(head_tile(queries), rows)
    return Config(rows, columns, 1 if max(rows, columns) <= 16 else warps, 1)


def sparse_backward_config(queries, keys, head_dim, itemsize, arch):
    """As the forward, with two gradients of all keys beside the rows."""
    columns = head_tile(keys)
    if itemsize == 4:
        rows, warps = 16, 4 if family(arch) == CDNA or columns <= 16 else 8
    elif columns <= 64:
        rows, warps = 64, 4
    else:
        rows, warps = 32 if columns <= 128 and arch not in SMALL_SHARED else 16, 8
    rows = min(head_tile(queries), rows)
    return Config(rows, columns, 1 if max(rows, columns) <= 16 and itemsize == 2 else warps, 1)


def layernorm_programs(arch):
    """Partial sums of the LayerNorm backward; the same on every GPU, so that the last bits are."""
    return 2 if arch == INTERPRETER else 512


def layernorm_config(channels, arch):
    """Whole rows: about 32 elements a thread. Returns (power of two that holds a row, Config)."""
    block_c = max(16, 1 << (channels - 1).bit_length())
    return block_c, Config(max(1, min(32, 4096 // block_c)), block_c, 4 if block_c <= 4096 else 8, 1)


def layernorm_backward_config(channels, arch):
    """Half the rows of the forward: two float32 sums of the size of the tile stay in registers."""
    block_c = max(16, 1 << (channels - 1).bit_length())
    warps = 4 if block_c <= 2048 else 8 if block_c <= 4096 else 16
    return block_c, Config(max(1, min(32, 2048 // block_c)), block_c, warps, 1)


def dot_precision(dtype):
    """How tl.dot multiplies float32: as PyTorch's own matrix products are set to (IEEE unless TF32 is allowed)."""
    return "tf32" if dtype == torch.float32 and torch.backends.cuda.matmul.allow_tf32 else "ieee"


def stream_forward_config(head_dim, itemsize, arch, queries, hooked, causal, dropout):
    """A query block that stays, key blocks that stream past. ``hooked``: see `stream.hooked`."""
    if arch == INTERPRETER:
        return Config(16, 16, 1, 1)
    block_d, kind = head_tile(head_dim), family(arch)
    if itemsize == 4:
        return Config(32, 32, 8, 1) if block_d <= 64 else Config(32, 16, 8, 1)
    if block_d <= 64:
        if hooked or queries <= 64 or _masked(head_dim, arch):
            if kind == CDNA:
                return Config(128, 32, 4, 2)
            narrow = (hooked and kind == AMPERE) or (dropout and kind == BLACKWELL)
            return Config(64, 32 if narrow else 64, 4, 3)
        warps = 8 if kind == BLACKWELL or (kind == AMPERE and arch >= 120) else 4
        return Config(128, 32 if causal and kind == AMPERE else 64, warps, 3)
    if block_d <= 128:
        if hooked or queries <= 64:
            if kind == AMPERE or dropout:
                return Config(64, 32, 4, 2)
            return Config(64, 64, 4, 3 if kind == BLACKWELL and _split(head_dim, arch) else 2)
        if _split(head_dim, arch) and kind == AMPERE and arch < 120:
            return Config(128, 32, 4, 2)
        if _split(head_dim, arch) and kind in (HOPPER, BLACKWELL) and not causal:
            return Config(128, 128, 8, 2)
        return Config(128, 32 if _masked(head_dim, arch) and kind == AMPERE else 64, 8, 2)
    return Config(64, 64 if kind == BLACKWELL else 32, 8, 2)


@contextmanager
def descriptors(asked):
    """Within the block stream_hopper.py runs wherever it can (True) or nowhere (False), whatever was measured."""
    global _asked_descriptors
    before, _asked_descriptors = _asked_descriptors, asked
    try:
        yield
    finally:
        _asked_descriptors = before


def takes_descriptors(head_dim, itemsize, arch, queries, keys, biased):
    """Whether the streaming forward runs with descriptors and specialised warps: where `DESCRIPTORS_FROM` says that it
    pays, which is nowhere as long as that is unmeasured, or where `descriptors` asks for it."""
    if itemsize != 2 or head_dim % 8 or not 32 < head_dim <= 128 or arch not in (90, INTERPRETER):
        return False
    if _asked_descriptors is not None:
        return _asked_descriptors
    return min(queries, keys) >= DESCRIPTORS_FROM.get((head_tile(head_dim), biased), float("inf"))


def stream_hopper_config(head_dim, arch, biased):
    """Four warps, to which the compiler adds two groups of four: with other numbers it specialises none. Half the keys
    where tiles of a bias, float32 at worst, need shared memory too."""
    return Config(16, 16, 1, 1) if arch == INTERPRETER else Config(128, 64 if biased else 128, 4, 2)


def stream_dq_config(head_dim, itemsize, arch, queries, hooked):
    """As the forward, with a gradient tile more."""
    if arch == INTERPRETER:
        return Config(16, 16, 1, 1)
    block_d, kind = head_tile(head_dim), family(arch)
    if itemsize == 4:
        return Config(32, 32, 8, 1) if block_d <= 64 else Config(16, 16, 8, 1)
    if block_d <= 64:
        if kind == CDNA:
            return Config(128, 32, 4, 2)
        return Config(128, 32, 8, 2) if hooked and kind == AMPERE else Config(64, 64, 4, 2)
    if block_d <= 128:
        if _split(head_dim, arch) and (kind == BLACKWELL or (kind == HOPPER and not hooked)):
            return Config(64, 64, 4, 2)
        if _split(head_dim, arch) and kind == AMPERE and arch < 120 and not hooked:
            return Config(128, 32, 4, 2)
        return Config(64, 32, 4, 2)
    return Config(64, 32, 4, 1) if kind == CDNA else Config(32, 32, 8, 1)


def stream_dkdv_config(head_dim, itemsize, arch, keys, hooked):
    """Key block (block_n) that stays with two accumulators; query blocks (block_m) stream past."""
    if arch == INTERPRETER:
        return Config(16, 16, 1, 1)
    block_d, kind = head_tile(head_dim), family(arch)
    if itemsize == 4:
        return Config(32, 32, 8, 1) if block_d <= 64 else Config(16, 16, 8, 1)
    if block_d <= 64:
        if kind == CDNA:
            return Config(32, 64 if hooked else 128, 4, 2)
        if kind == AMPERE:
            return Config(32, 64, 4, 1 if arch >= 120 and (hooked or _masked(head_dim, arch)) else 2)
        return Config(64 if kind == BLACKWELL or not (hooked or _masked(head_dim, arch)) else 32, 64, 4, 2)
    if block_d <= 128:
        if kind in (AMPERE, HOPPER) and (hooked or (kind == AMPERE and arch >= 120 and _masked(head_dim, arch))):
            return Config(32, 64, 8, 2)
        return Config(32, 64, 4, 1 if kind == AMPERE and _masked(head_dim, arch) else 2)
    return Config(32, 32, 4 if kind == CDNA else 8, 1)


def stream_bias_config(head_dim, itemsize, arch, windows):
    """A tile of the bias that stays while the batch streams past; the places of tokens in ``windows`` take registers
    too."""
    if arch == INTERPRETER:
        return Config(16, 16, 1, 1)
    block_d = head_tile(head_dim)
    if itemsize == 4:
        return Config(32, 32, 8, 1) if block_d <= 64 else Config(16, 16, 8, 1)
    if block_d <= 64:
        if family(arch) == AMPERE:
            return Config(64, 32, 8 if windows else 4, 1 if windows else 2)
        if family(arch) == CDNA:
            return Config(64, 64, 4, 1)
        return Config(64, 64, 8 if windows else 4, 1 if windows else 2)
    if block_d <= 128:
        return Config(32 if family(arch) == AMPERE and arch >= 120 else 64, 32, 4, 1)
    return Config(32 if family(arch) == AMPERE else 64, 32, 8, 1)


def ragged_config(head_dim, itemsize, arch, backward):
    """Any kernel of the loop where each score has coordinates of its own to compute: half the scores at a time, and in
    the backward, which holds probabilities and slopes of them, a quarter."""
    if arch == INTERPRETER:
        return Config(16, 16, 1, 1)
    block_d, kind = head_tile(head_dim), family(arch)
    if itemsize == 4:
        return Config(32, 32, 8, 1) if block_d <= 64 else Config(16, 16, 8 if backward else 4, 1)
    rows, columns = 32 if backward or block_d > 64 else 64, 16 if backward and kind != CDNA else 32
    lanes, most = (64, 4) if kind == CDNA else (32, 8 if block_d >= 64 and not backward else 4)
    warps = max(1, min(most, rows * columns * block_d // (256 * lanes)))  # four 16 x 8 x 16 products for each warp
    return Config(rows, columns, warps, 2 if block_d <= 64 else 1)


def local_tile(block, halo, ranks, wraps, keys, arch):
    """Ranks of a tile of local attention along one axis: a block, or up to 8 neighbours. What wraps falls into whole
    tiles. ``keys``: a tile of keys; half a block of them is seen from fewer blocks."""
    if block == 1:
        most = max(1, min(4 if arch == INTERPRETER else 8, ranks))
        return next(tile for tile in range(most, 0, -1) if not wraps or ranks % tile == 0)
    return block // 2 if keys and not wraps and 0 < halo <= block // 2 and block % 2 == 0 else block


def bias_splits(tiles, members, arch):
    """Shares of the ``members`` that sum into one bias tile: enough programs for a device, few partial tiles."""
    if arch == INTERPRETER:
        return min(2, max(members, 1))
    return max(1, min(members, 1024 // max(tiles, 1), 32))


WHOLE_ROW = 256  # channels up to which an MLP kernel holds whole rows


def mlp_plan(channels, hidden, dtype, arch, keep):
    """How kernels/layernorm_mlp.py runs: "one", "two" or "split" (cuBLAS).

    Products above 512 channels are bound by tensor cores, where cuBLAS leads; full-precision float32 has no tensor
    cores to use; rows that do not start at multiples of 16 bytes have no wide loads.
    """
    if arch != INTERPRETER and ((dtype == torch.float32 and dot_precision(dtype) == "ieee") or (channels | hidden) % 8):
        return "split"
    if channels <= WHOLE_ROW and not keep:
        return "one"
    return "two" if channels <= 512 else "split"


def whole_row(channels):
    """Constants of a kernel that holds whole rows."""
    block_c = head_tile(channels)
    return dict(BLOCK_C=block_c, EVEN_C=block_c == channels)


def blocks(config, hidden):
    return dict(BLOCK_M=config.block_m, BLOCK_N=config.block_n, EVEN_N=hidden % config.block_n == 0)


def norm_linear_config(channels, itemsize, arch):
    """Whole rows against blocks of the first layer's columns."""
    if arch == INTERPRETER:
        return Config(32, 64, 4, 1)
    if itemsize == 4:
        return Config(32, 32, 4, 2)
    return Config(128 if channels <= 128 else 64, 64, 8 if channels <= 128 else 4, 2)


def mlp_config(channels, itemsize, arch):
    """The plan "one": the output accumulator of whole rows stays in registers, so few rows."""
    if arch == INTERPRETER:
        return Config(32, 64, 4, 1)
    if itemsize == 4:
        return Config(32, 32, 4, 2)
    if channels <= 128:
        return Config(64, 64, 8 if family(arch) == AMPERE else 4, 2)
    return Config(64, 32, 8, 2)


def matmul_config(itemsize, arch, heavy=False):
    """A product with an epilogue. Returns (Config, inner block).

    ``heavy``: an epilogue that holds several tiles at once; the block of rows does not depend on it.
    """
    if arch == INTERPRETER:
        return Config(32, 64, 4, 1), 64
    if itemsize == 4:
        return Config(64, 64, 4, 3), 32
    return Config(128, 64 if heavy else 128, 8, 3), 64


def pointwise_config(arch):
    """An epilogue alone."""
    return Config(32, 64, 4, 1) if arch == INTERPRETER else Config(32, 128, 4, 1)
