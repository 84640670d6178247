"""Block sizes of additive attention: tokens that a program owns, tokens of a turn."""

from ..machine.architecture import INTERPRETER
from ..machine.blocks import Config, first_row
from ..machine.choices import choice

# By the wider of the values and of a share of the features. ``single``: elements of 4 bytes
FORWARD = {
    64: {"single": Config(32, 32, 4, 1), "": Config(32, 64, 4, 1)},
    128: {"single": Config(16, 32, 4, 1), "": Config(32, 64, 4, 1)},
    256: {"": Config(16, 32, 4, 1)},
}
BACKWARD = {
    64: {"": Config(16, 32, 4, 1)},
    128: {"single": Config(16, 16, 8, 1), "": Config(16, 64, 8, 1)},
    256: {"": Config(16, 32, 4, 1)},
}


@choice
def additive_forward_config(head_dim, itemsize, arch):
    """``head_dim``: the wider of features and values."""
    return _of(FORWARD, head_dim, itemsize, arch)


@choice
def additive_backward_config(head_dim, itemsize, arch):
    """A program has gradients of its tokens' features and values in registers."""
    return _of(BACKWARD, head_dim, itemsize, arch)


def _of(tables, width, itemsize, arch):
    if arch == INTERPRETER:
        return Config(16, 16, 4, 1)
    return first_row(tables, width, arch, single=itemsize == 4)
