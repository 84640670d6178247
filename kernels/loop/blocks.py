"""Block sizes of the loop. A row of a table holds five configurations (block_m, block_n, num_warps, num_stages), or one
`Config` for all: see `first_row`, which says how rows are read.

Conditions: ``single``: elements of 4 bytes. ``hooked``: see `constants.hooked`; ``dropout`` is one of the hooks.
``few``: one block holds all queries. ``split``, ``masked``: two tiles hold a head, or one with columns to spare, see
`heads.head_parts`. The interpreter gets small tiles, so that small tests cross block boundaries.
"""

from ..machine.architecture import INTERPRETER, family
from ..machine.blocks import Config, first_row
from ..machine.choices import choice
from .heads import head_parts

INTERPRETED = Config(16, 16, 1, 1)
MULTIPROCESSORS = (108, 170, 132, 148, 304)  # by `family`: A100, RTX 5090, H200, B200, MI300X


def _held(head_dim, arch):
    """How tiles hold a head where no hook is."""
    whole, tail = head_parts(head_dim, arch, False)
    return dict(split=tail > 0, masked=whole > head_dim)


# fmt: off
# Ampere, consumer Blackwell, Hopper, Blackwell, CDNA
FORWARD = {
    64: {
        "single":         Config(32, 32, 8, 1),
        "hooked dropout": ((64, 32, 4, 3),  (64, 32, 4, 3),  (64, 64, 4, 3),  (64, 32, 4, 3),  (128, 32, 4, 2)),
        "hooked":         ((64, 32, 4, 3),  (64, 32, 4, 3),  (64, 64, 4, 3),  (64, 64, 4, 3),  (128, 32, 4, 2)),
        "few":            ((64, 64, 4, 3),  (64, 64, 4, 3),  (64, 64, 4, 3),  (64, 64, 4, 3),  (128, 32, 4, 2)),
        "masked":         ((64, 64, 4, 3),  (64, 64, 4, 3),  (64, 64, 4, 3),  (64, 64, 4, 3),  (128, 32, 4, 2)),
        "causal":         ((128, 32, 4, 3), (128, 32, 8, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 64, 4, 3)),
        "":               ((128, 64, 4, 3), (128, 64, 8, 3), (128, 64, 4, 3), (128, 64, 8, 3), (128, 64, 4, 3)),
    },
    128: {
        "single":         Config(32, 16, 8, 1),
        "hooked dropout": Config(64, 32, 4, 2),
        "hooked split":   ((64, 32, 4, 2),  (64, 32, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 3),  (64, 64, 4, 2)),
        "hooked":         ((64, 32, 4, 2),  (64, 32, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 2)),
        "few split":      ((64, 32, 4, 2),  (64, 32, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 3),  (64, 64, 4, 2)),
        "few":            ((64, 32, 4, 2),  (64, 32, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 2)),
        "split causal":   ((128, 32, 4, 2), (128, 64, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2)),
        "split":          ((128, 32, 4, 2), (128, 64, 8, 2), (128, 128, 8, 2), (128, 128, 8, 2), (128, 64, 8, 2)),
        "masked":         ((128, 32, 8, 2), (128, 32, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2), (128, 64, 8, 2)),
        "":               Config(128, 64, 8, 2),
    },
    256: {
        "single":         Config(32, 16, 8, 1),
        "":               ((64, 32, 8, 2),  (64, 32, 8, 2),  (64, 32, 8, 2),  (64, 64, 8, 2),  (64, 32, 8, 2)),
    },
}
DQ = {
    64: {
        "single":         Config(32, 32, 8, 1),
        "hooked":         ((128, 32, 8, 2), (128, 32, 8, 2), (64, 64, 4, 2),  (64, 64, 4, 2),  (128, 32, 4, 2)),
        "":               ((64, 64, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 2),  (128, 32, 4, 2)),
    },
    128: {
        "single":         Config(16, 16, 8, 1),
        "split hooked":   ((64, 32, 4, 2),  (64, 32, 4, 2),  (64, 32, 4, 2),  (64, 64, 4, 2),  (64, 32, 4, 2)),
        "split":          ((128, 32, 4, 2), (64, 32, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 2),  (64, 32, 4, 2)),
        "":               Config(64, 32, 4, 2),
    },
    256: {
        "single":         Config(16, 16, 8, 1),
        "":               ((32, 32, 8, 1),  (32, 32, 8, 1),  (32, 32, 8, 1),  (32, 32, 8, 1),  (64, 32, 4, 1)),
    },
}
DKDV = {
    64: {
        "single":         Config(32, 32, 8, 1),
        "hooked":         ((32, 64, 4, 2),  (32, 64, 4, 1),  (32, 64, 4, 2),  (64, 64, 4, 2),  (32, 64, 4, 2)),
        "masked":         ((32, 64, 4, 2),  (32, 64, 4, 1),  (32, 64, 4, 2),  (64, 64, 4, 2),  (32, 128, 4, 2)),
        "":               ((32, 64, 4, 2),  (32, 64, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 2),  (32, 128, 4, 2)),
    },
    128: {
        "single":         Config(16, 16, 8, 1),
        "hooked":         ((32, 64, 8, 2),  (32, 64, 8, 2),  (32, 64, 8, 2),  (32, 64, 4, 2),  (32, 64, 4, 2)),
        "masked":         ((32, 64, 4, 1),  (32, 64, 8, 2),  (32, 64, 4, 2),  (32, 64, 4, 2),  (32, 64, 4, 2)),
        "":               Config(32, 64, 4, 2),
    },
    256: {
        "single":         Config(16, 16, 8, 1),
        "":               ((32, 32, 8, 1),  (32, 32, 8, 1),  (32, 32, 8, 1),  (32, 32, 8, 1),  (32, 32, 4, 1)),
    },
}
BIAS = {
    64: {
        "single":         Config(32, 32, 8, 1),
        "windows":        ((64, 32, 8, 1),  (64, 32, 8, 1),  (64, 64, 8, 1),  (64, 64, 8, 1),  (64, 64, 4, 1)),
        "":               ((64, 32, 4, 2),  (64, 32, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 1)),
    },
    128: {
        "single":         Config(16, 16, 8, 1),
        "":               ((64, 32, 4, 1),  (32, 32, 4, 1),  (64, 32, 4, 1),  (64, 32, 4, 1),  (64, 32, 4, 1)),
    },
    256: {
        "single":         Config(16, 16, 8, 1),
        "":               ((32, 32, 8, 1),  (32, 32, 8, 1),  (64, 32, 8, 1),  (64, 32, 8, 1),  (64, 32, 8, 1)),
    },
}
RAGGED = {  # so many warps that each has four 16 x 8 x 16 products
    16: {
        "single":         Config(32, 32, 8, 1),
        "backward":       ((32, 16, 1, 2),  (32, 16, 1, 2),  (32, 16, 1, 2),  (32, 16, 1, 2),  (32, 32, 1, 2)),
        "":               ((64, 32, 4, 2),  (64, 32, 4, 2),  (64, 32, 4, 2),  (64, 32, 4, 2),  (64, 32, 2, 2)),
    },
    32: {
        "single":         Config(32, 32, 8, 1),
        "backward":       ((32, 16, 2, 2),  (32, 16, 2, 2),  (32, 16, 2, 2),  (32, 16, 2, 2),  (32, 32, 2, 2)),
        "":               Config(64, 32, 4, 2),
    },
    64: {
        "single":         Config(32, 32, 8, 1),
        "backward":       ((32, 16, 4, 2),  (32, 16, 4, 2),  (32, 16, 4, 2),  (32, 16, 4, 2),  (32, 32, 4, 2)),
        "":               ((64, 32, 8, 2),  (64, 32, 8, 2),  (64, 32, 8, 2),  (64, 32, 8, 2),  (64, 32, 4, 2)),
    },
    128: {
        "single backward": Config(16, 16, 8, 1),
        "single":         Config(16, 16, 4, 1),
        "backward":       ((32, 16, 4, 1),  (32, 16, 4, 1),  (32, 16, 4, 1),  (32, 16, 4, 1),  (32, 32, 4, 1)),
        "":               ((32, 32, 8, 1),  (32, 32, 8, 1),  (32, 32, 8, 1),  (32, 32, 8, 1),  (32, 32, 4, 1)),
    },
}
# fmt: on


@choice
def stream_forward_config(head_dim, itemsize, arch, queries, hooked, causal, dropout):
    """A query block that stays, key blocks that stream past."""
    if arch == INTERPRETER:
        return INTERPRETED
    conditions = dict(hooked=hooked, dropout=dropout, few=queries <= 64, causal=causal, **_held(head_dim, arch))
    return first_row(FORWARD, head_dim, arch, single=itemsize == 4, **conditions)


@choice
def stream_dq_config(head_dim, itemsize, arch, queries, hooked):
    """As the forward, with a gradient tile more."""
    if arch == INTERPRETER:
        return INTERPRETED
    return first_row(DQ, head_dim, arch, single=itemsize == 4, hooked=hooked, **_held(head_dim, arch))


@choice
def stream_dkdv_config(head_dim, itemsize, arch, keys, hooked):
    """Key block (block_n) that stays with two accumulators; query blocks (block_m) stream past."""
    if arch == INTERPRETER:
        return INTERPRETED
    return first_row(DKDV, head_dim, arch, single=itemsize == 4, hooked=hooked, **_held(head_dim, arch))


@choice
def stream_bias_config(head_dim, itemsize, arch, windows):
    """A tile of the bias that stays while the batch streams past; the places of tokens in ``windows`` take registers
    too."""
    if arch == INTERPRETER:
        return INTERPRETED
    return first_row(BIAS, head_dim, arch, single=itemsize == 4, windows=windows)


@choice
def stream_hopper_config(head_dim, arch, biased):
    """Four warps, to which the compiler adds two groups of four: with other numbers it specialises none. Half the keys
    where tiles of a bias, float32 at worst, need shared memory too."""
    return INTERPRETED if arch == INTERPRETER else Config(128, 64 if biased else 128, 4, 2)


@choice
def ragged_config(head_dim, itemsize, arch, backward):
    """Any kernel of the loop where each score has coordinates of its own to compute: half the scores at a time, and in
    the backward, which holds probabilities and slopes of them, a quarter."""
    if arch == INTERPRETER:
        return INTERPRETED
    return first_row(RAGGED, head_dim, arch, single=itemsize == 4, backward=backward)


@choice
def local_tile(block, halo, ranks, wraps, keys, arch):
    """Ranks of a tile of local attention along one axis: a block, or up to 8 neighbours. What wraps falls into whole
    tiles. ``keys``: a tile of keys; half a block of them is seen from fewer blocks."""
    if block == 1:
        most = max(1, min(4 if arch == INTERPRETER else 8, ranks))
        return next(tile for tile in range(most, 0, -1) if not wraps or ranks % tile == 0)
    return block // 2 if keys and not wraps and 0 < halo <= block // 2 and block % 2 == 0 else block


@choice
def bias_splits(tiles, members, arch):
    """Shares of the ``members`` that sum into one bias tile: enough programs for a device, few partial tiles."""
    if arch == INTERPRETER:
        return min(2, max(members, 1))
    return max(1, min(members, 1024 // max(tiles, 1), 32))


@choice
def stream_splits(programs, turns, arch):
    """Shares of the ``turns`` of each program: of many turns, where half of a device would wait, up to two programs a
    multiprocessor that keep eight turns each, which pay for a second launch."""
    if arch == INTERPRETER:
        return 2 if programs <= 2 and turns > 2 else 1
    multiprocessors = MULTIPROCESSORS[family(arch)]
    if turns < 24 or programs > multiprocessors // 2:
        return 1
    return min(2 * multiprocessors // programs, turns // 8)
