"""Which programs of an interpreted launch run, and in which order."""

import math
import random
from collections.abc import Sequence
from contextlib import contextmanager

ORDERS = ("forward", "reverse", "random")


class Programs:
    """Programs are numbered as a grid (x, y, z) is walked, z fastest. ``order``: one of `ORDERS`; ``seed``: of random.

    The interpreter walks a grid of turns; `place` says which program a turn runs.
    """

    def __init__(self, order: str, seed: int):
        self.order, self.seed = order, seed
        self._turns: tuple[int, ...] = (1, 1, 1)
        self._grid: tuple[int, ...] = (1, 1, 1)
        self._numbers: list[int] = []
        self._share: tuple[tuple[int, ...], Sequence[int]] | None = None

    @contextmanager
    def only(self, grid: tuple[int, ...], numbers: Sequence[int]):
        """Within the block, a launch over ``(len(numbers),)`` runs those programs of one over ``grid``."""
        self._share = (*grid, 1, 1)[:3], numbers
        try:
            yield
        finally:
            self._share = None

    def start(self, turns: tuple[int, ...]) -> tuple[int, ...]:
        """A launch over ``turns`` begins. Returns the grid that its kernel sees."""
        self._turns = turns
        self._grid, numbers = self._share or (turns, range(math.prod(turns)))
        self._numbers = list(numbers)
        if self.order == "reverse":
            self._numbers.reverse()
        elif self.order == "random":
            random.Random(self.seed).shuffle(self._numbers)
        return self._grid

    def place(self, x: int, y: int, z: int) -> tuple[int, int, int]:
        """The program that runs in the turn (x, y, z)."""
        _, height, depth = self._turns
        number = self._numbers[(x * height + y) * depth + z]
        _, height, depth = self._grid
        return number // (height * depth), number // depth % height, number % depth
