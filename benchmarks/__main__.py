"""``python -m benchmarks [op ...]``: verify each case, then time it against its peers.

``compare``, ``report`` and ``scale`` in place of an operator are commands of their own, with their own --help.

Results on stdout, progress on stderr. Exit code 1 where a result is wrong or, with --against, more than a tenth slower;
2 for bad input.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch.utils.benchmark import Compare

from benchmarks import compare, report, results, roofline, scale, static
from benchmarks.cases import CASES, OPS, QUICK, batch_for
from benchmarks.measure import OURS, Row, measure, measurement
from benchmarks.models import CPU_MODELS, GPU_MODELS, ORIGINAL, QUICK_MODELS, measure_model
from vitkern import dispatch
from vitkern.report import BadInput, memory, near_matches, progress, seconds, table

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NAMES = (*OPS, "models")
COMMANDS = {"compare": compare, "report": report, "scale": scale}
# What `--plan` runs on a GPU, the most telling first: operators, dtype, backward too.
PLAN = (
    (("window_attention", "attention"), "bf16", True),
    (("layernorm_mlp", "layernorm"), "bf16", True),
    (("models",), "bf16", False),
    (("models",), "bf16", True),
    (("window_attention", "attention", "layernorm_mlp"), "fp16", False),
    (("window_attention", "attention", "layernorm_mlp", "layernorm"), "fp32", False),
)


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0].split(": ", 1)[1])
    top.add_argument("op", nargs="*", help=f"of {', '.join(NAMES)}; all operators unless given")
    top.add_argument("--dtype", choices=DTYPES, help="bf16 on a GPU, fp32 on a CPU unless given")
    top.add_argument("--device", choices=("cpu", "cuda"), help="cuda where there is a GPU unless given")
    top.add_argument("--backward", action="store_true", help="time the backward too; for models a training step")
    top.add_argument("--batch", type=int, help="images in a call; by device and case unless given")
    top.add_argument("--model", nargs="+", default=[], metavar="NAME", help="timm models for `models`")
    top.add_argument(
        "--compile", action=argparse.BooleanOptionalAction, help="torch.compile as a peer; on a GPU unless --no-compile"
    )
    top.add_argument("--estimate", metavar="GPU", help="a column: lower bounds there, from compiled code, uncalibrated")
    top.add_argument("--quick", action="store_true", help="one small case an operator, batch 1, short timings")
    top.add_argument("--seconds", type=float, default=20.0, help="time budget of each model")
    top.add_argument("--minutes", type=float, help="start no further case after so long")
    top.add_argument(
        "--save", metavar="FILE", help="write JSON after each case; 'auto' chooses benchmarks/results/<device>/"
    )
    top.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="a saved run to compare with; exit code 1 if a case is 10 %% slower",
    )
    top.add_argument(
        "--plan", action="store_true", help="everything worth recording on a GPU, each part saved as with --save auto"
    )
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
        return run(parser().parse_args(argv))
    except BadInput as problem:
        print(f"benchmarks: {problem}", file=sys.stderr)
        return 2


def run(arguments) -> int:
    for name in arguments.op:
        if name not in NAMES:
            raise BadInput(f"nothing is called {name!r}.{near_matches(name, NAMES)} There are {', '.join(NAMES)}.")
    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise BadInput("--device cuda was given, and torch sees no GPU")
    if arguments.estimate:
        static.check(arguments.estimate)
    deadline = time.monotonic() + arguments.minutes * 60 if arguments.minutes else float("inf")
    recorded = results.load(arguments.against) if arguments.against else None
    if recorded and recorded["environment"]["device"] != results.device_name(device):
        raise BadInput(
            f"{arguments.against} was measured on {recorded['environment']['device']}, "
            f"and this is {results.device_name(device)}"
        )
    found = results.environment(device)
    _print_environment(found, device)
    gpu = device.type == "cuda"
    if arguments.plan:
        parts = [(ops, dtype, backward, "auto") for ops, dtype, backward in PLAN]
    else:
        parts = [
            (
                tuple(arguments.op) or OPS,
                arguments.dtype or ("bf16" if gpu else "fp32"),
                arguments.backward,
                arguments.save,
            )
        ]
    rows = []
    for ops, dtype, backward, save in parts:
        path = None
        if save:
            name = f"{'-'.join(ops) if ops != OPS else 'operators'}-{dtype}{'-training' if backward else ''}"
            path = results.automatic_path(device, name) if save == "auto" else Path(save)
        modes = ("forward", "backward") if backward else ("forward",)
        rows += _part(arguments, ops, DTYPES[dtype], modes, device, deadline, path, found)
    wrong = [row for row in rows if row.contender == OURS and row.seconds is None]
    for row in wrong:
        print(f"{row.op}: {row.case} {row.mode} {row.dtype}: {row.note}")
    slower = _against(rows, recorded["results"]) if recorded else 0
    print(
        f"verdict: {len(wrong)} wrong, {slower} slower than recorded"
        if wrong or slower
        else "verdict: every timed result was verified"
    )
    return 1 if wrong or slower else 0


def _print_environment(found: dict, device: torch.device) -> None:
    print(
        f"{found['device']}, torch {found['versions']['torch']}, triton {found['versions']['triton']}, "
        f"{found['threads']} threads"
    )
    if device.type == "cpu":
        place = "Triton's interpreter" if dispatch.INTERPRETED else "PyTorch"
        print(f"no GPU: the operators run in {place} here, and what is timed is that path; there is no roofline")
    else:
        print(f"copy bandwidth {found['copy_bandwidth'] / 1e12:.2f} TB/s; {found['nvidia-smi']}")
    print()


def _part(arguments, ops, dtype, modes, device, deadline, path, found) -> list[Row]:
    """Run the cases of ``ops``, saving after each; prints the tables."""
    gpu = device.type == "cuda"
    compiled = gpu if arguments.compile is None else arguments.compile
    jobs = [(case, None) for case in (QUICK if arguments.quick else CASES) if case.op in ops]
    if "models" in ops:
        names = arguments.model or (QUICK_MODELS if arguments.quick else GPU_MODELS if gpu else CPU_MODELS)
        jobs += [(None, name) for name in names]
    rows, start = [], time.monotonic()
    for i, (case, name) in enumerate(jobs, 1):
        if time.monotonic() > deadline:
            progress(f"out of time: {len(jobs) - i + 1} of {len(jobs)} cases not run")
            break
        progress(f"[{i}/{len(jobs)}] {name or f'{case.op}: {case}'} {dtype} ({time.monotonic() - start:.0f} s)")
        if case is None:
            batch = arguments.batch or (2 if arguments.quick else 64 if gpu else 8)
            options = dict(batch=batch, modes=modes, compiled=bool(arguments.compile), progress=progress)
            rows += measure_model(name, dtype, device, budget=1.0 if arguments.quick else arguments.seconds, **options)
        else:
            batch = arguments.batch or batch_for(case, gpu=gpu, quick=arguments.quick)
            rows += measure(case, dtype, device, batch=batch, modes=modes, quick=arguments.quick, compiled=compiled)
        if path:
            results.save(path, rows, found)
        if gpu:
            torch.cuda.empty_cache()
    operators = [row for row in rows if row.op != "models"]
    if any(row.seconds is not None for row in operators):
        _print_operators(operators, device, {str(c): c for c, _ in jobs if c is not None}, arguments.estimate)
    _print_models([row for row in rows if row.op == "models"])
    if path and rows:
        print(f"saved {path}\n")
    return rows


def _print_operators(rows: list[Row], device: torch.device, cases: dict, gpu: str | None) -> None:
    compare = Compare([measurement(row) for row in rows if row.seconds is not None])
    compare.trim_significant_figures()
    compare.print()
    refused = {
        (row.contender, row.note): row for row in reversed(rows) if row.seconds is None and row.contender != OURS
    }
    for (contender, note), row in refused.items():
        print(f"no figure for {contender} ({row.op}, first at {row.case} {row.mode}): {note}")
    peaks, lines = roofline.peaks_of(device), []
    for row in (row for row in rows if row.contender == OURS and row.seconds is not None):
        case = cases[row.case]
        others = [
            r for r in rows if results.key(r) == results.key(row) and r.contender != OURS and r.seconds is not None
        ]
        best = min(others, key=lambda r: r.seconds, default=None)
        moved, flops = roofline.work(case, row.batch, getattr(torch, row.dtype).itemsize, row.mode)
        share = (
            f"{roofline.bound(case, row.batch, getattr(torch, row.dtype), row.mode, peaks) / row.seconds:.0%}"
            if peaks
            else "n/a"
        )
        lines.append(
            (row.op, row.case, row.mode, seconds(row.seconds), f"{row.spread:.1%}", share,
             f"{moved / row.seconds / 1e9:,.1f}",
             f"{flops / row.seconds / 1e12:.2f}", seconds(row.host) if row.host is not None else "n/a",
             best.contender if best else "-", f"{best.seconds / row.seconds:.2f}x" if best else "-",
             *((seconds(static.seconds_of(case, getattr(torch, row.dtype), row.batch, row.mode, gpu)),) if gpu else ()))
        )  # fmt: skip
    header = (
        "operator", "case", "mode", OURS, "spread", "roofline", "GB/s", "TFLOP/s", "host", "fastest peer",
        "speed against it", *((static.heading(gpu),) if gpu else ()),
    )  # fmt: skip
    print(table(header, lines))
    print()


def _print_models(rows: list[Row]) -> None:
    lines = []
    for row in rows:
        times = "" if row.contender == ORIGINAL else row.note
        lines.append(
            (
                row.case,
                row.mode,
                row.contender,
                seconds(row.seconds) if row.seconds else "-",
                f"{row.spread:.1%}",
                memory(row.peak),
                times,
            )
        )
    if lines:
        batches = ", ".join(sorted({str(row.batch) for row in rows}))
        print(f"whole models, {rows[0].dtype}, batch {batches}, in turn in one run; a backward is a training step")
        print(table(("model", "mode", "", "median", "spread", "peak memory", "speed (quartiles)"), lines))
        print()


def _against(rows: list[Row], recorded: list[Row]) -> int:
    compared = results.against(rows, recorded)
    if not compared:
        raise BadInput("the recorded run holds none of the cases of this one")
    lines = [
        (row.op, row.case, row.mode, f"{ratio:.2f}", "SLOWER" if ratio > results.SLOWER else "ok")
        for row, ratio in compared
    ]
    print("time now over the recorded time")
    print(table(("operator", "case", "mode", "ratio", ""), lines))
    print()
    return sum(ratio > results.SLOWER for _, ratio in compared)


if __name__ == "__main__":
    sys.exit(main())
