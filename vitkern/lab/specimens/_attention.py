"""What specimens of attention have in common: sizes, masks and the price of a case."""

from collections.abc import Callable
from random import Random

import torch

from vitkern.lab.fuzzing.drawing import chance

LENGTHS = (1, 2, 16, 49, 50, 63, 64, 65, 127, 144, 196, 197, 256, 257)
HEAD_DIMS = (8, 16, 20, 24, 32, 36, 40, 48, 64, 72, 80, 96, 112, 128)


def length(rng: Random) -> int:
    """Small ones are rare before the budget, which favours them."""
    return rng.choice(LENGTHS[:2] if chance(rng, 0.03) else LENGTHS[2:])


def random_mask(*shape: int, empty_row: bool) -> Callable:
    """``extra`` of a problem; the fourth row keeps no key where ``empty_row`` is."""

    def make(generator):
        mask = torch.rand(*shape, generator=generator) < 0.7
        if empty_row:
            mask[..., 3, :] = False
        return dict(mask=mask)

    return make


def key_padding(batch: int, keys: int) -> Callable:
    """``extra`` of a problem: entry b keeps all but the last 7 b keys."""
    return lambda g: dict(key_padding_mask=torch.arange(keys)[None, :] < keys - 7 * torch.arange(batch)[:, None])


def attention_tiles(case, groups: int, n: int, m: int, causal: bool, terms: bool) -> int:
    """The price of ``groups`` of n queries and m keys. ``terms``: masks, or a table, are added to the scores."""
    from vitkern.kernels.loop.blocks import stream_forward_config
    from vitkern.kernels.tile.blocks import short_forward_config, short_tile
    from vitkern.kernels.tile.short_attention import short_takes

    itemsize = 4 if case.dtype == "fp32" else 2
    walks = terms or bool(getattr(case, "bias", ""))
    if not causal and short_takes(n, m, case.dim, itemsize, walks):
        rows, columns = short_tile(n, m)
        config = short_forward_config(rows, columns, itemsize, case.arch)
        turns = -(-n // config.block_m)
    else:
        config = stream_forward_config(case.dim, itemsize, case.arch, n, walks, causal, False)
        turns = -(-n // config.block_m) * -(-m // config.block_n)
    passes = 3.5 if case.backward else 1
    return round(turns * groups * case.heads * passes)
