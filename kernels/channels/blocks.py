"""Block sizes of attention between channels. ``block_m`` counts tokens, ``block_n`` is the tile of a head. How tables
are read: `first_row`; ``single``: elements of 4 bytes."""

from ..machine.architecture import INTERPRETER
from ..machine.blocks import Config, first_row, head_tile
from ..machine.choices import choice

# fmt: off
# By the tile of a head
FORWARD = {
    16: {
        "single": Config(64, 16, 4, 2),
        "":       Config(128, 16, 4, 3),
    },
    32: {
        "single": Config(64, 32, 4, 2),
        "":       Config(128, 32, 4, 3),
    },
    64: {
        "single": Config(32, 64, 4, 2),
        "":       Config(64, 64, 4, 3),
    },
}
BACKWARD = {
    16: {
        "single": Config(64, 16, 4, 1),
        "":       Config(128, 16, 4, 2),
    },
    32: {
        "single": Config(32, 32, 4, 1),
        "":       Config(64, 32, 4, 2),
    },
    64: {
        "single": Config(32, 64, 8, 1),
        "":       Config(64, 64, 8, 2),
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
    return _config(FORWARD, head_dim, itemsize, arch)


@choice
def channel_backward_config(head_dim, itemsize, arch):
    """Three gradients of a block of tokens, or two sums, beside two or three D x D tiles."""
    return _config(BACKWARD, head_dim, itemsize, arch)


def _config(tables, head_dim, itemsize, arch):
    config = first_row(tables, head_tile(head_dim), arch, single=itemsize == 4)
    return config._replace(block_m=16) if arch == INTERPRETER else config
