"""Attention as a model computes it, seen from outside: no module is changed, and nothing stays attached."""

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from vitkern.dispatch import use_backend
from vitkern.explaining.layer import Call, Layer, Operands
from vitkern.explaining.windows import has_windows, windows_after
from vitkern.interop.adapter import Adapter
from vitkern.interop.attends import attends

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax)
_SAME = (F.dropout, Tensor.to)  # what stands between it and the product
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__)


class _Watch(TorchFunctionMode):
    """Notes each call of scaled_dot_product_attention, and each product with a softmax on its left. Accelerated
    modules leave their work to their original classes while it watches (`vitkern.ops.bypass.watched`)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Call] = []
        self._weights: dict[int, Tensor] = {}

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            self._fused(result, *args, **kwargs)
        elif func in _SOFTMAX:
            self._note(result)
        elif args and id(args[0]) in self._weights:
            if func in _SAME:
                self._note(result)
            elif func in _PRODUCTS:
                weights = args[0]
                groups, _, queries, keys = weights.shape
                self.calls.append(Call(weights, None, (groups, queries, keys)))
        return result

    def _note(self, weights: Tensor) -> None:
        if weights.dim() == 4:
            self._weights[id(weights)] = weights

    def _fused(
        self, result: Tensor, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None,
        dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, **_: Any,
    ) -> None:  # fmt: skip
        if query.dim() == 4:
            scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
            operands = Operands(query, key, value, attn_mask, is_causal, scale)
            self.calls.append(Call(result, operands, (query.shape[0], query.shape[2], key.shape[2])))


def capture(model: nn.Module, image: Tensor) -> tuple[Any, list[Layer]]:
    """What ``model`` gives for ``image`` (1, C, height, width), with the graph of its gradients, and its layers of
    attention in their order.

    Raises:
        NotImplementedError: a module computes attention in a way that cannot be read, or windows whose place is not
            known.
    """
    watch, layers = _Watch(), _Layers()
    with ExitStack() as stack:
        stack.enter_context(as_for_inference(model))
        stack.enter_context(use_backend("torch"))
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(layers.attached(model, watch))
        stack.enter_context(watch)
        result = model(image)
    return result, layers.found(watch.calls, image.device)


class _Layers:
    """Which calls are those of one module."""

    def __init__(self) -> None:
        self._windows: list[tuple[int, int, Any]] = []  # first call, end, `Windows`
        self._obstacles: dict[int, str] = {}  # of a call: why its map is none of tokens

    @contextmanager
    def attached(self, model: nn.Module, watch: _Watch) -> Iterator[None]:
        """Within the block hooks follow the modules that compute attention."""
        begun: dict[nn.Module, int] = {}
        handles = []

        def before(module: nn.Module, args: tuple) -> None:
            begun[module] = len(watch.calls)

        def after(name: str) -> Callable:
            def ended(module: nn.Module, args: tuple, keywords: dict, result: Any) -> None:
                first, end = begun.pop(module), len(watch.calls)
                if _computes_attention(module) and first == end:
                    raise NotImplementedError(
                        f"explain: attention cannot be read: got {name or 'the model'}, a {_kind(module).__name__}; "
                        "expected a softmax of queries and keys that multiplies values, on a CPU of 16 keys or more. "
                        "Take another model."
                    )
                if first < end and has_windows(module):
                    windows = windows_after(module, args, keywords)
                    if windows is not None:
                        self._windows.append((first, end, windows))
                elif first < end:
                    obstacle = _obstacle(watch.calls[first:end], args)
                    if obstacle is not None:
                        where = f"{name or 'the model'}, a {_kind(module).__name__}, {obstacle}"
                        self._obstacles.update(dict.fromkeys(range(first, end), where))

            return ended

        try:
            for name, module in model.named_modules():
                if _computes_attention(module) or has_windows(module):
                    handles.append(module.register_forward_pre_hook(before))
                    handles.append(module.register_forward_hook(after(name), with_kwargs=True))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def found(self, calls: list[Call], device: torch.device) -> list[Layer]:
        if not calls:
            raise NotImplementedError(
                "explain: attention cannot be read: got a model that calls none; expected a vision transformer whose "
                "attention is a softmax that multiplies values."
            )
        layers, place = [], 0
        for first, end, windows in [*self._windows, (len(calls), len(calls), None)]:
            layers += [Layer((calls[i],), obstacle=self._obstacles.get(i)) for i in range(place, first)]
            if windows is not None:
                layers.append(Layer(tuple(calls[first:end]), windows.grid, windows.tokens(device)))
            place = end
        for layer in layers:
            groups = sum(call.shape[0] for call in layer.calls)
            expected = 1 if layer.index is None else layer.index.shape[0]
            if groups != expected:
                raise NotImplementedError(
                    f"explain: the place of windows is not known: got {groups} groups of {layer.calls[0].shape[1]} "
                    f"tokens; expected {expected}. Only windows that say their size and shift are found in the image."
                )
        return layers


def _obstacle(calls: list[Call], args: tuple) -> str | None:
    """Why the ``calls`` of one module that was given ``args`` are no map of its tokens, or None."""
    if len(calls) > 1:
        return f"with {len(calls)} maps that it puts together"
    _, queries, keys = calls[0].shape
    tokens = args[0].shape[1] if args and isinstance(args[0], Tensor) and args[0].dim() == 3 else queries
    return None if tokens in (queries, keys) else f"with a map of {queries} x {keys} for {tokens} tokens"


def _kind(module: nn.Module) -> type:
    return module.adapted if isinstance(module, Adapter) else type(module)


def _computes_attention(module: nn.Module) -> bool:
    kind = _kind(module)
    return attends(kind) or (kind.__module__.startswith("vitkern.nn.") and "Attention" in kind.__name__)


@contextmanager
def as_for_inference(model: nn.Module) -> Iterator[None]:
    """Within the block every module is in eval mode, none computes itself again in a backward pass (as timm's do in
    eval mode too), and gradients are recorded, whatever the caller has set."""
    modes = {module: module.training for module in model.modules()}
    checkpointed: list[Any] = [module for module in model.modules() if getattr(module, "grad_checkpointing", False)]
    try:
        model.eval()
        for module in checkpointed:
            module.grad_checkpointing = False
        with torch.enable_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
        for module in checkpointed:
            module.grad_checkpointing = True
