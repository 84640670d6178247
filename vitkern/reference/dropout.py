"""The weights that the attention kernels drop: a function of the seed and of the place alone."""

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85
_ROUNDS = 10


def philox(seed: Tensor, counters: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """First word of Philox4x32-10 (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011, section 3.3).

    Args:
        seed: (1,) int64, the key. counters: int64 tensors that broadcast, of values below 2^32.

    Returns:
        int64, values below 2^32.
    """
    keys = [seed & _LOW, (seed >> 32) & _LOW]
    c0, c1, c2, c3 = counters
    for _ in range(_ROUNDS):
        high = [_high(multiplier, c) for multiplier, c in zip(_MULTIPLIERS, (c0, c2), strict=True)]
        low = [(multiplier * c) & _LOW for multiplier, c in zip(_MULTIPLIERS, (c0, c2), strict=True)]
        c0, c1, c2, c3 = high[1] ^ c1 ^ keys[0], low[1], high[0] ^ c3 ^ keys[1], low[0]
        keys = [(key + step) & _LOW for key, step in zip(keys, _KEY_STEPS, strict=True)]
    return c0


def _high(a: int, b: Tensor) -> Tensor:
    """Upper 32 bits of the product; int64 wraps, and the bits stay right."""
    return ((a * b) >> 32) & _LOW


def keep_mask(seed: Tensor, shape: tuple[int, int, int, int], dropout_p: float) -> Tensor:
    """(B, H, N, M) bool: true with probability 1 - dropout_p, the mask that the kernels draw from ``seed`` (1,)
    int64."""
    batch, heads, n, m = shape
    row, query, key = (torch.arange(size, device=seed.device) for size in (batch * heads, n, m))
    bits = philox(seed, (key, query[:, None], row[:, None, None], torch.zeros_like(key)))
    signed = torch.where(bits >= 1 << 31, (1 << 32) - 1 - bits, bits)  # -x - 1 of a negative 32-bit x
    return (signed.float() * 4.6566127342e-10 >= dropout_p).view(shape)
