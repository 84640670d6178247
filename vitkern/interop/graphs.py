"""CUDA graphs of a model in inference: the launches of one call, replayed for the next without the host's work."""

import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

from vitkern import dispatch
from vitkern.interop.capture import Backend, CudaBackend
from vitkern.interop.census import ORDINARY, Census
from vitkern.ops.bypass import watched

LIMIT = 8  # shapes
PLAIN = {type(None), bool, int, float, str, torch.dtype, torch.device, torch.memory_format}
RESULTS = {*ORDINARY, *PLAIN}


class GraphWarning(RuntimeWarning):
    """The calls of a model cannot be captured in a CUDA graph, and run as they would without."""


class Refused(Exception):
    """Why a call is not captured or replayed."""


class GivenUp(Refused):
    """And why none will be from now on."""


class Captured(NamedTuple):
    """One graph: its inputs' memory, and its results as `torch.utils._pytree` takes them apart."""

    inputs: list[Tensor]
    results: list[Any]
    structure: TreeSpec
    replay: Callable[[], None]

    def __call__(self, given: list[Tensor]) -> Any:
        for held, new in zip(self.inputs, given, strict=True):
            held.copy_(new)
        self.replay()
        copies = {id(leaf): leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in self.results}
        return tree_unflatten([copies[id(leaf)] for leaf in self.results], self.structure)


class Graphs:
    """The graphs of ``model``, one for each kind of call: shapes, strides, dtypes and device of the tensors among its
    arguments, the values of the others, autocast, backend and precision. Of more than ``limit`` the one that was used
    longest ago is dropped.

    A call that cannot be replayed runs as it would without graphs; ``plain`` counts these by reason, and ``failed`` is
    why none is tried any more. Values of parameters and buffers may change in place; where one is replaced, or a module
    is, all graphs are dropped. Call `forget` after a change of anything else that a module keeps, a number or a tensor
    that is no buffer. A replay copies the arguments, and its results, which are the caller's own, and holds both; what
    lies between is held once for all graphs.

    The first call of each kind runs the model four times more, and waits for the device.
    """

    def __init__(self, model: nn.Module | None = None, limit: int = LIMIT, backend: Backend | None = None) -> None:
        self.model, self.limit = model, limit
        self.backend: Backend = backend or CudaBackend()
        self.failed: str | None = None
        self.plain: Counter[str] = Counter()
        self.captures = self.replays = 0
        self._captured: OrderedDict[tuple, Captured] = OrderedDict()
        self._census: Census | None = None
        self._places: tuple = ()
        self._own: set[torch.device] = set()  # where its tensors are
        self._device: torch.device | None = None
        self._lock, self._capturing = threading.RLock(), False

    def __reduce__(self) -> tuple:
        return Graphs, (None, self.limit)  # of a copy of the model: without it, they replay nothing

    def __len__(self) -> int:
        return len(self._captured)

    def __str__(self) -> str:
        if self.failed is not None:
            return f"no CUDA graphs: {self.failed}"
        lines = [
            f"CUDA graphs: {self.captures} captured, {len(self)} kept (at most {self.limit}), {self.replays} replays"
        ]
        lines += [f"of the calls {count} ran plain: {reason}" for reason, count in self.plain.most_common()]
        return "\n".join(lines)

    def run(self, forward: Callable, arguments: tuple, keywords: dict[str, Any]) -> Any:
        """``forward(*arguments, **keywords)``, replayed where that can be done."""
        with self._lock:  # one memory for all callers
            if self._capturing:  # the model calls itself
                return forward(*arguments, **keywords)
            try:
                return self._replayed(forward, arguments, keywords)
            except Refused as refusal:
                self.plain[str(refusal)] += 1
                if isinstance(refusal, GivenUp):
                    warnings.warn(
                        f"accelerate: no CUDA graphs of this model: {refusal}. It runs without them from now on.",
                        GraphWarning,
                        stacklevel=5,  # at the call of the model
                    )
        return forward(*arguments, **keywords)

    def forget(self) -> None:
        """Drop all graphs, and what kept a capture from succeeding; the next call captures anew."""
        with self._lock:
            self.failed = None
            self._drop()

    def _drop(self) -> None:
        if self._captured and self._device is not None:
            self.backend.settle(self._device)
        self._captured.clear()
        self._census, self._places = None, ()

    def _replayed(self, forward: Callable, arguments: tuple, keywords: dict[str, Any]) -> Any:
        if self.failed is not None:
            raise Refused(self.failed)
        given: list[Tensor] = []
        kind = _kind(arguments, given), _kind(keywords, given)
        device = self._checked(given)
        with self.backend.ordered(device):
            key = (*kind, *_settings(device))
            found = self._captured.get(key)
            if found is None:
                while self._captured and len(self._captured) >= self.limit:
                    self.backend.settle(device)
                    self._captured.popitem(last=False)
                found = self._capture(forward, arguments, keywords, given, device)
                self._captured[key] = found
            self._captured.move_to_end(key)
            self.replays += 1
            return found(given)

    def _checked(self, given: list[Tensor]) -> torch.device:
        """The device of the call; graphs of a model that is another one now are gone then.

        Raises:
            Refused: the call cannot be replayed.
        """
        devices = {tensor.device for tensor in given}
        self._check_device(devices)
        if not dispatch.is_eager(*given) or watched():
            raise Refused("the call is traced, transformed, captured or watched by somebody")
        if self._census is None or not self._census.stands():
            self._drop()
            assert self.model is not None
            self._census = Census(self.model)
        census = self._census
        tensors = census.tensors()
        places = census.places(tensors)
        if places != self._places:
            kinds = {*map(type, tensors)} - ORDINARY
            if kinds:
                raise Refused(f"parameters or buffers are of type {', '.join(sorted(kind.__name__ for kind in kinds))}")
            own = {tensor.device for tensor in tensors}
            self._check_device(own)
            self._drop()
            self._census, self._places, self._own = census, places, own
        devices |= self._own
        self._check_device(devices)
        if census.training():
            raise Refused("the model, or a part of it, is in training mode: call eval() first")
        if census.hooked():
            raise Refused("a module in the model has a forward hook, which a replay would skip")
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (*given, *tensors)):
            raise Refused("gradients are enabled: use torch.inference_mode() or torch.no_grad()")
        if not devices:
            raise Refused("there is no tensor, neither in the model nor among the arguments")
        (self._device,) = devices
        return self._device

    def _check_device(self, devices: set[torch.device]) -> None:
        if any(device.type != self.backend.device_type for device in devices):
            raise Refused(f"tensors are on {_names(devices)}: CUDA graphs need all on a GPU")
        if len(devices) > 1:
            raise Refused(f"model and arguments are on several devices: {_names(devices)}")

    def _capture(
        self, forward: Callable, arguments: tuple, keywords: dict[str, Any], given: list[Tensor], device: torch.device
    ) -> Captured:
        with torch.inference_mode(False), torch.no_grad():
            inputs = [torch.empty_like(tensor).copy_(tensor) for tensor in given]
        held = iter(inputs)
        arguments, keywords = tree_map_only(Tensor, lambda _: next(held), (arguments, keywords))

        def run() -> Any:
            with torch.no_grad(), _without_cache(device):
                return forward(*arguments, **keywords)

        versions = [tensor._version for tensor in inputs]
        self._capturing = True
        try:
            warmed = self._tried(lambda: self.backend.warm(run, device), torch.OutOfMemoryError)
            if versions != [tensor._version for tensor in inputs]:
                raise self._gives_up("its forward writes into an argument")
            for leaf in tree_flatten(warmed)[0]:
                if type(leaf) not in RESULTS:
                    raise self._gives_up(f"its result holds a {type(leaf).__name__}, which cannot be copied")
            del warmed
            results, replay = self._tried(lambda: self.backend.capture(run, device), Exception)
        finally:
            self._capturing = False
        self.captures += 1
        return Captured(inputs, *tree_flatten(results), replay)

    def _tried(self, step: Callable[[], Any], expected: type[Exception]) -> Any:
        """``step()``; no graphs of this model any more where that fails as ``expected``."""
        try:
            return step()
        except expected as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise self._gives_up(f"a call could not be captured: {said}") from error

    def _gives_up(self, reason: str) -> GivenUp:
        self._drop()
        self.failed = reason
        return GivenUp(reason)


def _kind(value: Any, tensors: list[Tensor]) -> tuple:
    """What of an argument a graph is bound to; its tensors are appended to ``tensors``.

    Raises:
        Refused: it may be another the next time, without being told from this one.
    """
    kind = type(value)
    if kind in ORDINARY and value.layout == torch.strided and not value.is_nested and not value.is_quantized:
        tensors.append(value)
        return value.shape, value.stride(), value.dtype, value.device
    if kind is tuple or kind is list:
        return kind, *(_kind(part, tensors) for part in value)
    if kind is dict and all(type(name) is str for name in value):
        return kind, *((name, _kind(part, tensors)) for name, part in value.items())
    if kind in PLAIN:
        return kind, value.hex() if kind is float else value  # -0.0 is another than 0.0, nan the same as nan
    raise Refused(
        f"an argument is a {kind.__name__}, not a dense tensor, number, string or list, tuple or dict of them"
    )


def _names(devices: set[torch.device]) -> str:
    return ", ".join(sorted(map(str, devices)))


def _settings(device: torch.device) -> tuple:
    """What else decides which kernels run."""
    backends, kind = torch.backends, device.type
    return (
        dispatch.current_backend(),
        torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
        torch.are_deterministic_algorithms_enabled(),
        _precision(backends.cuda.matmul),
        _precision(getattr(backends.cudnn, "conv", backends.cudnn)),
        backends.cuda.flash_sdp_enabled(),
        backends.cuda.mem_efficient_sdp_enabled(),
    )


def _precision(switch: Any) -> Any:
    """The newer of two switches of PyTorch, where there is one: the older cannot be read where this one was set."""
    precision = getattr(switch, "fp32_precision", None)
    return switch.allow_tf32 if precision is None else precision


def _without_cache(device: torch.device) -> torch.autocast:
    """Autocast as it is, but weights are cast within the graph: its cache is emptied when the caller's block ends."""
    kind = device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False)
