"""Two ways of one streaming forward, timed beside each other.

On Hopper: with pointers (kernels/loop/stream.py) and with descriptors and specialised warps (stream_hopper.py). What
comes of it is a row of its `DESCRIPTORS_FROM`. Anywhere: with one tile for a head and with two (heads.py), which says
whether `head_parts` is right.
"""

import contextlib
from collections.abc import Iterable
from typing import NamedTuple

import torch

from benchmarks import configured
from benchmarks.cases import batch_for
from benchmarks.measure import measure
from benchmarks.rows import Row
from vitkern.kernels.loop.heads import head_parts, one_tile
from vitkern.kernels.loop.stream_hopper import descriptors
from vitkern.kernels.machine.blocks import head_tile
from vitkern.lab.compiling.layer import Layer
from vitkern.report import progress, seconds, table

GAIN = 1.05  # less is no reason to leave the kernel that runs everywhere


class Pair(NamedTuple):
    """A case both ways; ``kind``: its head's tile and whether it has a bias; ``tokens``: the fewer of queries and
    keys."""

    case: Layer
    kind: tuple[int, bool]
    tokens: int
    plain: Row
    other: Row

    @property
    def gain(self) -> float | None:
        rows = self.plain, self.other
        return rows[0].seconds / rows[1].seconds if all(row.counts for row in rows) else None


def has_tails(case: Layer, dtype: torch.dtype, arch: int) -> bool:
    """Whether two tiles hold a head in the streaming forward of ``case`` there."""
    if case.op != "attention" or head_parts(case.head_dim, arch, case.bias)[1] == 0:
        return False
    return any(call.function == "stream_forward_config" for call in configured.asked(case, dtype, 2, "forward", arch))


def has_variant(case: Layer, dtype: torch.dtype, arch: int) -> bool:
    """Whether the forward of ``case`` can take descriptors there."""
    if case.op != "attention" or arch != 90:
        return False
    with descriptors(True):
        return any(
            call.function == "stream_hopper_config" for call in configured.asked(case, dtype, 2, "forward", arch)
        )


def timed(case: Layer, dtype: torch.dtype, ways: Iterable[contextlib.AbstractContextManager]) -> Pair:
    """Both ways on this GPU, each verified against float64 first."""
    rows = []
    for way in ways:
        with way:
            batch = batch_for(case, gpu=True, quick=False)
            rows.append(measure(case, dtype, torch.device("cuda"), batch=batch, compiled=False)[0])
    tokens = min(case.tokens, case.keys or case.tokens)
    return Pair(case, (head_tile(case.head_dim), case.bias), tokens, *rows)


def descriptors_from(pairs: Iterable[Pair]) -> dict[tuple[int, bool], int]:
    """Kind -> fewest tokens from which descriptors were faster by `GAIN` in every case, that one and all above."""
    found, pairs = {}, list(pairs)
    for kind in {pair.kind for pair in pairs}:
        own = [pair for pair in pairs if pair.kind == kind]
        slower = max((pair.tokens for pair in own if (pair.gain or 0.0) < GAIN), default=0)
        faster = [pair.tokens for pair in own if pair.tokens > slower]
        found |= {kind: min(faster)} if faster else {}
    return found


def _show(pairs: Iterable[Pair], plain: str, other: str) -> None:
    lines = [
        (pair.case, *(row.note if row.seconds is None else seconds(row.seconds) for row in pair[3:]),
         f"{pair.gain:.2f}" if pair.gain else "-")
        for pair in pairs
    ]  # fmt: skip
    print(table(("forward", plain, other, "gain"), lines), flush=True)


def show_variants(cases: Iterable[Layer], dtype: torch.dtype, arch: int) -> None:
    """Time what has two ways, print the tables and what comes of them; nothing where nothing has."""
    described, parted = [], []
    for case in cases:
        if has_variant(case, dtype, arch):
            progress(f"descriptors: {case}")
            described.append(timed(case, dtype, (descriptors(False), descriptors(True))))
        if has_tails(case, dtype, arch):
            progress(f"two tiles: {case}")
            parted.append(timed(case, dtype, (one_tile(), contextlib.nullcontext())))
    if described:
        _show(described, "pointers", "descriptors")
        print(f"DESCRIPTORS_FROM = {descriptors_from(described)}  # for kernels/loop/stream_hopper.py\n", flush=True)
    if parted:
        _show(parted, "one tile", "two tiles")
        slower = sorted({pair.case.head_dim for pair in parted if (pair.gain or 0.0) < 1.0})
        print(f"heads.head_parts should leave whole: {slower or 'none of these'}\n", flush=True)
