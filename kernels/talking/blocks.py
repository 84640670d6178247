"""Block sizes of attention with mixed heads, and what fits them. ``block_m`` counts the tokens of a lane, ``block_n``
those of a turn; both are 16 where one more would spill."""

from ..machine.architecture import AMPERE, CDNA, INTERPRETER, SMALL_SHARED, family
from ..machine.blocks import Config, dot_precision
from ..machine.choices import choice

MAX_HEADS = 16  # lanes
MAX_HEAD_DIM = 64


@choice
def talking_forward_config(itemsize, arch):
    if itemsize == 4 or arch in SMALL_SHARED:
        return talking_backward_config(itemsize, arch)
    return Config(16, 16, 4, 1) if family(arch) in (None, CDNA) else Config(16, 32, 8, 1)


@choice
def talking_backward_config(itemsize, arch):
    """Warps of CDNA have twice the lanes, and twice the registers each."""
    return Config(16, 16, 4 if family(arch) in (None, CDNA) else 8, 1)


@choice
def talking_takes(heads, head_dim, itemsize, arch):
    """Whether lanes hold the heads, and shared memory the rows of a program; CDNA loads them without."""
    if heads > MAX_HEADS or head_dim > MAX_HEAD_DIM:
        return False
    if arch == INTERPRETER or family(arch) == CDNA:
        return True
    if arch in SMALL_SHARED:
        return head_dim <= 16
    if itemsize == 4:
        return head_dim <= 32
    return head_dim <= (48 if family(arch) == AMPERE else MAX_HEAD_DIM)


def mixing_precision(dtype, arch):
    """How the products that mix heads multiply float32: in half precision to float32's own accuracy, which three
    products of TF32 have; CDNA multiplies float32 itself."""
    if dtype.itemsize == 4 or family(arch) in (None, CDNA):
        return dot_precision(dtype)
    return "tf32x3"
