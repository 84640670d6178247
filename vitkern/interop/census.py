"""What of a model a way to run it depends on, in a form that is quickly compared: loops in C over its modules."""

from itertools import chain
from operator import attrgetter
from typing import Any

from torch import Tensor, nn

ORDINARY = {Tensor, nn.Parameter}
_training, _dtype = attrgetter("training"), attrgetter("dtype")


class Census:
    """The modules of ``model``, and where its parameters and buffers lie.

    A module's other attributes are not looked at: what is changed there is not seen.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = tuple(model.modules())
        self._own = [vars(module) for module in self._modules]
        self._children = [module._modules for module in self._modules]
        self._tensors: list[dict[str, Any]] = [
            held for module in self._modules for held in (module._parameters, module._buffers)
        ]
        inner = self._modules[1:]  # hooks of the model itself run around each call as ever
        self._hooks = [held for module in inner for held in (module._forward_hooks, module._forward_pre_hooks)]
        self._structure = self._look()

    def stands(self) -> bool:
        """Whether these are still the modules of the model, with the same classes and functions."""
        return self._look() == self._structure

    def _look(self) -> tuple:
        children = chain.from_iterable(map(dict.values, self._children))
        return (*map(id, children), *map(type, self._modules), *(own.get("forward") for own in self._own))

    def __len__(self) -> int:
        return len(self._modules)

    def training(self) -> bool:
        """Whether the model, or a part of it, is in training mode."""
        return any(map(_training, self._modules))

    def hooked(self) -> bool:
        """Whether a module in the model has a forward hook."""
        return any(self._hooks)

    def tensors(self) -> list[Tensor]:
        """Parameters and buffers."""
        return [tensor for tensor in chain.from_iterable(map(dict.values, self._tensors)) if tensor is not None]

    def places(self, tensors: list[Tensor]) -> tuple:
        """Which they are, where in memory, and how they lie: what a graph has read them by."""
        if {*map(type, tensors)} - ORDINARY:
            return (object(),)  # some have no memory of their own
        return (*map(id, tensors), *map(Tensor.data_ptr, tensors), *map(_dtype, tensors), *map(Tensor.stride, tensors))
