"""Attributes of other modules, replaced for a while."""

import functools
from contextlib import contextmanager, nullcontext


class Patches:
    """Replaced attributes, put back in reverse."""

    def __init__(self):
        self._before = []

    def set(self, owner, name: str, value) -> None:
        own = vars(owner)
        self._before.append((owner, name, name in own, own.get(name)))
        setattr(owner, name, value)

    def adopt(self, owner, before: dict) -> None:
        """Put back, too, what others have replaced in ``owner`` since ``before``, a copy of its attributes."""
        for name, value in list(vars(owner).items()):
            if name not in before or before[name] is not value:
                self._before.append((owner, name, name in before, before.get(name)))

    def undo(self) -> None:
        while self._before:
            owner, name, present, value = self._before.pop()
            if present:
                setattr(owner, name, value)
            else:
                delattr(owner, name)


def outermost(block):
    """A context manager of the generator function ``block``, of which a block within another opens nothing."""
    opened, depth = contextmanager(block), 0

    @contextmanager
    @functools.wraps(block)
    def nested():
        nonlocal depth
        with nullcontext() if depth else opened():
            depth += 1
            try:
                yield
            finally:
                depth -= 1

    return nested
