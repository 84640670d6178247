"""What one example costs a model, counted without memory: multiply-adds, activations, the operators it calls."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from vitkern import dispatch
from vitkern.nn.neighborhood_attention import NeighborhoodAttention

_aten = torch.ops.aten
_LAYERS = (_aten.convolution, _aten.addmm, _aten.mm)


@dataclass(frozen=True)
class Costs:
    """Of one example.

    macs: multiply-adds of matrix products and convolutions, attention's included; papers call them FLOPs.
    activations: numbers that convolutions and linear layers yield (Radosavovic et al. 2020, arXiv 2003.13678).
    kernels: the operators of vitkern, each with how often it is called.
    """

    macs: int
    activations: int
    kernels: dict[str, int]


def count_costs(model: nn.Module, *inputs: Tensor) -> Costs:
    """Runs ``model`` on meta tensors, in evaluation: nothing is computed.

    Args:
        model: on the meta device.
        inputs: on the meta device too, one example; by default the model's `example_inputs`.
    """
    given: Any = inputs or model.example_inputs()  # type: ignore[operator]
    was_training = model.training
    layers, flops, kernels = _Yields(), FlopCounterMode(display=False), dict[str, int]()
    saved: list[int] = []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval().requires_grad_(False)  # FlopCounterMode asks what a module is given for its gradient
        with torch.no_grad(), _calls(kernels):  # modes and hooks would keep fused branches apart
            model(*given)
        with torch.no_grad(), _sparse(model, flops, saved), layers, flops:
            model(*given)
    finally:
        model.train(was_training)
        for parameter in trained:
            parameter.requires_grad_(True)
    return Costs(flops.get_total_flops() // 2 - sum(saved), layers.count, kernels)


class _Yields(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func.overloadpacket in _LAYERS:
            self.count += found.numel()
        return found


@contextmanager
def _calls(kernels: dict[str, int]) -> Iterator[None]:
    """Counts what would run on a kernel: each operator that meta tensors keep in PyTorch says so once a call."""

    def note(message: str) -> None:
        op = message.partition(" runs in PyTorch")[0]
        kernels[op] = kernels.get(op, 0) + 1

    with mock.patch.object(dispatch, "_note", note):
        yield


@contextmanager
def _sparse(model: nn.Module, flops: FlopCounterMode, saved: list[int]) -> Iterator[None]:
    """PyTorch computes scores that neighbourhood attention does not have: what they cost goes to ``saved``."""
    begun: list[int] = []

    def before(module: nn.Module, args: Any) -> None:
        begun.append(flops.get_total_flops() // 2)

    def after(module: Any, args: Any, out: Tensor) -> None:
        tokens, channels = out[..., 0].numel(), out.shape[-1]
        macs = tokens * channels * (4 * channels + 2 * module.kernel_size[0] * module.kernel_size[1])
        saved.append(flops.get_total_flops() // 2 - begun.pop() - macs)

    modules = [module for module in model.modules() if isinstance(module, NeighborhoodAttention)]
    handles: list[Any] = [module.register_forward_pre_hook(before) for module in modules]
    handles += [module.register_forward_hook(after) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
