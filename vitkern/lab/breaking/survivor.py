"""A mutant that lives, and why."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Survivor:
    """``change``: the very change that it is about; where the source has changed since, it counts no more. ``reason``:
    a line that a stranger can check. ``equivalent``: the program computes the same, so there is nothing to find; else
    it is a gap that is known."""

    change: str
    reason: str
    equivalent: bool = True
