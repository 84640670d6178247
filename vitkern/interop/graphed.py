"""A model whose forward is replayed: the exchange of its class, and what copies of it are."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vitkern.interop.graphs import Graphs

HELD = "_vitkern_graphs"  # in the model's own dict


def install(model: nn.Module) -> tuple[Graphs, Callable[[], str | None]]:
    """Let calls of ``model`` go through `Graphs` -> these, and what takes them away again."""
    if HELD in vars(model):
        return vars(model)[HELD], lambda: None  # who came first takes them away
    graphs = Graphs(model)
    kind: Any = type(model)
    if "forward" in vars(model) or isinstance(model, torch.jit.ScriptModule):
        graphs.failed = f"its forward is not that of its class, {kind.__name__}"
        return graphs, lambda: None
    vars(model)[HELD] = graphs
    replayed = _replayed(kind)
    model.__class__ = replayed

    def take_away() -> str | None:
        graphs.forget()
        vars(model).pop(HELD, None)
        if type(model) is not replayed:
            return f"the model is a {type(model).__module__}.{type(model).__qualname__} now"
        model.__class__ = kind
        return None

    return graphs, take_away


@functools.cache
def _replayed(kind: Any) -> Any:
    """A subclass of ``kind`` under its name; a copy, or what is pickled, is a ``kind`` without graphs."""

    @functools.wraps(kind.forward)
    def forward(self: nn.Module, *arguments: Any, **keywords: Any) -> Any:
        if torch.compiler.is_compiling():
            return kind.forward(self, *arguments, **keywords)
        graphs = vars(self).get(HELD)
        plain = functools.partial(kind.forward, self)
        if graphs is None or graphs.model is not self:  # a replica shares the dict's entries
            return plain(*arguments, **keywords)
        return graphs.run(plain, arguments, keywords)

    def __reduce_ex__(self: nn.Module, protocol: Any) -> Any:
        twin = kind.__new__(kind)
        vars(twin).update((name, value) for name, value in vars(self).items() if name != HELD)
        return twin.__reduce_ex__(1)  # later protocols want the class of what is pickled

    own = dict(forward=forward, __reduce_ex__=__reduce_ex__, __module__=kind.__module__, __qualname__=kind.__qualname__)
    return type(kind.__name__, (kind,), own | {"__doc__": kind.__doc__})
