"""Values that hold for a while: what a ``with`` block changes for all that runs within it."""

from contextlib import contextmanager


class Switch:
    """``value``, which a block may change; blocks nest."""

    def __init__(self, value):
        self.value = value

    @contextmanager
    def set(self, value):
        """Within the block the value is ``value``."""
        before, self.value = self.value, value
        try:
            yield
        finally:
            self.value = before
