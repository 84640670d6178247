"""The repaired interpreter, the sanitizer, all operators and Hopper's kernels on another Triton than the one installed.

    python tests/other_triton.py 3.6 [pytest arguments]
    python tests/other_triton.py 3.6 --compile [arguments of python -m vitkern lab compile]

The first interprets, asks of every launch for sm_90 whether its sources are those of the golden figures of that Triton,
compiling those whose are not, and compiles a launch or two of each kernel whatever is recorded. The second is all
launches for sm_90 alone; with --update it writes the golden figures, with --all it compiles every one.

Triton is installed once, without its dependencies, in build/triton-<version>; torch and everything else stay as they
are.
"""

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("test_interpreter_repair.py", "test_sanitizer.py", "test_layernorm.py")  # in tests/interpreter
KERNELS = ["check", "--device", "cpu", "--dtype", "bf16"]  # every operator against float64, output and gradients
COMPILE = ["lab", "compile", "--arch", "sm_90", "--jobs", "1"]  # GPUs that are used with another Triton are Hoppers
SAMPLE = (  # of all launches: between them every kernel, and strides of 1
    "attention-d128-bias",
    "attention-one-query",
    "attention-split",
    "attention-hopper-bias",
    "window-swinv2-w8-unshifted-batch-64",
    "local-halonet-d32",
    "gated-d64",
    "channel-davit-3",
    "channel-xcit-s8",
    "sparse-50-gated",
    "separable-cross",
    "additive-197",
    "talking-cait-s24",
    "policy-fp16",
    "qk-norm-rms",
    "deformable-encoder",
    "glu-384-last-batch-64",
    "glu-1536-batch-64",
    "mixing-512-batch-64",
    "mlp-192-scaled",
    "mlp-192-inference",
    "layernorm-192-batch-64",
)


class Failed(Exception):
    """What went wrong, in one line."""


def installed(version: str) -> Path:
    """The folder with Triton ``version``; fills it the first time."""
    folder = ROOT / "build" / f"triton-{version}"
    if folder.exists():
        return folder
    print(f"== installing Triton {version} in {folder.relative_to(ROOT)} (several hundred MB, once)", flush=True)
    folder.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command = [*pip, "--target", f"{scratch}/triton", f"triton=={version}"]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            lines = done.stdout.strip().splitlines() or ["pip said nothing"]
            raise Failed(f"pip cannot install triton=={version}: {lines[-1]}")
        os.replace(f"{scratch}/triton", folder)
    return folder


def _commands(arguments: list[str]) -> dict[str, list[str]]:
    """What is run, by name."""
    python, vitkern = [sys.executable, "-m"], [sys.executable, "-m", "vitkern"]
    if arguments[:1] == ["--compile"]:
        return {"compiled": [*vitkern, *COMPILE, *arguments[1:]]}
    tests = [f"tests/interpreter/{name}" for name in TESTS]
    return {
        "tests": [*python, "pytest", "-q", "-p", "no:cacheprovider", *tests, *arguments],
        "kernels": [*vitkern, *KERNELS],
        "recorded": [*vitkern, *COMPILE],
        "compiled": [*vitkern, *COMPILE, "--all", *SAMPLE],
    }


def run(version: str, arguments: list[str]) -> int:
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}  # lab compile unsets the first
    if importlib.metadata.version("triton") != version:
        paths = [str(installed(version)), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
    found = subprocess.run(
        [sys.executable, "-c", "import importlib.metadata as m; print(m.version('triton'), m.version('torch'))"],
        env=environment, stdout=subprocess.PIPE, text=True,
    ).stdout.split()  # fmt: skip
    if found[:1] != [version]:
        raise Failed(f"another Triton is found first: got {' '.join(found)}; expected {version}")
    print(f"== Triton {version} under torch {found[1]}", flush=True)
    failed = []
    for name, command in _commands(arguments).items():
        begun = time.monotonic()
        if subprocess.run(command, cwd=ROOT, env=environment).returncode:
            failed.append(name)
        print(f"== {name}: {'FAILED' if name in failed else 'passed'} in {time.monotonic() - begun:.0f} s", flush=True)
    print(f"verdict: {', '.join(failed)} FAILED" if failed else "verdict: passed", f"on Triton {version}")
    return 1 if failed else 0


def main(arguments: list[str]) -> int:
    if not arguments or not re.fullmatch(r"3\.\d+(\.\d+)?", arguments[0]):
        usage = "usage: python tests/other_triton.py 3.6 [pytest arguments | --compile [arguments of lab compile]]"
        print(usage, file=sys.stderr)
        return 2
    version = arguments[0] if arguments[0].count(".") == 2 else f"{arguments[0]}.0"
    try:
        return run(version, arguments[1:])
    except Failed as error:
        print(f"other_triton: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
