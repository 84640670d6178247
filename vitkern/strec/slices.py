"""How many sequences inference takes at a time: what a layer computes between its input and its output is then small,
and a processor's cache holds it."""

import torch
from torch import Tensor

from vitkern.dispatch import is_eager

# Bytes of the widest tensor of a layer. A GPU needs many rows at once; a CPU is fastest with what its cache holds.
_CPU_BYTES, _OTHER_BYTES = 4 << 20, 256 << 20


def sequences_at_once(seq: Tensor, hidden: int, dtype: torch.dtype) -> int:
    """Sequences of (B, N) to compute together, all of them where a gradient may be asked for or a graph is captured.

    Args:
        hidden: width of the feed-forward part. dtype: of the model.
    """
    if torch.is_grad_enabled() or not is_eager():
        return max(1, len(seq))
    size = _CPU_BYTES if seq.device.type == "cpu" else _OTHER_BYTES
    return max(1, size // (seq.shape[1] * hidden * dtype.itemsize))
