"""Block sizes of attention between channels. ``block_m`` counts tokens, ``block_n`` is the tile of a head. How tables
are read: `first_row`; ``single``: elements of 4 bytes."""

from ..machine.architecture import INTERPRETER
from ..machine.blocks import Config, first_row, head_tile
from ..machine.choices import choice

# fmt: off
# By the tile of a head; for Ampere, consumer Blackwell, Hopper, Blackwell, CDNA
FORWARD = {
    32: {
        "single": Config(32, 32, 4, 2),
        "":       Config(128, 32, 4, 3),
    },
    64: {
        "single": Config(16, 64, 8, 2),
        "":       Config(64, 64, 4, 3),
    },
}
BACKWARD = {
    32: {
        "single": Config(32, 32, 4, 1),
        "":       Config(64, 32, 4, 2),
    },
    64: {
        "single": ((16, 64, 8, 1), (16, 64, 8, 1), (16, 64, 8, 1), (16, 64, 8, 1), (16, 64, 4, 1)),
        "":       ((64, 64, 8, 2), (32, 64, 8, 2), (64, 64, 8, 2), (64, 64, 8, 2), (64, 64, 4, 1)),
    },
}
# fmt: on


@choice
def channel_chunk(arch):
    """Tokens that one program adds up at least, of images that have so many; others are one program's."""
    return 32 if arch == INTERPRETER else 1024


@choice
def channel_forward_config(head_dim, itemsize, arch):
    """Sums over tokens, and what is mixed."""
    return _of(FORWARD, head_dim, itemsize, arch)


@choice
def channel_backward_config(head_dim, itemsize, arch):
    """Three gradients of a block of tokens, or two sums, beside two or three D x D tiles."""
    return _of(BACKWARD, head_dim, itemsize, arch)


@choice
def channel_matrix_warps(block_d):
    """Of a program that holds D x D tiles and sees no token: 8 elements a lane, or more."""
    return min(8, block_d * block_d // 256)


def _of(tables, head_dim, itemsize, arch):
    if arch == INTERPRETER:
        return Config(16, head_tile(head_dim), 4, 1)
    return first_row(tables, head_tile(head_dim), arch, single=itemsize == 4)
