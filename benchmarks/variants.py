"""The two streaming forwards of Hopper, timed beside each other: with pointers (kernels/stream.py) and with descriptors
and specialised warps (kernels/stream_hopper.py). What comes of it is a row of `configs.DESCRIPTORS_FROM`.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch

from benchmarks import configured
from benchmarks.cases import batch_for
from benchmarks.layers import Layer
from benchmarks.measure import measure
from benchmarks.rows import Row
from vitkern.kernels import configs
from vitkern.report import progress, seconds, table

GAIN = 1.05  # less is no reason to leave the kernel that runs everywhere


class Pair(NamedTuple):
    """A case with both kernels; ``kind``: its head's tile and whether it has a bias; ``tokens``: the fewer of queries
    and keys."""

    case: Layer
    kind: tuple[int, bool]
    tokens: int
    pointers: Row
    descriptors: Row

    @property
    def gain(self) -> float | None:
        rows = self.pointers, self.descriptors
        return rows[0].seconds / rows[1].seconds if all(row.counts for row in rows) else None


def has_variant(case: Layer, dtype: torch.dtype, arch: int) -> bool:
    """Whether the forward of ``case`` can take descriptors there."""
    if case.op != "attention" or arch != 90:
        return False
    with configs.descriptors(True):
        return any(
            call.function == "stream_hopper_config" for call in configured.asked(case, dtype, 2, "forward", arch)
        )


def timed(case: Layer, dtype: torch.dtype) -> Pair:
    """Both kernels on this GPU, each verified against float64 first."""
    rows = []
    for asked in (False, True):
        with configs.descriptors(asked):
            batch = batch_for(case, gpu=True, quick=False)
            rows.append(measure(case, dtype, torch.device("cuda"), batch=batch, compiled=False)[0])
    tokens = min(case.tokens, case.keys or case.tokens)
    return Pair(case, (configs.head_tile(case.head_dim), case.bias), tokens, *rows)


def descriptors_from(pairs: Iterable[Pair]) -> dict[tuple[int, bool], int]:
    """Kind -> fewest tokens from which descriptors were faster by `GAIN` in every case, that one and all above."""
    found, pairs = {}, list(pairs)
    for kind in {pair.kind for pair in pairs}:
        own = [pair for pair in pairs if pair.kind == kind]
        slower = max((pair.tokens for pair in own if (pair.gain or 0.0) < GAIN), default=0)
        faster = [pair.tokens for pair in own if pair.tokens > slower]
        found |= {kind: min(faster)} if faster else {}
    return found


def show_variants(cases: Iterable[Layer], dtype: torch.dtype, arch: int) -> None:
    """Time what has both kernels, print the table and the row; nothing where nothing has."""
    pairs = []
    for case in cases:
        if has_variant(case, dtype, arch):
            progress(f"descriptors: {case}")
            pairs.append(timed(case, dtype))
    if pairs:
        lines = [
            (pair.case, *(row.note if row.seconds is None else seconds(row.seconds) for row in pair[3:]),
             f"{pair.gain:.2f}" if pair.gain else "-")
            for pair in pairs
        ]  # fmt: skip
        print(table(("forward", "pointers", "descriptors", "gain"), lines))
        print(f"DESCRIPTORS_FROM = {descriptors_from(pairs)}  # for kernels/configs.py\n", flush=True)
