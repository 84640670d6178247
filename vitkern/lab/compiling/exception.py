"""What is known to be imperfect in a compiled kernel, and why it stays."""

from typing import NamedTuple


class Excuse(NamedTuple):
    """``begins``: how the problem begins, or several do; ``reason``: why they stay. ``tritons``: the minors that it
    holds for; () for all."""

    begins: str | tuple[str, ...]
    reason: str
    tritons: tuple[str, ...] = ()
