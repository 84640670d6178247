"""Threads that each do a part of a call, with one thread inside operators: made once a process, idle in between."""

import contextvars
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import torch


class Workers:
    """As many threads as were asked for last. They work for one call at a time.

    PyTorch and its libraries (OpenMP, oneDNN, MKL) keep the number of threads inside operators by calling thread: that
    of a worker is one for good, and nobody else's changes.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._count = 0
        self._taken = threading.Lock()

    def run(self, parts: list[Callable[[], Any]]) -> list[Any] | None:
        """What each of ``parts`` returns, each done by a worker under the modes of this thread; None where they work
        for another call, the one that this is a part of for example, or where the process can have no more threads.

        Raises:
            BaseException: what a part raises, once all have ended.
        """
        if not self._taken.acquire(blocking=False):
            return None
        futures: list[Future] = []
        try:
            try:
                executor = self._ready(len(parts))
                futures += [executor.submit(_as_here(part)) for part in parts]
            except RuntimeError:  # no thread can be started; at the end of the process none may
                return None
            wait(futures)
            return [future.result() for future in futures]
        finally:
            wait(futures)  # after an interrupt, too, nothing runs on behind the caller's back, unless by a second one
            self._taken.release()

    def _ready(self, count: int) -> ThreadPoolExecutor:
        if self._executor is None or self._count != count:
            if self._executor is not None:
                self._executor.shutdown(wait=False)
            self._executor = None  # where none can be started
            self._executor, self._count = _start(count), count
        return self._executor


def _start(count: int) -> ThreadPoolExecutor:
    """``count`` threads, all started.

    What a thread sets its number to is what threads that PyTorch has not seen yet start with. So this is put back, by
    a thread of its own, as it was.
    """
    executor = ThreadPoolExecutor(count, "vitkern-images")
    (default,) = _elsewhere(torch.get_num_threads)
    all_there = threading.Barrier(count)

    def settle() -> None:
        torch.get_num_threads()  # PyTorch's first question of a thread sets its number: now, not later
        torch.set_num_threads(1)
        all_there.wait()

    try:
        for future in [executor.submit(settle) for _ in range(count)]:
            future.result()
    except BaseException:
        all_there.abort()
        executor.shutdown(wait=False)
        raise
    finally:
        _elsewhere(lambda: torch.set_num_threads(default))
    return executor


def _elsewhere(ask: Callable[[], Any]) -> list[Any]:
    """[``ask()``], in a new thread."""
    answers: list[Any] = []
    thread = threading.Thread(target=lambda: answers.append(ask()))
    thread.start()
    thread.join()
    return answers


def _as_here(part: Callable[[], Any]) -> Callable[[], Any]:
    """``part`` under the modes of this thread: gradients, inference, autocast, context variables."""
    context = contextvars.copy_context()
    grad, inference, casts = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), _autocast()

    def done() -> Any:
        before = _autocast()
        _set_autocast(*casts)  # not a block of autocast: the end of one empties the cache of all
        try:
            with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                return context.run(part)
        finally:
            _set_autocast(*before)

    return done


def _autocast() -> tuple[bool, torch.dtype, bool]:
    return torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled()


def _set_autocast(enabled: bool, dtype: torch.dtype, cache: bool) -> None:
    torch.set_autocast_enabled("cpu", enabled)
    torch.set_autocast_dtype("cpu", dtype)
    torch.set_autocast_cache_enabled(cache)


WORKERS = Workers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WORKERS.__init__)  # type: ignore[misc]  # a child has none of the threads
