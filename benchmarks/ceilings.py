"""What this device reaches at best, measured in the run that is compared with it: a copy and a matrix product."""

import math
import statistics
from typing import NamedTuple

import torch

from benchmarks.rows import Row

SIDE = {"cuda": 8192, "cpu": 1536}  # of the square matrices
COPIED = {"cuda": 2**30, "cpu": 2**28}  # bytes, far above the last cache


class Ceilings(NamedTuple):
    """``copy``: bytes/s, read and written. ``matmul``: FLOP/s of torch.mm."""

    copy: float
    matmul: float

    def bound(self, row: Row) -> float | None:
        """Seconds below which a device that does no better cannot go; None where the work of a row is not known."""
        if row.moved is None:
            return None
        return max(row.moved / self.copy, row.flops / self.matmul)


NONE = Ceilings(math.inf, math.inf)


def measured(device: torch.device, dtype: torch.dtype, *, quick: bool = False) -> Ceilings:
    """``quick``: a quarter of the side, for tests."""
    from benchmarks.timers import samples_of

    side = SIDE[device.type] // (4 if quick else 1)
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    product = statistics.median(samples_of(lambda: torch.mm(a, b, out=out), device, quick=quick))
    source = torch.zeros(COPIED[device.type] // (16 if quick else 1), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    copied = statistics.median(samples_of(lambda: target.copy_(source), device, quick=quick))
    return Ceilings(2 * source.numel() / copied, 2 * side**3 / product)


def of_run(environment: dict, dtype: str) -> Ceilings | None:
    """The ceilings that a recorded run measured for ``dtype``."""
    found = environment.get("ceilings", {}).get(dtype)
    return Ceilings(**found) if found else None
