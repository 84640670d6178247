"""Runs a suite on every core, two jobs at a time, and ends with a verdict.

    python tests/run.py [test | prove] [pytest arguments]

``test`` is every check of the package: lint, the tests, the kernels in the interpreter, the kernels compiled ahead of
time. ``prove`` is the laboratory at full counts. Kernels are either interpreted or compiled in one process, so these
are separate jobs.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
LAB = [sys.executable, "-m", "vitkern", "lab"]
# The longest first: two run at a time.
SUITES = {
    "test": {
        "lint": ([sys.executable, "-m", "ruff", "check", "."], {}),
        "format": ([sys.executable, "-m", "ruff", "format", "--check", "."], {}),
        "types": ([sys.executable, "-m", "mypy"], {}),
        "tests": ([*PYTEST, "tests", "--ignore=tests/compiler"], {}),
        "kernels interpreted": ([*PYTEST, "tests/interpreter"], {"TRITON_INTERPRET": "1"}),
        "kernels compiled": ([*PYTEST, "tests/compiler"], {}),
    },
    "prove": {
        "compile": ([*LAB, "compile", "--jobs", "2"], {}),
        "fuzz": ([*LAB, "fuzz", "--jobs", "1"], {}),
        "another Triton": ([sys.executable, "tests/other_triton.py", "3.6"], {}),
        "gradients": ([*LAB, "gradients"], {}),
        "edges": ([*LAB, "edges"], {}),
        "offsets": ([*LAB, "offsets"], {}),
    },
}


def start(job, arguments, log):
    command, environment = job
    if "pytest" in command:
        command = [*command, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TRITON_INTERPRET": "0", **environment}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT), time.monotonic()


def last_line(log):
    lines = Path(log.name).read_text().splitlines()
    return lines[-1][-100:] if lines else ""


def run(jobs, arguments, folder):
    begun, waiting, running, failed = time.monotonic(), list(jobs), {}, []
    beat = begun
    while waiting or running:
        while waiting and len(running) < max(2, (os.cpu_count() or 2) // 2):
            name = waiting.pop(0)
            log = (folder / name).open("wb")
            running[name] = (*start(jobs[name], arguments, log), log)
            print(f"== {name}: started", flush=True)
        time.sleep(0.2)
        for name, (process, since, log) in list(running.items()):
            if process.poll() is None:
                continue
            del running[name]
            log.close()
            verdict = "passed" if process.returncode == 0 else "FAILED"
            print(f"\n== {name}: {verdict} in {time.monotonic() - since:.0f} s")
            print(Path(log.name).read_text().rstrip(), flush=True)
            if process.returncode:
                failed.append(name)
        if running and time.monotonic() - beat > 30:
            beat = time.monotonic()
            for name, (_, since, log) in running.items():
                print(f"   {name}, {beat - since:.0f} s: {last_line(log)}", flush=True)
    verdict = f"FAILED: {', '.join(failed)}" if failed else "everything passed"
    print(f"\n== {verdict}, in {time.monotonic() - begun:.0f} s", flush=True)
    return 1 if failed else 0


def main(arguments):
    suite = arguments.pop(0) if arguments and arguments[0] in SUITES else "test"
    with tempfile.TemporaryDirectory() as folder:
        code = run(SUITES[suite], arguments, Path(folder))
    if suite == "prove":
        subprocess.run(LAB, cwd=ROOT)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
