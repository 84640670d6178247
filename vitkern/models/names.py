"""Names of parameters: free of what wrappers add, and a few of them on one line."""

from collections import Counter
from collections.abc import Iterable

# What torch.compile, activation checkpointing and FSDP put into names, at any depth. No module of a model is called so.
_WRAPPERS = frozenset({"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"})
_COUNTER = "n_averaged"
_LONGEST = 80


def few(names: Iterable, count: int = 4) -> str:
    """``a, b, c, d, ...``: the first names on one line, whatever they hold."""
    names = list(names)
    shown = [_printable(name) for name in names[:count]]
    return ", ".join(shown) + (", ..." if len(names) > count else "")


def _printable(name: object) -> str:
    text = str(name) if str(name).isprintable() else repr(name)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def without_wrappers(names: Iterable[str]) -> dict[str, str]:
    """The names that a model has without wrappers, by those with them.

    ``_orig_mod`` and its like are removed at any depth. ``module.``, which a model may call its own, is removed from
    the front and only where every name has it, as often as every name has it; the counter of PyTorch's
    `AveragedModel`, the one name beside them, goes with it.

    Raises:
        ValueError: two names become one.
    """
    short = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in names}
    if inner := {name: plain for name, plain in short.items() if plain != _COUNTER}:
        short = inner if all(plain.startswith("module.") for plain in inner.values()) else short
    while short and all(plain.startswith("module.") for plain in short.values()):
        short = {name: plain.removeprefix("module.") for name, plain in short.items()}
    counts = Counter(short.values())
    if len(counts) < len(short):
        twice = few(name for name, plain in short.items() if counts[plain] > 1)
        raise ValueError(f"load_weights: names are the same without their wrappers: got {twice}; expected one each.")
    return short
