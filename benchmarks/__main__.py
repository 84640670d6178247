"""``python -m benchmarks [op ...]``: verify each case, then time it against its peers.

``compare``, ``report``, ``scale`` and ``tune`` in place of an operator are commands of their own, with their own
--help.

Results on stdout, progress on stderr. Exit code 1 where a result is wrong or, with --against, slower beyond noise;
2 for bad input.
"""

import argparse
import sys
import time
from pathlib import Path

import torch

from benchmarks import ceilings, compare, memory, report, results, scale, static, tables, tune
from benchmarks.cases import CASES, OPS, QUICK, batch_for, chosen
from benchmarks.measure import measure
from benchmarks.models import CPU_MODELS, GPU_MODELS, QUICK_MODELS, measure_model
from benchmarks.models import chosen as chosen_models
from benchmarks.plan import PLAN
from benchmarks.rows import MODES, OURS, Row
from vitkern import dispatch
from vitkern.report import BadInput, near_matches, progress

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
MODELS = "models"
NAMES = (*OPS, MODELS)
COMMANDS = {"compare": compare, "report": report, "scale": scale, "tune": tune}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0].split(": ", 1)[1])
    top.add_argument("op", nargs="*", help=f"of {', '.join(NAMES)}; all operators unless given")
    top.add_argument("--case", nargs="+", default=[], metavar="PART", help="cases whose names hold, or match, a part")
    top.add_argument("--list", action="store_true", help="print the cases and stop")
    top.add_argument("--dtype", choices=DTYPES, help="bf16 on a GPU, fp32 on a CPU unless given")
    top.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is a GPU unless given")
    top.add_argument(
        "--mode", nargs="+", choices=MODES, default=["forward"], help="training: forward and backward; of models a step"
    )
    top.add_argument("--batch", type=int, help="images in a call; by device and case unless given")
    top.add_argument("--model", nargs="+", default=[], metavar="NAME", help="for `models`: patterns, or names of timm")
    top.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile as a peer; on a GPU unless --no-compile"
    )
    top.add_argument("--estimate", metavar="GPU", help="a column: lower bounds there, from compiled code, uncalibrated")
    top.add_argument("--quick", action="store_true", help="one small case an operator, batch 1, short timings")
    top.add_argument("--limit", type=float, default=2.0, help="skip what takes longer at best: seconds of one call")
    top.add_argument("--seconds", type=float, default=20.0, help="time budget of each model")
    top.add_argument("--minutes", type=float, help="start no further case after so long")
    top.add_argument(
        "--save", metavar="FILE", help="write JSON after each case; 'auto' chooses benchmarks/results/<device>/"
    )
    top.add_argument("--against", type=Path, metavar="FILE", help="a saved run to compare with, as `compare` does")
    top.add_argument("--plan", action="store_true", help="everything worth recording on a GPU, each part saved")
    return top


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        if argv and argv[0] in COMMANDS:
            command = COMMANDS[argv[0]]
            inner = argparse.ArgumentParser(prog=f"python -m benchmarks {argv[0]}", description=command.__doc__)
            inner.formatter_class = argparse.RawDescriptionHelpFormatter
            command.add_arguments(inner)
            return command.run(inner.parse_args(argv[1:]))
        arguments = parser().parse_args(argv)
        return run_plan(arguments.minutes) if arguments.plan else run(arguments)
    except BadInput as problem:
        print(f"benchmarks: {problem}", file=sys.stderr)
        return 2


def run_plan(minutes: float | None) -> int:
    """Each part of `PLAN`, until ``minutes`` are over; each may take half of what is left of them."""
    deadline, worst = time.monotonic() + 60 * (minutes or float("inf")), 0
    for part in PLAN:
        left = (deadline - time.monotonic()) / 60
        if left <= 0:
            progress(f"out of time: not run: {' '.join(part)}")
            continue
        print(f"== {' '.join(part)}\n", flush=True)
        limit = [] if minutes is None else ["--minutes", str(left / 2)]
        worst = max(worst, main([*part, "--save", "auto", *limit]))
    return worst


def run(arguments) -> int:
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
    if arguments.batch is not None and arguments.batch < 1:
        raise BadInput(f"--batch is no number of images: got {arguments.batch}; expected at least 1")
    if arguments.estimate:
        static.check(arguments.estimate)
    recorded = results.load(arguments.against) if arguments.against else None
    if recorded:
        results.same_device(results.device_name(device), {str(arguments.against): recorded["environment"]})
    dtype_name = arguments.dtype or ("bf16" if device.type == "cuda" else "fp32")
    with memory.bounded(device):
        rows = measured(arguments, jobs, device, dtype_name)
    wrong = sum(row.is_wrong for row in rows if row.contender == OURS)
    slower = 0
    if recorded:
        print("time now over the recorded time")
        slower, _ = compare.show(recorded["results"], rows)
        print()
    print(
        f"verdict: {wrong} wrong, {slower} slower than recorded"
        if wrong or slower
        else "verdict: every timed result was verified"
    )
    return 1 if wrong or slower else 0


def jobs_of(arguments) -> list:
    """The cases to run, then the names of models."""
    ops = tuple(arguments.op) or OPS
    jobs = list(chosen(arguments.case, tuple(case for case in (QUICK if arguments.quick else CASES) if case.op in ops)))
    if MODELS in ops:
        gpu = torch.cuda.is_available() and arguments.device != "cpu"
        default = QUICK_MODELS if arguments.quick else GPU_MODELS if gpu else CPU_MODELS
        jobs += chosen_models(arguments.model) if arguments.model else default
    return jobs


def measured(arguments, jobs: list, device: torch.device, dtype_name: str) -> list[Row]:
    """Run ``jobs``, saving after each; prints what was found."""
    start, dtype, gpu, quick = time.monotonic(), DTYPES[dtype_name], device.type == "cuda", arguments.quick
    found, best = results.environment(device), ceilings.measured(device, dtype, quick=quick)
    found["ceilings"] = {str(dtype).removeprefix("torch."): best._asdict()}
    print_environment(found, device)
    path = path_of(arguments, device, dtype_name)
    rows, modes = [], tuple(dict.fromkeys(arguments.mode))
    for i, job in enumerate(jobs, 1):
        if arguments.minutes and time.monotonic() - start > 60 * arguments.minutes:
            progress(f"out of time: {len(jobs) - i + 1} of {len(jobs)} cases not run")
            break
        name = job if isinstance(job, str) else f"{job.op}: {job}"
        progress(f"[{i}/{len(jobs)}] {name} {dtype_name} ({time.monotonic() - start:.0f} s)")
        if isinstance(job, str):
            batch = arguments.batch or (2 if quick else 64 if gpu else 8)
            options = dict(batch=batch, modes=modes, compiled=bool(arguments.compile), progress=progress)
            rows += measure_model(job, dtype, device, budget=1.0 if quick else arguments.seconds, **options)
        else:
            batch = arguments.batch or batch_for(job, gpu=gpu, quick=quick)
            compiled = gpu if arguments.compile is None else arguments.compile
            options = dict(batch=batch, modes=modes, quick=quick, compiled=compiled)
            of_case = measure(job, dtype, device, peak_flops=best.matmul, limit=arguments.limit, **options)
            rows += [static.added(row, job, arguments.estimate, device) for row in of_case]
        if path:
            results.save(path, rows, found)
        if gpu:
            torch.cuda.empty_cache()
    tables.print_operators([row for row in rows if row.op != MODELS], best)
    tables.print_models([row for row in rows if row.op == MODELS])
    if path and rows:
        print(f"saved {path}\n")
    return rows


def path_of(arguments, device: torch.device, dtype_name: str) -> Path | None:
    """Where to save; what is chosen for "auto" tells a part from the whole, which it must not replace."""
    if arguments.save != "auto":
        return Path(arguments.save) if arguments.save else None
    parts = ["-".join(arguments.op) or "operators", dtype_name]
    parts += [] if arguments.mode == ["forward"] else arguments.mode
    parts += ["quick"] * arguments.quick + ["part"] * bool(arguments.case or arguments.model)
    return results.automatic_path(device, "-".join(parts))


def print_environment(found: dict, device: torch.device) -> None:
    print(
        f"{found['device']}, torch {found['versions']['torch']}, triton {found['versions']['triton']}, "
        f"{found['threads']} threads"
    )
    if device.type == "cpu":
        place = "Triton's interpreter" if dispatch.INTERPRETED else "PyTorch"
        print(f"no GPU: the operators run in {place} here, and what is timed is that path")
    else:
        print(found["nvidia-smi"])
    for dtype, best in found["ceilings"].items():
        print(f"ceilings, measured now: copy {best['copy'] / 1e9:,.1f} GB/s, {dtype} product "
              f"{best['matmul'] / 1e12:,.3g} TFLOP/s")  # fmt: skip
    print()


if __name__ == "__main__":
    sys.exit(main())
