"""``make gpu``: the benchmarks into benchmarks/results/<gpu>/, then the GPU tests, within 25 minutes.

    python tests/gpu/run.py [minutes] [--only benchmarks | tests] [--copy FOLDER]

The benchmarks verify each case before they time it, save it as it is done, and go on where an earlier run ended. With
--copy what was written is in FOLDER too, after each part: up to 8 files.
"""

import argparse
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 25.0
SHARE = 0.6  # of the time, for the benchmarks
GRACE = 15.0  # seconds to say what was done so far
AT_ONCE = 8  # tests
MEMORY = "past_two_to_the_31 or more_groups or no_batch_of_score"  # of tests that want the GPU's memory to themselves


def run(name: str, command: list[str], seconds: float) -> str | None:
    """What went wrong, or None."""
    print(f"\n== {name}: {' '.join(command)} (at most {seconds / 60:.1f} minutes)\n", flush=True)
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
        return f"{name} ran out of time"
    return None if code == 0 else f"{name} failed with exit code {code}"


def jobs(only: str | None, minutes: float, copy: str | None) -> list[tuple[str, list[str], float]]:
    """(name, command, minutes) of what is run."""
    benchmarks = minutes if only == "benchmarks" else SHARE * minutes
    tests = minutes if only == "tests" else minutes - benchmarks
    found = []
    if only != "tests":
        plan = ["benchmarks", "plan", "--minutes", f"{benchmarks - GRACE / 60:.2f}"]
        found.append(("benchmarks", plan + (["--copy", copy] if copy else []), benchmarks))
    if only != "benchmarks":
        pytest = ["pytest", "-q", "-m", "gpu", "tests/gpu", "-p", "no:cacheprovider"]
        parallel = ["-n", str(AT_ONCE)] if importlib.util.find_spec("xdist") else []
        found.append(("tests", [*pytest, *parallel, "-k", f"not ({MEMORY})"], 0.8 * tests))
        found.append(("tests of large memory", [*pytest, "-k", MEMORY], 0.2 * tests))
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("minutes", nargs="?", type=float, default=MINUTES)
    parser.add_argument("--only", choices=("benchmarks", "tests"))
    parser.add_argument("--copy", metavar="FOLDER")
    options = parser.parse_args(arguments)
    try:
        import torch
    except ImportError:
        print("make gpu: torch is not installed. Install it with: pip install torch")
        return 2
    if not torch.cuda.is_available():
        print("make gpu: torch sees no GPU, so nothing was run")
        return 2
    start, problems = time.monotonic(), []
    for name, command, minutes in jobs(options.only, options.minutes, options.copy):
        left = 60 * options.minutes - (time.monotonic() - start)
        problems.append(run(name, command, min(60 * minutes, max(left, 1.0))))
    problems = [problem for problem in problems if problem]
    print(f"\n== gpu: {'; '.join(problems) if problems else 'everything succeeded'}", flush=True)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
