"""Work spread over processes that an interruption leaves to the one that started them, and that end with it."""

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import active_children, get_context


@contextmanager
def submitted(
    function: Callable, calls: Sequence[tuple], jobs: int, prepare: Callable[[], None]
) -> Iterator[list[Future]]:
    """The futures of ``function(*call)`` for each of ``calls``, in ``jobs`` new processes, which ``prepare`` first.

    Where the block ends before they have, the processes are ended.
    """
    before, pool = set(active_children()), ProcessPoolExecutor(jobs, get_context("spawn"), initializer=prepare)
    try:
        with uninterrupted():
            futures = [pool.submit(function, *call) for call in calls]
        yield futures
    except BaseException:
        for process in set(active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown()


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Processes that are started within the block are not interrupted when a terminal interrupts this one."""
    if threading.current_thread() is not threading.main_thread():  # others are never interrupted
        yield
        return
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
