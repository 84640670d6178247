"""A model whose calls go through something of ours: the exchange of its class, and what copies of it are."""

import copy
import functools
from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import nn


class Runner(Protocol):
    """What calls go through. ``model``: the one whose calls; None in a copy, until that is called."""

    model: nn.Module | None

    def run(self, forward: Callable, arguments: tuple, keywords: dict[str, Any]) -> Any:
        """``forward(*arguments, **keywords)``, in whatever way."""

    def forget(self) -> None:
        """Drop what was learnt from calls."""


def obstacle(model: nn.Module) -> str | None:
    """Why calls of ``model`` cannot go through anything."""
    if "forward" in vars(model) or isinstance(model, torch.jit.ScriptModule):
        return f"its forward is not that of its class, {type(model).__name__}"
    return None


def stand_around(model: nn.Module, runner: Runner, held: str, copied: bool = False) -> Callable[[], str | None]:
    """Let calls of ``model`` go through ``runner``, kept in its dict as ``held`` -> what takes it away again.

    ``copied``: a copy of the model, or what is pickled, has one too, a copy of ``runner``.
    """
    kind: Any = type(model)
    vars(model)[held] = runner
    exchanged = _exchanged(kind, held, copied)
    model.__class__ = exchanged

    def take_away() -> str | None:
        runner.forget()
        vars(model).pop(held, None)
        if type(model) is not exchanged:
            return f"the model is a {type(model).__module__}.{type(model).__qualname__} now"
        model.__class__ = kind
        return None

    return take_away


def within(kind: type[nn.Module]) -> type[nn.Module]:
    """The class that ``kind`` was before."""
    while "_vitkern_around" in vars(kind):
        kind = vars(kind)["_vitkern_around"]
    return kind


@functools.cache
def _exchanged(kind: Any, held: str, copied: bool) -> Any:
    """A subclass of ``kind`` under its name. What is scripted is a ``kind`` again, and a copy if not ``copied``."""

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        if torch.compiler.is_compiling():
            return kind.forward(self, *arguments, **keywords)
        runner = vars(self).get(held)
        plain = functools.partial(kind.forward, self)
        if copied and runner is not None and runner.model is None:
            runner.model = self
        if runner is None or runner.model is not self:  # a replica shares the dict's entries
            return plain(*arguments, **keywords)
        return runner.run(plain, arguments, keywords)

    def twin(self: nn.Module, but: str | None) -> Any:
        made = kind.__new__(kind)
        vars(made).update((name, value) for name, value in vars(self).items() if name != but)
        if held in vars(made):
            vars(made)[held] = copy.copy(vars(made)[held])  # which knows no model
        return made

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        # later protocols want the class of what is pickled
        make, arguments, *rest = twin(self, None if copied else held).__reduce_ex__(1)
        return (_copied, (make, arguments, held), *rest) if copied else (make, arguments, *rest)

    def __prepare_scriptable__(self: nn.Module) -> Any:
        made = twin(self, held)
        return made.__prepare_scriptable__() if hasattr(made, "__prepare_scriptable__") else made

    own = dict(forward=forward, __reduce_ex__=__reduce_ex__, __prepare_scriptable__=__prepare_scriptable__)
    about = dict(__module__=kind.__module__, __qualname__=kind.__qualname__, __doc__=kind.__doc__)
    return type(kind.__name__, (kind,), own | about | {"_vitkern_around": kind})


def _copied(make: Callable, arguments: tuple, held: str) -> Any:
    """A copy before its state is filled in."""
    made = make(*arguments)
    kind: Any = type(made)
    made.__class__ = _exchanged(kind, held, True)
    return made
