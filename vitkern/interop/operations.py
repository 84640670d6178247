"""Floating-point operations of what a call multiplies, counted as it runs."""

from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def counted(call: Callable[[], Any]) -> tuple[Any, int]:
    """(``call()``, operations of the matrix products, convolutions and attention in it). In this thread alone, and
    without hooks, as `torch.utils.flop_counter.FlopCounterMode` has them."""
    with _Counter() as counter:
        return call(), counter.operations


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:  # in inference mode operators arrive whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if formula is not None:
            self.operations += formula(*args, **kwargs, out_val=result)
        return result
