"""Runs a suite on every core, two jobs at a time, and ends with a verdict and what took longest.

    python tests/run.py [test | prove] [--record] [pytest arguments]

``test`` is every check of the package: lint, the tests, the kernels in the interpreter, the kernels compiled ahead of
time. ``prove`` is the laboratory at full counts, models that learn, and all cases of tests that go over every operator,
model or tool; ``test`` runs a part of those, another one each time. Kernels are either interpreted or compiled in one
process, so these are separate jobs. Tests run in random order; the seed that is printed gives the same order, and the
same part, again with ``--randomly-seed=SEED``. Each job has temporary files and caches of its own. With ``--record``
the durations by which the tests are split are written anew.
"""

import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from shares import record, shares, tests_of

ROOT = Path(__file__).resolve().parent.parent
LAB = [sys.executable, "-m", "vitkern", "lab"]
SLOWEST = 10
TOLD = 12  # lines of each job that failed, repeated at the end
WALK = "pytest.mark.walk("
BEAT = 30.0  # seconds from one line to the next while nothing ends


class Job(NamedTuple):
    """``tests``: paths, if it is one of pytest."""

    command: list[str]
    tests: tuple[str, ...] = ()
    interpreted: bool = False
    again: bool = False  # the tests are those of another job, with cases that it leaves out


def pytest(*tests: str, interpreted: bool = False) -> Job:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "junit_family=xunit1"]
    return Job([*command, "--part"], tests, interpreted)


def walks(*folders: str, interpreted: bool = False) -> Job:
    """All cases of what `make test` runs a part of."""
    files = [path for folder in folders for path in sorted((ROOT / folder).glob("test_*.py"))]
    job = pytest(*(str(path.relative_to(ROOT)) for path in files if WALK in path.read_text()), interpreted=interpreted)
    return job._replace(command=[*job.command[:-1], "-m", "walk"], again=True)


def split(name: str, pattern: str, count: int, interpreted: bool = False) -> dict[str, Job]:
    files = [str(path.relative_to(ROOT)) for path in ROOT.glob(pattern)]
    found = enumerate(shares(files, count), 1)
    return {f"{name}, {number} of {count}": pytest(*share, interpreted=interpreted) for number, share in found}


def suite(name: str) -> dict[str, Job]:
    """The longest first, as two run at a time, and last shares of one length, so that both cores end together."""
    if name == "prove":
        return {
            "compile": Job([*LAB, "compile", "--jobs", "2"]),
            "every operator, model and tool": walks("tests", "tests/compiler"),
            "every operator, interpreted": walks("tests/interpreter", interpreted=True),
            "fuzz": Job([*LAB, "fuzz", "--jobs", "1"]),
            "another Triton": Job([sys.executable, "tests/other_triton.py", "3.6"]),
            "gradients": Job([*LAB, "gradients"]),
            "edges": Job([*LAB, "edges"]),
            "offsets": Job([*LAB, "offsets"]),
            "models learn": pytest("tests/learning"),
        }
    return {
        "lint": Job([sys.executable, "-m", "ruff", "check", "."]),
        "format": Job([sys.executable, "-m", "ruff", "format", "--check", "."]),
        "types": Job([sys.executable, "-m", "mypy"]),
        **split("kernels interpreted", "tests/interpreter/test_*.py", 2, interpreted=True),
        "kernels compiled, and on a GPU": pytest("tests/compiler", "tests/gpu"),
        **split("tests", "tests/test_*.py", 5),
    }


class Run:
    """A job that was started: its log and its report lie in ``folder``, and so do its temporary files."""

    def __init__(self, job: Job, arguments: list[str], folder: Path):
        scratch = folder / "tmp"
        scratch.mkdir(parents=True)
        self.log, self.report = folder / "log", folder / "report.xml"
        self.command = [*job.command, *arguments, *job.tests]
        environment = {
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
            "TRITON_INTERPRET": str(int(job.interpreted)),
            "TMPDIR": str(scratch),
            "TRITON_CACHE_DIR": str(scratch / "triton"),
        }
        self.shown = f"TRITON_INTERPRET={environment['TRITON_INTERPRET']} {shlex.join(['python', *self.command[1:]])}"
        command = [*self.command, f"--junitxml={self.report}"] if job.tests else self.command
        self.since = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | environment, stdout=log, stderr=subprocess.STDOUT
            )

    def said(self) -> str:
        return self.log.read_text().rstrip()

    def last_line(self) -> str:
        return (self.said().splitlines() or [""])[-1][-100:]


def telling(said: str) -> list[str]:
    """Of what a job that failed said: lines that begin with FAILED, each with the two after it; else the last."""
    lines = said.splitlines()
    chosen = sorted({i + k for i, line in enumerate(lines) if line.startswith("FAILED") for k in range(3)})
    return [lines[i][:200] for i in chosen if i < len(lines)][-TOLD:] or lines[-TOLD:]


def run(jobs: dict[str, Job], arguments: list[str], folder: Path) -> tuple[dict[str, float], dict[str, str]]:
    """The seconds of each job, and what those said that failed."""
    waiting, running, took, failed, beat = list(jobs), {}, {}, {}, time.monotonic()
    while waiting or running:
        while waiting and len(running) < max(2, (os.cpu_count() or 2) // 2):
            name = waiting.pop(0)
            running[name] = Run(jobs[name], arguments if jobs[name].tests else [], folder / str(list(jobs).index(name)))
            print(f"== {name}: started", flush=True)
        time.sleep(0.2)
        for name, job in list(running.items()):
            if job.process.poll() is None:
                continue
            del running[name]
            took[name] = time.monotonic() - job.since
            print(f"\n== {name}: {'FAILED' if job.process.returncode else 'passed'} in {took[name]:.0f} s")
            print(job.said(), flush=True)
            if job.process.returncode:
                failed[name] = job.said()
                print(f"   again: {job.shown}", flush=True)
        if running and time.monotonic() - beat > BEAT:
            beat = time.monotonic()
            for name, job in running.items():
                print(f"   {name}, {beat - job.since:.0f} s: {job.last_line()}", flush=True)
    return took, failed


def main(arguments: list[str]) -> int:
    name = arguments.pop(0) if arguments and arguments[0] in ("test", "prove") else "test"
    recording = "--record" in arguments
    arguments = [argument for argument in arguments if argument != "--record"]
    seed = [argument for argument in arguments if argument.startswith("--randomly-seed=")]
    if not seed:
        seed = [f"--randomly-seed={random.SystemRandom().getrandbits(32)}"]
        arguments += seed
    begun, jobs = time.monotonic(), suite(name)
    if name == "test":
        print(f"== tests in random order: {seed[-1]}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        took, failed = run(jobs, arguments, Path(folder))
        reports = {name: Path(folder) / str(number) / "report.xml" for number, name in enumerate(jobs)}
        if recording:
            record(reports.values())
        longest = max(took, key=took.get)
        print(f"\n== the longest: {longest}, {took[longest]:.0f} s")
        for seconds, file, test in tests_of(reports[longest])[:SLOWEST]:
            print(f"{seconds:8.1f} s  {file}::{test}")
    verdict = f"FAILED: {', '.join(failed)}" if failed else "everything passed"
    print(f"\n== {verdict}, in {time.monotonic() - begun:.0f} s", flush=True)
    if name == "prove":
        subprocess.run(LAB, cwd=ROOT)
    for job, said in failed.items():  # again: whoever reads the end of a long log should see it
        print(f"== FAILED: {job}", *telling(said), sep="\n", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
