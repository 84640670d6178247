"""Attributes of other modules, replaced for a while."""


class Patches:
    """Replaced attributes, put back in reverse."""

    def __init__(self):
        self._before = []

    def set(self, owner, name: str, value) -> None:
        own = vars(owner)
        self._before.append((owner, name, name in own, own.get(name)))
        setattr(owner, name, value)

    def undo(self) -> None:
        while self._before:
            owner, name, present, value = self._before.pop()
            if present:
                setattr(owner, name, value)
            else:
                delattr(owner, name)
