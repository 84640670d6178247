"""Block sizes of kernels over rows of channels. How tables are read: `first_row`; ``single``: elements of 4 bytes."""

from ..machine.architecture import INTERPRETER
from ..machine.blocks import Config, first_row, head_tile
from ..machine.choices import choice

WHOLE_ROW = 256  # channels up to which a product holds whole rows
INTERPRETED = Config(32, 64, 4, 1)  # of products

# fmt: off
# By channels; for Ampere, consumer Blackwell, Hopper, Blackwell, CDNA
NORM_LINEAR = {
    128: {
        "single": Config(32, 32, 4, 2),
        "":       Config(128, 64, 8, 2),
    },
    WHOLE_ROW: {
        "single": Config(32, 32, 4, 2),
        "":       Config(64, 64, 4, 2),
    },
}
MLP = {
    128: {
        "single": Config(32, 32, 4, 2),
        "":       ((64, 64, 8, 2), (64, 64, 8, 2), (64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    },
    WHOLE_ROW: {
        "single": Config(32, 32, 4, 2),
        "":       Config(64, 32, 8, 2),
    },
}
# fmt: on


@choice
def layernorm_programs(arch):
    """Partial sums of the LayerNorm backward. PyTorch adds them up, so that the last bits are those of one GPU."""
    return 2 if arch == INTERPRETER else 512


@choice
def layernorm_config(channels, arch):
    """Whole rows: about 32 elements a thread. Returns (power of two that holds a row, Config)."""
    block_c = head_tile(channels)
    return block_c, Config(max(1, min(32, 4096 // block_c)), block_c, 4 if block_c <= 4096 else 8, 1)


@choice
def layernorm_backward_config(channels, arch):
    """Half the rows of the forward: two float32 sums of the size of the tile stay in registers."""
    block_c = head_tile(channels)
    warps = 4 if block_c <= 2048 else 8 if block_c <= 4096 else 16
    return block_c, Config(max(1, min(32, 2048 // block_c)), block_c, warps, 1)


@choice
def norm_linear_config(channels, itemsize, arch):
    """Whole rows against blocks of the first layer's columns."""
    return INTERPRETED if arch == INTERPRETER else first_row(NORM_LINEAR, channels, arch, single=itemsize == 4)


@choice
def mlp_config(channels, itemsize, arch):
    """The plan "one": the output accumulator of whole rows stays in registers, so few rows."""
    return INTERPRETED if arch == INTERPRETER else first_row(MLP, channels, arch, single=itemsize == 4)


@choice
def matmul_config(itemsize, arch, heavy=False):
    """A product with an epilogue. Returns (Config, inner block).

    ``heavy``: an epilogue that holds several tiles at once; the block of rows does not depend on it.
    """
    if arch == INTERPRETER:
        return INTERPRETED, 64
    if itemsize == 4:
        return Config(64, 64, 4, 3), 32
    return Config(128, 64 if heavy else 128, 8, 3), 64


@choice
def pointwise_config(arch):
    """An epilogue alone."""
    return INTERPRETED if arch == INTERPRETER else Config(32, 128, 4, 1)
