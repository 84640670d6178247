"""A process that has imported torch and Triton but no kernel, and forks a child for each broken kernel to be judged in.

    python -m vitkern.lab.breaking.nursery < jobs > verdicts

One JSON object a line: `Job` in, `Verdict` out, in the order in which they end. A child that crashes, hangs or runs out
of its time has found a fault.
"""

import contextlib
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace

from vitkern.lab.breaking.checks import Checks, checks_of

CPU_SECONDS = 120  # of a child, before its tests
TEST_SECONDS = 240
WALL_FACTOR = 8  # other processes take their share


@dataclass(frozen=True)
class Job:
    """``sources`` replace files of kernels/; the checks of ``file`` judge them, or the ``first`` of its problems alone.
    ``tests``: whether to run the family's tests when the checks find nothing. ``offsets``: whether offsets beyond 2^31
    are tried too."""

    name: str
    file: str
    sources: dict[str, str] = field(default_factory=dict)
    tests: bool = False
    first: int | None = None
    offsets: bool = False

    def checks(self) -> Checks:
        checks = checks_of(self.file)
        if self.first is not None:
            return Checks(checks.trials[: self.first])
        return replace(checks, special=("offsets", *checks.special)) if self.offsets else checks


@dataclass(frozen=True)
class Verdict:
    """``by`` says in a line what found the fault; empty: nothing did, the kernel lives. ``seconds``: of a processor."""

    name: str
    by: str
    seconds: float

    @property
    def killed(self) -> bool:
        return bool(self.by)


def judged(jobs: Iterable[Job], parallel: int) -> Iterator[Verdict]:
    """Verdicts as they come, from a process of its own."""
    jobs = list(jobs)
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "vitkern.lab.breaking.nursery", str(parallel)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        process.stdin.write("".join(json.dumps(asdict(job)) + "\n" for job in jobs))
        process.stdin.close()
        count = 0
        for line in process.stdout:
            count += 1
            yield Verdict(**json.loads(line))
    if process.returncode or count != len(jobs):
        raise RuntimeError(
            f"nursery: ended with {process.returncode}: got {count} verdicts; expected {len(jobs)}. See above."
        )


def _serve(parallel: int) -> None:
    jobs = [Job(**json.loads(line)) for line in sys.stdin]
    import numpy  # noqa: F401  a child inherits what is imported here
    import pytest  # noqa: F401
    import torch
    import torch._dynamo
    import torch.utils.flop_counter
    import triton.language  # noqa: F401

    from vitkern.lab.breaking import judge  # noqa: F401
    from vitkern.lab.breaking.planting import imported_kernels
    from vitkern.lab.interpreting import interpreter, sanitizer  # noqa: F401

    torch.set_num_threads(1)
    trials = {}  # what a problem should give is computed once, here
    for job in jobs:
        for one in job.checks().trials:
            if id(one) not in trials:
                trials[id(one)] = one.trial()
    if imported_kernels():
        raise RuntimeError(f"nursery: a kernel is imported already: got {imported_kernels()}; expected none.")
    waiting, running = list(reversed(jobs)), {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop()
                child = _Child(job, [trials[id(one)] for one in job.checks().trials])
                running[child.pipe] = child
            ready, _, _ = select.select(list(running), [], [], 0.2)
            for child in list(running.values()):
                if child.pipe in ready or time.monotonic() > child.deadline:
                    verdict = child.finish()
                    if verdict is not None:
                        del running[child.pipe]
                        print(json.dumps(asdict(verdict)), flush=True)
    finally:
        for child in running.values():  # of one that was interrupted
            child.kill()


class _Child:
    """A forked process that judges one job and writes what found it into a pipe."""

    def __init__(self, job: Job, trials: list):
        self.job, self.text = job, b""
        limit = CPU_SECONDS + (TEST_SECONDS if job.tests else 0)
        self.deadline = time.monotonic() + WALL_FACTOR * limit
        self.pipe, end = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(end)
            return
        try:
            os.close(self.pipe)
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            nowhere = os.open(os.devnull, os.O_RDWR)
            for stream in (0, 1, 2):
                os.dup2(nowhere, stream)
            by = _by(job, trials)
            os.write(end, b"done " + by.encode()[:2000])
        except BaseException as error:
            os.write(end, f"done {type(error).__name__}: {error}".encode()[:2000])
        finally:
            os._exit(0)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def finish(self) -> Verdict | None:
        """The verdict, or None where the child is still writing."""
        hung = time.monotonic() > self.deadline
        if hung:
            self.kill()
        if block := os.read(self.pipe, 65536):
            self.text += block
            if not hung:
                return None
        _, status, used = os.wait4(self.pid, 0)
        os.close(self.pipe)
        if self.text.startswith(b"done "):
            by = self.text[5:].decode(errors="replace")
        elif hung or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
            by = "time: did not end"
        else:
            by = f"crash: the process ended with status {status}"
        return Verdict(self.job.name, by, round(used.ru_utime + used.ru_stime, 2))


def _by(job: Job, trials: list) -> str:
    from vitkern.lab.breaking import judge, planting

    planting.plant(job.sources)
    checks = job.checks()
    found = judge.fault(checks, trials, job.file)
    return found or (judge.failed_test(checks) if job.tests else "")


if __name__ == "__main__":
    try:
        _serve(int(sys.argv[1]))
    except KeyboardInterrupt:  # of a terminal; whoever started this one says so
        sys.exit(130)
