"""``python -m benchmarks.demo``: accelerate two unmodified timm models on photographs, then check every kernel."""

import subprocess
import sys
import time

import torch

from vitkern.commands.outcome import ended

MODELS = ("swin_tiny_patch4_window7_224", "vit_small_patch16_224")


def main(argv: list[str]) -> int:
    del argv
    # On a CPU the kernels are interpreted, and one dtype shows as much as three.
    check = ["check"] if torch.cuda.is_available() else ["check", "--dtype", "fp32"]
    commands = [["accelerate", name] for name in MODELS] + [check]
    failed, start = [], time.monotonic()
    for i, command in enumerate(commands, 1):
        shown = " ".join(["python -m vitkern", *command])
        print(f"\n== {i} of {len(commands)}: {shown}\n", flush=True)
        if subprocess.run([sys.executable, "-m", "vitkern", *command]).returncode:
            failed.append(shown)
    print(
        f"\n== {len(commands) - len(failed)} of {len(commands)} succeeded in {time.monotonic() - start:.0f} s",
        flush=True,
    )
    for shown in failed:
        print(f"== FAILED: {shown}")
    print("== demo: FAILED" if failed else "== demo: everything succeeded", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(ended("benchmarks.demo", None, main))
