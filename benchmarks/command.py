"""``python -m benchmarks [op ...]``: verify each case, then time it against its peers.

``compare``, ``estimate``, ``host``, ``plan``, ``report``, ``scale`` and ``tune`` in place of an operator are commands
of their own, with their own --help.

Results on stdout, progress on stderr. The exit code is 1 where a result is wrong or, with --against, slower beyond
noise, and 3 where the GPU is lost, and --resume in a new process goes on.
"""

import argparse
from pathlib import Path

import torch

from benchmarks import compare, host, memory, plan, report, results, scale, static, tune
from benchmarks.cases import CASES, OPS, QUICK, chosen
from benchmarks.models import BLOCKS, CPU_MODELS, GPU_MODELS, QUICK_BLOCKS, QUICK_MODELS
from benchmarks.models import chosen as chosen_models
from benchmarks.rows import MODES
from benchmarks.runs import DTYPES
from benchmarks.session import MODELS, blanks, measured
from vitkern.commands.numbers import real, whole
from vitkern.commands.outcome import Parser
from vitkern.report import BadInput, near_matches

BLOCK_GROUP = "blocks"
NAMES = (*OPS, MODELS, BLOCK_GROUP)
COMMANDS = {
    "compare": compare,
    "estimate": static,
    "host": host,
    "plan": plan,
    "report": report,
    "scale": scale,
    "tune": tune,
}


def parser() -> argparse.ArgumentParser:
    top = Parser(prog="python -m benchmarks", description=__doc__)
    top.add_argument("op", nargs="*", help=f"of {', '.join(NAMES)}; all operators unless given")
    top.add_argument("--case", nargs="+", default=[], metavar="PART", help="cases whose names hold, or match, a part")
    top.add_argument("--list", action="store_true", help="print the cases and stop")
    top.add_argument("--dtype", choices=DTYPES, help="bf16 on a GPU, fp32 on a CPU unless given")
    top.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is a GPU unless given")
    top.add_argument(
        "--mode", nargs="+", choices=MODES, default=["forward"], help="training: forward and backward; of models a step"
    )
    top.add_argument("--batch", type=whole(1), help="images in a call; by device and case unless given")
    top.add_argument(
        "--model", nargs="+", default=[], metavar="NAME", help="for `models` and `blocks`: patterns, or names of timm"
    )
    top.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile as a peer; on a GPU unless --no-compile"
    )
    top.add_argument("--estimate", metavar="GPU", help="a column: lower bounds there, from compiled code, uncalibrated")
    top.add_argument("--quick", action="store_true", help="one small case an operator, batch 1, short timings")
    top.add_argument("--limit", type=real(0), default=2.0, help="skip what takes longer at best: seconds of one call")
    top.add_argument("--seconds", type=real(0), default=20.0, help="time budget of each model")
    top.add_argument("--minutes", type=real(0), help="start no further case after so long")
    top.add_argument(
        "--save", metavar="FILE", help="write JSON after each case; 'auto' chooses benchmarks/results/<device>/"
    )
    top.add_argument("--against", type=Path, metavar="FILE", help="a saved run to compare with, as `compare` does")
    top.add_argument("--resume", action="store_true", help="keep what --save's file has of this code on this device")
    top.add_argument("--warm", action="store_true", help="run all once, time nothing: fills the caches of compilers")
    top.add_argument("--share", metavar="K/N", help="every N-th case from the K-th on, K from 0")
    return top


def parsed(argv: list[str]) -> argparse.Namespace:
    """The arguments, with what runs them as ``command``."""
    if not argv or argv[0] not in COMMANDS:
        return parser().parse_args(argv, argparse.Namespace(command=cases))
    inner = Parser(prog=f"python -m benchmarks {argv[0]}", description=COMMANDS[argv[0]].__doc__)
    COMMANDS[argv[0]].add_arguments(inner)
    return inner.parse_args(argv[1:], argparse.Namespace(command=COMMANDS[argv[0]].run))


def run(arguments) -> int:
    return arguments.command(arguments)


def cases(arguments) -> int:
    for name in arguments.op:
        if name not in NAMES:
            raise BadInput(f"nothing is called {name!r}.{near_matches(name, NAMES)} There are {', '.join(NAMES)}.")
    jobs = jobs_of(arguments)
    if arguments.list:
        print("\n".join(f"{case.op}: {case}" for case in jobs if not isinstance(case, str)))
        return 0
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda was given, and torch sees no GPU")
    if arguments.estimate:
        static.check(arguments.estimate)
    recorded = results.load(arguments.against) if arguments.against else None
    if recorded:
        results.same_device(results.device_name(device), {str(arguments.against): recorded["environment"]})
    dtype_name = arguments.dtype or ("bf16" if device.type == "cuda" else "fp32")
    if recorded:  # before an hour of measuring
        asked = {row.key for job in jobs for row in blanks(job, arguments, device, DTYPES[dtype_name])}
        compare.check_common(recorded["results"], asked)
    with memory.bounded(device):
        rows = measured(arguments, jobs, device, dtype_name, path_of(arguments, device, dtype_name))
    wrong = sum(row.is_bad for row in rows)
    slower = 0
    if recorded:
        print("time now over the recorded time")
        slower, _ = compare.show(recorded["results"], rows)
        print()
    print(
        f"verdict: {wrong} wrong or failed, {slower} slower than recorded"
        if wrong or slower
        else "verdict: every timed result was verified"
    )
    return 1 if wrong or slower else 0


def jobs_of(arguments) -> list:
    """The cases to run, then the names of models."""
    ops = tuple(arguments.op) or OPS
    jobs = list(chosen(arguments.case, tuple(case for case in (QUICK if arguments.quick else CASES) if case.op in ops)))
    if {MODELS, BLOCK_GROUP} & set(ops):
        gpu = torch.cuda.is_available() and arguments.device != "cpu"
        default = (QUICK_MODELS if arguments.quick else GPU_MODELS if gpu else CPU_MODELS) if MODELS in ops else ()
        default += (QUICK_BLOCKS if arguments.quick else BLOCKS) if BLOCK_GROUP in ops else ()
        jobs += chosen_models(arguments.model) if arguments.model else default
    return jobs[_share(arguments.share)]


def _share(text: str | None) -> slice:
    if text is None:
        return slice(None)
    try:
        first, count = map(int, text.split("/"))
    except ValueError:
        first, count = 0, 0
    if not 0 <= first < count:
        raise BadInput(f"--share is no share: got {text!r}; expected K/N with K from 0 to N - 1, as 0/4")
    return slice(first, None, count)


def path_of(arguments, device: torch.device, dtype_name: str) -> Path | None:
    """Where to save; what is chosen for "auto" tells a part from the whole, which it must not replace."""
    if arguments.save != "auto":
        return Path(arguments.save) if arguments.save else None
    parts = ["-".join(arguments.op) or "operators", dtype_name]
    parts += [] if arguments.mode == ["forward"] else arguments.mode
    parts += ["quick"] * arguments.quick + ["part"] * bool(arguments.case or arguments.model)
    return results.automatic_path(device, "-".join(parts))
