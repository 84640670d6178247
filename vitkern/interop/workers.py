"""Threads that each do a part of a call, with one thread inside operators: made once a process, idle in between."""

import contextvars
import os
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import torch


class Workers:
    """As many threads as were asked for last. They work for one call at a time, and end with the process.

    PyTorch and its libraries (OpenMP, oneDNN, MKL) keep the number of threads inside operators by calling thread: that
    of a worker is one for good, and nobody else's changes.
    """

    def __init__(self) -> None:
        self._workers: list[_Worker] = []
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
            if not self._ready(len(parts)):
                return None
            for worker, part in zip(self._workers, parts, strict=True):
                futures.append(worker.do(_as_here(part)))
            wait(futures)
            return [future.result() for future in futures]
        finally:
            wait(futures)  # after an interrupt, too, nothing runs on behind the caller's back, unless by a second one
            self._taken.release()

    def _ready(self, count: int) -> bool:
        """Whether there are ``count`` workers now.

        The number that a thread has set is what threads that PyTorch has not seen yet start with. So this is put back,
        by a thread of its own, as it was.
        """
        while len(self._workers) > count:
            self._workers.pop().end()
        if len(self._workers) == count:
            return True
        try:
            default = _elsewhere(torch.get_num_threads)
            try:
                while len(self._workers) < count:
                    self._workers.append(_Worker())
            finally:
                _elsewhere(lambda: torch.set_num_threads(default))
        except RuntimeError:  # no thread can be started
            torch.set_num_threads(torch.get_num_threads())
            return False
        return True


class _Worker:
    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, name="vitkern-images", daemon=True).start()
        self.do(_settle).result()

    def do(self, job: Callable[[], Any]) -> Future:
        """``job()``, to come."""
        future: Future = Future()
        self._jobs.put((job, future))
        return future

    def end(self) -> None:
        """Once it has done what it was given."""
        self._jobs.put(None)

    def _work(self) -> None:
        for job, future in iter(self._jobs.get, None):
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)
            del job, future  # idle, it holds nothing of a call


def _settle() -> None:
    torch.get_num_threads()  # PyTorch's first question of a thread sets its number: now, not later
    torch.set_num_threads(1)


def _elsewhere(ask: Callable[[], Any]) -> Any:
    """``ask()``, in a new thread."""
    answer: Future = Future()
    threading.Thread(target=lambda: answer.set_result(ask())).start()
    return answer.result()


def _as_here(part: Callable[[], Any]) -> Callable[[], Any]:
    """``part`` under the modes of this thread: gradients, inference, autocast, context variables."""
    context = contextvars.copy_context()
    grad, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    casts, dtype, cache = (
        torch.is_autocast_enabled("cpu"),
        torch.get_autocast_dtype("cpu"),
        torch.is_autocast_cache_enabled(),
    )

    def done() -> Any:
        torch.set_autocast_enabled("cpu", casts)  # not a block of autocast, whose end empties the cache of all threads
        torch.set_autocast_dtype("cpu", dtype)
        torch.set_autocast_cache_enabled(cache)
        with torch.inference_mode(inference), torch.set_grad_enabled(grad):
            return context.run(part)

    return done


WORKERS = Workers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=WORKERS.__init__)  # type: ignore[misc]  # a child has none of the threads
