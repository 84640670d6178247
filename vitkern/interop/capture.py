"""Capture and replay of CUDA graphs: the one place that asks CUDA for them."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch

_broken: list[torch.cuda.CUDAGraph] = []  # captures that failed, which PyTorch's allocator may still ask
_one_at_a_time = threading.Lock()  # captures of a process, as PyTorch wants it
WARM_UPS = 3  # as torch.cuda.make_graphed_callables does: libraries pick their kernels, caches fill


class Backend(Protocol):
    """What `vitkern.interop.graphs.Graphs` needs; one for each model."""

    device_type: str

    def warm(self, run: Callable[[], Any], device: torch.device) -> Any:
        """Call ``run`` as often as a capture needs it -> the last result."""

    def capture(self, run: Callable[[], Any], device: torch.device) -> tuple[Any, Callable[[], None]]:
        """The result of ``run``, and what fills it anew from the memory that ``run`` read."""

    def ordered(self, device: torch.device) -> Any:
        """A context: what is done in it comes after what was done in the last one, on whatever stream."""

    def settle(self, device: torch.device) -> None:
        """Wait until no replay is under way."""


class CudaBackend:
    """Graphs that share one pool of memory: they never run at once, and their results are copied before the next."""

    device_type = "cuda"

    def __init__(self) -> None:
        self._sides: dict[torch.device, torch.cuda.Stream] = {}
        self._pools: dict[torch.device, Any] = {}
        self._done: dict[torch.device, tuple[torch.cuda.Stream, torch.cuda.Event]] = {}

    def warm(self, run: Callable[[], Any], device: torch.device) -> Any:
        with torch.cuda.device(device):
            side, current = self._side(device), torch.cuda.current_stream(device)
            side.wait_stream(current)
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    result = run()
            current.wait_stream(side)
        return result

    def capture(self, run: Callable[[], Any], device: torch.device) -> tuple[Any, Callable[[], None]]:
        with torch.cuda.device(device), _one_at_a_time:
            if device not in self._pools:
                self._pools[device] = torch.cuda.graph_pool_handle()
            graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream(device)
            pool, side = self._pools[device], self._side(device)
            try:
                # what other threads do meanwhile, those that load data for one, is no part of it
                with torch.cuda.graph(graph, pool=pool, stream=side, capture_error_mode="thread_local"):
                    result = run()
            except Exception:
                self._mend(graph, current)
                raise
        return result, graph.replay

    def _mend(self, broken: torch.cuda.CUDAGraph, current: torch.cuda.Stream) -> None:
        """After a capture that failed PyTorch may stay on its stream, hold on to its graph, and take random numbers to
        be captured still, which the end of another capture ends."""
        torch.cuda.set_stream(current)
        _broken.append(broken)
        self._pools.pop(current.device, None)
        with suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph(), capture_error_mode="thread_local"):
            torch.zeros(1, device=current.device)

    @contextmanager
    def ordered(self, device: torch.device) -> Iterator[None]:
        with torch.cuda.device(device):
            current = torch.cuda.current_stream(device)
            last, done = self._done.get(device) or (current, torch.cuda.Event())
            if last != current:
                current.wait_event(done)
            try:
                yield
            finally:
                done.record(current)
                self._done[device] = current, done

    def settle(self, device: torch.device) -> None:
        torch.cuda.synchronize(device)

    def _side(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._sides:
            self._sides[device] = torch.cuda.Stream(device)
        return self._sides[device]
