"""``make gpu``: the GPU tests, then the benchmarks into benchmarks/results/<gpu>/, within 20 minutes.

    python tests/gpu/run.py [minutes]

Whatever was measured when time runs out has been saved: each case is written as it is done.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MINUTES = 19.0
TESTS_SHARE = 0.5  # of the time; what the tests leave goes to the benchmarks


def run(name: str, command: list[str], seconds: float) -> str | None:
    """What went wrong, or None."""
    print(f"\n== {name}: {' '.join(command)} (at most {seconds / 60:.0f} minutes)\n", flush=True)
    environment = os.environ | {"TRITON_INTERPRET": "0", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    try:
        code = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=environment, timeout=seconds).returncode
    except subprocess.TimeoutExpired:
        return f"{name} ran out of time"
    return None if code == 0 else f"{name} failed with exit code {code}"


def main(minutes: float) -> int:
    try:
        import torch
    except ImportError:
        print("make gpu: torch is not installed. Install it with: pip install torch")
        return 2
    if not torch.cuda.is_available():
        print("make gpu: torch sees no GPU, so nothing was run")
        return 2
    end = time.monotonic() + minutes * 60
    problems = [run("tests", ["pytest", "-q", "-m", "gpu", "tests/gpu"], minutes * 60 * TESTS_SHARE)]
    left = end - time.monotonic()
    problems.append(run("benchmarks", ["benchmarks", "--plan", "--minutes", f"{left / 60 - 1:.1f}"], left))
    problems = [problem for problem in problems if problem]
    print(
        "\n== gpu: " + ("; ".join(problems) if problems else "tests passed, results saved in benchmarks/results"),
        flush=True,
    )
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if len(sys.argv) > 1 else MINUTES))
