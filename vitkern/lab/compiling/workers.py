"""Compiles cells, each a launch for an architecture, in worker processes: a compiler that aborts fails one cell.

The workers share a cache of Triton's on disk, so what two launches have in common is compiled once. It is a temporary
folder, unless TRITON_CACHE_DIR names one.
"""

import multiprocessing
import os
import queue
import signal
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from vitkern.lab.compiling.compiled import Compiled
from vitkern.lab.processes import uninterrupted

TIMEOUT = 900.0  # seconds that one cell may take
Cell = tuple[str, int]  # name of a launch, architecture


@dataclass(frozen=True)
class Done:
    """A cell's kernels, or why there are none: ``failed``, one line, empty where it compiled. ``cpu``: seconds."""

    cell: Cell
    kernels: list[Compiled]
    failed: str
    cpu: float


def compile_cell(name: str, arch: int) -> list[Compiled]:
    """The kernels of one launch, compiled in this process."""
    from vitkern.lab.compiling.compiled import compile_launches
    from vitkern.lab.compiling.matrix import launches

    return compile_launches(launches()[name].run, arch)


def _serve(connection, compiler, cache: str) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # one that a thread started again was interrupted so far
    os.environ["TRITON_CACHE_DIR"] = cache
    import torch

    torch.set_num_threads(1)
    while True:
        cell, failed, kernels, before = connection.recv(), "", [], sum(os.times()[:4])
        try:
            kernels = compiler(*cell)
        except Exception as error:
            text = str(error).strip() or "no message"
            failed = f"{type(error).__name__}: {text.splitlines()[0]}"[:300]
        connection.send(Done(cell, kernels, failed, sum(os.times()[:4]) - before))


class _Worker:
    """One process, started again after the compiler ended it."""

    def __init__(self, *arguments):
        self.arguments, self.process = arguments, None

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, *self.arguments), daemon=True)
        self.process.start()
        other.close()

    def compile(self, cell: Cell) -> Done:
        if self.process is None:
            self.start()
        try:
            self.connection.send(cell)
            if self.connection.poll(TIMEOUT):
                return self.connection.recv()
            failed = f"took longer than {TIMEOUT:.0f} s"
        except (EOFError, OSError):
            self.process.join(10)
            failed = f"the compiler ended its process (exit code {self.process.exitcode})"
        self.stop()
        return Done(cell, [], failed, 0.0)

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.join()
            self.connection.close()
            self.process = None


def default_jobs() -> int:
    return max(1, min(8, os.cpu_count() or 1))


def compile_cells(cells: Sequence[Cell], jobs: int, compiler=compile_cell) -> Iterator[Done]:
    """Yield the cells as they finish. ``compiler``: see `compile_cell`."""
    with tempfile.TemporaryDirectory() as folder:
        cache = os.environ.get("TRITON_CACHE_DIR") or folder
        workers = [_Worker(compiler, cache) for _ in range(max(1, min(jobs, len(cells))))]
        idle = queue.SimpleQueue()
        with uninterrupted():
            for worker in workers:
                worker.start()
                idle.put(worker)

        def one(cell):
            worker = idle.get()
            try:
                return worker.compile(cell)
            finally:
                idle.put(worker)

        with ThreadPoolExecutor(len(workers)) as threads:
            waiting = [threads.submit(one, cell) for cell in cells]
            try:
                for done in as_completed(waiting):
                    yield done.result()
            finally:
                for future in waiting:
                    future.cancel()
                for worker in workers:
                    worker.stop()
