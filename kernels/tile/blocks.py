"""Block sizes of attention within one tile: a block of rows against all columns, which are keys padded to a power of
two. A row of a table holds five configurations (block_m, block_n, num_warps, num_stages), or one `Config` for all: see
`first_row`, which says how rows are read.

Conditions: ``single``: elements of 4 bytes. ``wide``: more than 32 dims. ``cosine``: unit rows. ``lean``: little
shared memory, see `SMALL_SHARED`. ``interpreted``: no GPU, of no `family`.
"""

from ..machine.architecture import CDNA, INTERPRETER, SMALL_SHARED, family
from ..machine.blocks import Config, first_row, head_tile
from ..machine.choices import choice

# fmt: off
# By columns; for Ampere, consumer Blackwell, Hopper, Blackwell, CDNA
FORWARD = {
    64: {
        "interpreted":        Config(64, 64, 4, 2),
        "single":             ((32, 64, 4, 1),  (32, 64, 4, 1),  (32, 64, 4, 1),  (32, 64, 4, 1),  (64, 64, 2, 1)),
        "":                   ((64, 64, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 2),  (64, 64, 4, 2),  (64, 64, 2, 1)),
    },
    128: {
        "interpreted":        Config(64, 128, 4, 1),
        "single":             ((32, 128, 4, 1), (32, 128, 4, 1), (32, 128, 4, 1), (32, 128, 4, 1), (64, 128, 4, 1)),
        "":                   Config(64, 128, 4, 1),
    },
    256: {
        "interpreted":        Config(64, 256, 4, 1),
        "single":             ((32, 256, 4, 1), (32, 256, 4, 1), (32, 256, 4, 1), (32, 256, 4, 1), (64, 256, 4, 1)),
        "":                   ((32, 256, 4, 1), (32, 256, 4, 1), (64, 256, 4, 1), (64, 256, 4, 1), (64, 256, 4, 1)),
    },
}
BACKWARD = {
    64: {
        "interpreted single": Config(32, 64, 8, 1),
        "interpreted":        Config(64, 64, 4, 1),
        "single":             ((64, 64, 8, 1),  (64, 64, 8, 1),  (64, 64, 8, 1),  (64, 64, 8, 1),  (16, 64, 8, 1)),
        "wide":               ((32, 64, 8, 1),  (32, 64, 8, 1),  (64, 64, 4, 1),  (64, 64, 4, 1),  (64, 64, 2, 1)),
        "cosine":             ((64, 64, 4, 1),  (64, 64, 4, 1),  (64, 64, 4, 1),  (64, 64, 4, 1),  (64, 64, 2, 1)),
        "":                   ((64, 64, 4, 1),  (64, 64, 4, 1),  (64, 64, 4, 2),  (64, 64, 4, 1),  (64, 64, 2, 1)),
    },
    256: {
        "":                   Config(32, 256, 8, 1),  # sums of dK and dV take the place of rows
    },
}
SPARSE_FORWARD = {
    64: {
        "single":             Config(32, 64, 8, 1),
        "":                   Config(64, 64, 4, 1),
    },
    128: {
        "single":             Config(16, 128, 8, 1),
        "":                   Config(64, 128, 4, 1),
    },
    256: {
        "":                   Config(16, 256, 8, 1),
    },
}
SPARSE_BACKWARD = {
    16: {
        "single":             Config(16, 16, 4, 1),
        "":                   Config(64, 16, 4, 1),
    },
    64: {
        "interpreted single": Config(16, 64, 8, 1),
        "single":             ((16, 64, 8, 1),  (16, 64, 8, 1),  (16, 64, 8, 1),  (16, 64, 8, 1),  (16, 64, 4, 1)),
        "":                   Config(64, 64, 4, 1),
    },
    128: {
        "interpreted single": Config(16, 128, 8, 1),
        "single":             ((16, 128, 8, 1), (16, 128, 8, 1), (16, 128, 8, 1), (16, 128, 8, 1), (16, 128, 4, 1)),
        "lean":               Config(16, 128, 8, 1),
        "":                   Config(32, 128, 8, 1),
    },
    256: {
        "interpreted single": Config(16, 256, 8, 1),
        "single":             ((16, 256, 8, 1), (16, 256, 8, 1), (16, 256, 8, 1), (16, 256, 8, 1), (16, 256, 4, 1)),
        "":                   Config(16, 256, 8, 1),
    },
}
# fmt: on


def _fitted(largest, rows, columns, tiny):
    """``largest`` with no more rows than there are; one warp and one stage for a ``tiny`` tile."""
    shape = (1, 1) if tiny else (largest.num_warps, largest.num_stages)
    return Config(min(rows, largest.block_m), columns, *shape)


def short_tile(queries, keys):
    """Rows and columns of the padded score tile of `short_attention`: columns a power of two, rows a multiple of every
    row block."""
    rows = head_tile(queries) if queries <= 64 else -(-queries // 64) * 64
    return rows, head_tile(keys)


@choice
def short_forward_config(rows, columns, itemsize, arch):
    """One-pass softmax: a block of rows against all columns at once."""
    largest = first_row(FORWARD, columns, arch, interpreted=arch == INTERPRETER, single=itemsize == 4)
    return _fitted(largest, rows, columns, tiny=max(rows, columns) <= 16)


@choice
def short_backward_config(rows, columns, head_dim, itemsize, arch, cosine):
    """All columns in registers, rows in blocks: beyond 64 columns the dK and dV accumulators take the place of rows."""
    conditions = dict(interpreted=arch == INTERPRETER, single=itemsize == 4, wide=head_dim > 32, cosine=cosine)
    largest = first_row(BACKWARD, columns, arch, **conditions)
    return _fitted(largest, rows, columns, tiny=max(rows, columns) <= 16)


@choice
def bias_held(row_blocks, head_dim, plain):
    """Whether the backward has registers for a bias tile that all groups share, beside the sum of its gradient: for one
    block of narrow rows, and where neither unit rows nor padding are (``plain``)."""
    return row_blocks == 1 and head_dim <= 32 and plain


@choice
def short_columns(arch):
    """Most keys that the backward of the short kernels has room for: shared memory, registers on CDNA."""
    return 64 if family(arch) == CDNA else 128 if arch in SMALL_SHARED else 256


@choice
def groups_per_program(groups, programs_per_group, arch):
    """Groups that one program walks: several waves of programs, yet a bias tile or a partial sum that serves many
    groups."""
    if arch == INTERPRETER:
        return 2  # so that small tests have programs of several groups, and a last one that is short of them
    return max(1, min(32, groups * programs_per_group // 2048))


@choice
def sparse_forward_config(queries, keys, head_dim, itemsize, arch):
    """Rows of queries against all keys: no more rows than registers hold scores of."""
    rows, columns = short_tile(queries, keys)
    largest = first_row(SPARSE_FORWARD, columns, arch, single=itemsize == 4)
    return _fitted(largest, rows, columns, tiny=max(rows, columns) <= 16)


@choice
def sparse_backward_config(queries, keys, head_dim, itemsize, arch):
    """As the forward, with two gradients of all keys beside the rows."""
    rows, columns = short_tile(queries, keys)
    conditions = dict(interpreted=arch == INTERPRETER, single=itemsize == 4, lean=arch in SMALL_SHARED)
    largest = first_row(SPARSE_BACKWARD, columns, arch, **conditions)
    return _fitted(largest, rows, columns, tiny=max(rows, columns) <= 16 and itemsize == 2)
