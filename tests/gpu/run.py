"""``make gpu``: what a GPU is lent for, within 12 minutes, the most telling first: is every operator right there, can a
CUDA graph hold it, how long does it take; then all other tests.

    python tests/gpu/run.py [minutes] [--only benchmarks | tests] [--copy FOLDER]

What was found is in benchmarks/results/<gpu>/, to be committed: the benchmarks, which verify each case before they time
it, save it as it is done and go on where an earlier run ended; and session.jsonl, the machine and how each stage ended.
With --copy it is in FOLDER too, part by part: up to 9 files.
"""

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 12.0
GRACE = 15.0  # seconds to say what was done so far
AT_ONCE = 8  # tests
RIGHT = "test_meets_float64"
HELD = "graph"
MEMORY = "past_two_to_the_31 or more_groups or no_batch_of_score"  # of tests that want the GPU's memory to themselves


class Stage(NamedTuple):
    """``share``: of all the time, and what the stages before have left of theirs. ``tests``: which, as pytest's -k has
    it; "" for the benchmarks. ``alone``: one after the other."""

    name: str
    share: float
    tests: str = ""
    alone: bool = False


STAGES = (
    Stage("every operator against float64", 0.25, f"{RIGHT} and not {HELD}"),
    Stage("CUDA graphs", 0.1, HELD),
    Stage("benchmarks", 0.45),
    Stage("other tests", 0.15, f"not ({RIGHT} or {HELD} or {MEMORY})"),
    Stage("tests of large memory", 0.05, MEMORY, alone=True),
)


class Machine:
    """What this needs of the machine it runs on: the time, the GPU, and processes."""

    clock = staticmethod(time.monotonic)

    def obstacle(self) -> str | None:
        """Why nothing can be run."""
        try:
            import torch
        except ImportError:
            return "torch is not installed. Install it with: pip install torch"
        return None if torch.cuda.is_available() else "torch sees no GPU, so nothing was run"

    def environment(self) -> tuple[dict, Path]:
        """What it is, and the folder of its results."""
        sys.path.insert(0, str(ROOT))
        import torch

        from benchmarks import results

        device = torch.device("cuda")
        return results.environment(device), results.automatic_path(device, "session").parent

    def run(self, command: list[str], seconds: float) -> str | None:
        """Run ``python -m command`` -> what went wrong, or None."""
        environment = os.environ | {"TRITON_INTERPRET": "0", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
        interruptible = dict(preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, **interruptible)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
            return "ran out of time"
        return None if code == 0 else f"failed with exit code {code}"


def chosen(only: str | None) -> list[Stage]:
    """The stages that are run, whose shares are all the time."""
    stages = [stage for stage in STAGES if only is None or (only == "tests") == bool(stage.tests)]
    whole = sum(stage.share for stage in stages)
    return [stage._replace(share=stage.share / whole) for stage in stages]


def command(stage: Stage, seconds: float, report: Path, copy: Path | None = None) -> list[str]:
    """``report``: where pytest leaves what became of each test."""
    if not stage.tests:
        plan = ["benchmarks", "plan", "--minutes", f"{max(seconds - GRACE, 0) / 60:.2f}"]
        return plan + (["--copy", str(copy)] if copy else [])
    pytest = ["pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider", f"--junitxml={report}"]
    parallel = [] if stage.alone or importlib.util.find_spec("xdist") is None else ["-n", str(AT_ONCE)]
    return [*pytest, *parallel, "-k", stage.tests]


def counted(report: Path) -> dict[str, int]:
    """How many tests there were, and how many of them failed or were skipped; nothing where pytest did not end."""
    found = re.search(r"<testsuite [^>]*>", report.read_text()) if report.exists() else None
    names = ("tests", "failures", "errors", "skipped")
    return {} if found is None else {name: int(re.search(rf' {name}="(\d+)"', found[0])[1]) for name in names}


def session(
    machine: Machine, minutes: float, only: str | None, copy: Path | None, record: Callable[[dict], None]
) -> list[str]:
    """Run the stages, each for its share and what was left before it; ``record`` how each ended -> what went wrong."""
    total, start, problems = 60 * minutes, machine.clock(), []
    stages = chosen(only)
    for i, stage in enumerate(stages):
        begun = machine.clock()
        left = total - (begun - start) - total * sum(later.share for later in stages[i + 1 :])
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.xml"
            line = command(stage, max(left, 1.0), report, copy)
            print(f"\n== {stage.name}: {' '.join(line)} (at most {max(left, 1.0) / 60:.1f} minutes)\n", flush=True)
            problem = machine.run(line, max(left, 1.0))
            seconds = round(machine.clock() - begun, 1)
            record(dict(stage=stage.name, problem=problem, seconds=seconds, **counted(report)))
        problems += [f"{stage.name} {problem}"] if problem else []
    return problems


def main(arguments: list[str], machine: Machine | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", nargs="?", type=float, default=MINUTES)
    parser.add_argument("--only", choices=("benchmarks", "tests"))
    parser.add_argument("--copy", type=Path, metavar="FOLDER")
    options, machine = parser.parse_args(arguments), machine or Machine()
    obstacle = machine.obstacle()
    if obstacle is not None:
        print(f"make gpu: {obstacle}")
        return 2
    environment, folder = machine.environment()
    known = [environment]

    def record(stage: dict) -> None:
        known.append(stage)
        for place in filter(None, (folder, options.copy)):
            place.mkdir(parents=True, exist_ok=True)
            (place / "session.jsonl").write_text("".join(json.dumps(line) + "\n" for line in known))

    problems = session(machine, options.minutes, options.only, options.copy, record)
    print(f"\n== gpu: {'; '.join(problems) if problems else 'everything succeeded'}", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
