"""What the first calls of a kind show: whether shares of the images give what the whole gives, and how much there is to
do."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from vitkern.interop.operations import counted
from vitkern.interop.sharing import Call, Refused, agree, beside


class Known(NamedTuple):
    """Of calls of one kind. ``operations``: for each number in the first tensor. ``compared``: shares gave the same.
    ``refused``: why they run whole."""

    operations: float = 0.0
    compared: bool = False
    refused: str | None = None


def measured(forward: Callable, call: Call) -> tuple[Any, Known]:
    """The result of the whole call, and what it multiplies.

    Raises:
        Exception: what ``forward`` raises.
    """
    try:
        result, operations = counted(lambda: call.of(forward))
    except Exception:  # what counts may be at fault
        known = Known(refused="what it multiplies cannot be counted")
    else:
        return result, Known(operations / max(call.tensors[0].numel(), 1))
    return call.of(forward), known


def compare(whole: Any, model: nn.Module, forward: Callable, call: Call, count: int) -> None:
    """Do the call in shares.

    Raises:
        Whole: it cannot be done now.
        Refused: it gives another result than ``whole``, or changes what modules keep.
    """
    keeping = Keeping(model)
    result = beside(forward, call, count)
    tensors = [*model.parameters(), *model.buffers(), *call.tensors]
    dtypes = {tensor.dtype for tensor in tensors if tensor.is_floating_point()} | {torch.float32}
    if torch.is_autocast_enabled("cpu"):
        dtypes.add(torch.get_autocast_dtype("cpu"))
    if not agree(result, whole, max(torch.finfo(dtype).eps for dtype in dtypes)):
        raise Refused("shares of the images give another result than all together")
    keeping.check()


class Keeping:
    """What the modules of ``model`` keep now: their attributes, as objects, and the values of their buffers."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._objects = _objects(model)
        self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]

    def check(self) -> None:
        """Raise `Refused` if they keep another thing since."""
        now = _objects(self._model)
        objects = now.keys() == self._objects.keys() and all(now[key] is held for key, held in self._objects.items())
        if not objects or not all(_same(buffer, before) for buffer, before in self._buffers):
            raise Refused("a module keeps something of each call, or of each size of images")


def _objects(model: nn.Module) -> dict[tuple[int, str], object]:
    found: dict[tuple[int, str], object] = {}
    for number, module in enumerate(model.modules()):
        for held in (module._parameters, module._buffers, module._modules, vars(module)):
            found.update(((number, name), value) for name, value in held.items())
    return found


class Outside:
    """What a call may change outside the model: its arguments, and the random numbers to come."""

    def __init__(self, call: Call) -> None:
        self._tensors = [(tensor, tensor.clone()) for tensor in call.tensors]
        self._random = torch.get_rng_state()

    def check(self) -> None:
        """Raise `Refused` if it is another since."""
        if not torch.equal(self._random, torch.get_rng_state()):
            raise Refused("random numbers are drawn in a call, or by another thread meanwhile")
        if not all(_same(tensor, before) for tensor, before in self._tensors):
            raise Refused("its forward writes into an argument")


def _same(tensor: Tensor, other: Tensor) -> bool:
    """The same values, nan where nan is."""
    return tensor.shape == other.shape and torch.allclose(tensor, other, rtol=0.0, atol=0.0, equal_nan=True)
