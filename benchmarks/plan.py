"""plan: everything worth recording on a GPU, the most telling first, each part in a process of its own.

Kernels and what torch.compile makes are compiled ahead on all cores, since a GPU is lent for minutes. Each case is
saved as it is done. A part that runs again goes on where it ended, after a fault of the GPU as well.
"""

import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks import results
from benchmarks.cases import OPS
from vitkern.commands.numbers import real, whole
from vitkern.report import progress

BOTH = ("--mode", "forward", "backward")
TRAINING = ("--mode", "forward", "training")
COMPARED = (  # with what torch.compile makes of them: seconds a case
    "Swin-T stage 1 56x56 C96 window 7 shift 3", "ViT-S/16 224", "Swin-T stage 3 14x14 C384 window 7 shift 3",
    "BEiT-B/16 224", "SwinV2-T w8 stage 1 64x64", "ViT-B/16 384 H12 N577 D64", "ViT-B 197 x C768",
    "ViTDet-B, SAM-B local", "NAT-T stage 1", "HaloNet-H1 stage 3", "Swin-T stage 1 3136",
)  # fmt: skip
TUNED = (
    "Swin-T stage 1 56x56 C96 window 7 shift 3", "ViT-S/16 224", "ViT-B/16 384 H12 N577 D64", "BEiT-B/16 384",
    "NAT-T stage 1", "ViTDet-B, SAM-B local", "HaloNet-H1 stage 3", "Swin-T stage 1 3136 x C96", "ViT-B 197 x C768",
)  # fmt: skip
AT_ONCE = 12  # processes that compile


class Part(NamedTuple):
    """``arguments`` of `python -m benchmarks`, on ``cases``; several parts may go on with one ``file``. ``share``: of
    all the time, at most. ``warm``: it is compiled ahead."""

    file: str
    share: float
    arguments: tuple[str, ...]
    cases: tuple[str, ...] = ()
    warm: bool = False

    def command(self, quick: bool) -> list[str]:
        if quick:
            return [*self.arguments, "--quick"]
        return [*self.arguments, *(["--case", *self.cases] if self.cases else [])]

    def __str__(self) -> str:
        return f"{self.file}: {' '.join(self.arguments)}" + f", {len(self.cases)} kinds of cases" * bool(self.cases)


PLAN = (
    Part("operators-bf16.json", 0.25, (*OPS, "--dtype", "bf16", *BOTH, "--compile"), COMPARED, warm=True),
    Part("blocks-bf16.json", 0.15, ("blocks", "--dtype", "bf16", *TRAINING, "--compile", "--seconds", "1"), warm=True),
    Part("models-bf16.json", 0.12, ("models", "--dtype", "bf16", *TRAINING, "--no-compile", "--seconds", "2")),
    Part("operators-bf16.json", 0.4, (*OPS, "--dtype", "bf16", *BOTH, "--no-compile"), warm=True),
    Part("tune-bf16.txt", 1.0, ("tune", *OPS, *BOTH, "--jobs", str(AT_ONCE)), TUNED),
    Part("scale-bf16.json", 1.0, ("scale", *TRAINING, "--limit", "0.5")),
    Part("operators-fp16.json", 1.0, (*OPS, "--dtype", "fp16", *BOTH, "--no-compile"), warm=True),
    Part("operators-fp32.json", 1.0, (*OPS, "--dtype", "fp32", *BOTH, "--no-compile"), warm=True),
    Part("models-compiled-bf16.json", 1.0, ("models", "--dtype", "bf16", *TRAINING, "--compile", "--seconds", "3")),
)
AHEAD = 0.15  # of all the time, for what is compiled ahead of parts that follow one another
GRACE = 20.0  # seconds beyond its time that a part may take to end by itself
INTERRUPTED = 5.0  # seconds that an interrupted process has to end
TRIES = 3  # of a part whose process a fault ended


def add_arguments(parser) -> None:
    parser.add_argument("--minutes", type=real(0), help="of all parts together; without it each part is run to its end")
    parser.add_argument("--copy", type=Path, metavar="FOLDER", help="put what this run wrote there too, part by part")
    parser.add_argument("--quick", action="store_true", help="small cases and short timings, to try the plan")
    parser.add_argument("--parts", type=whole(1, len(PLAN)), nargs="+", help=f"of 1 to {len(PLAN)}: these alone")
    parser.add_argument("--folder", type=Path, help="for the results; benchmarks/results/<device>/ unless given")


def run(arguments) -> int:
    start, total = time.monotonic(), 60 * (arguments.minutes or float("inf"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    folder, worst = arguments.folder or results.automatic_path(device, "plan").parent, 0
    parts = [part for i, part in enumerate(PLAN, 1) if not arguments.parts or i in arguments.parts]
    for i, part in enumerate(parts):
        if part.warm and (i == 0 or not parts[i - 1].warm):
            following = list(itertools.takewhile(lambda part: part.warm, parts[i:]))
            ahead(following, min(total - (time.monotonic() - start), AHEAD * total), arguments.quick)
        left = total - (time.monotonic() - start)
        if left <= GRACE:
            progress(f"out of time: not run: {part}")
            continue
        code = go(part, folder, min(left - GRACE, part.share * total), arguments.quick)
        worst = max(worst, abs(code))
        if arguments.copy and (folder / part.file).exists():
            arguments.copy.mkdir(parents=True, exist_ok=True)
            shutil.copy(folder / part.file, arguments.copy)
    return worst


def go(part: Part, folder: Path, seconds: float, quick: bool) -> int:
    """Run a part for about ``seconds``; again where a fault ended its process, as long as there is time."""
    end, code = time.monotonic() + seconds, 0
    for _ in range(TRIES):
        left = end - time.monotonic()
        if left <= 0:
            break
        limit = [] if left == float("inf") else ["--minutes", f"{left / 60:.3f}"]
        print(f"\n== {part}\n", flush=True)
        command = [*part.command(quick), "--save", str(folder / part.file), "--resume", *limit]
        code = ended([started(command)], left + GRACE)[0]
        if code in (0, 1, 2):
            break
        progress(f"{part.file}: its process ended with code {code}")
    return code


def ahead(parts: list[Part], seconds: float, quick: bool) -> None:
    """Run the cases of ``parts`` once in several processes: what they compile stays in the caches on disk."""
    count = max(1, min(AT_ONCE, (os.cpu_count() or 1) - 2) // len(parts))
    begun, shares = time.monotonic(), [
        started([*part.command(quick), "--warm", "--share", f"{i}/{count}"], quiet=True)
        for i in range(count) for part in parts
    ]  # fmt: skip
    codes = ended(shares, seconds)
    progress(f"compiled ahead in {time.monotonic() - begun:.0f} s: {codes.count(0)} of {len(codes)} shares as a whole")


def started(arguments: list[str], quiet: bool = False) -> subprocess.Popen:
    """``quiet``: one of many at once, which print nothing and compile on one core each."""
    own = {"TRITON_CACHE_DIR": str(Path.home() / ".triton" / "cache")}  # where it is anyway: those who tune share it
    alone = {"TORCHINDUCTOR_COMPILE_THREADS": "1", "OMP_NUM_THREADS": "1"} if quiet else {}
    environment = own | os.environ | alone
    said = dict(stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) if quiet else {}
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.Popen(command, cwd=results.ROOT, env=environment, preexec_fn=_alone, **said)


def _alone() -> None:
    """In a new process: a group of its own, which can be interrupted although what started this one may not be."""
    os.setpgrp()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def ended(processes: list[subprocess.Popen], seconds: float) -> list[int]:
    """Their exit codes; whatever runs after so long, or when this is interrupted, is interrupted itself, and killed if
    that does not help."""
    try:
        _wait(processes, time.monotonic() + seconds)
    finally:
        for signal_, grace in ((signal.SIGINT, INTERRUPTED), (signal.SIGKILL, INTERRUPTED)):
            running = [process for process in processes if process.poll() is None]
            for process in running:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal_)
            _wait(running, time.monotonic() + grace)
    return [process.returncode if process.returncode is not None else -signal.SIGKILL for process in processes]


def _wait(processes: list[subprocess.Popen], end: float) -> None:
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(None if end == float("inf") else max(0.0, end - time.monotonic()))
