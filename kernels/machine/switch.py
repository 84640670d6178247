"""Values that hold for a while: what a ``with`` block changes for all that runs within it."""

import itertools
from contextlib import contextmanager

_turns = itertools.count(1)


class Switch:
    """``value``, which a block may change; blocks nest. ``Switch.turned`` is another number after each change of any:
    what was made while it was the same was made with the same values."""

    turned = 0

    def __init__(self, value):
        self.value = value

    @contextmanager
    def set(self, value):
        """Within the block the value is ``value``."""
        before, self.value = self.value, value
        Switch.turned = next(_turns)
        try:
            yield
        finally:
            self.value = before
            Switch.turned = next(_turns)
