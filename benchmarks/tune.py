"""tune: other block sizes, warps and stages for an operator's kernels, as rows for kernels/*/blocks.py.

Candidates are one step from the present configuration, round after round. Each is compiled first, and dropped where
it does not compile, fit or keep to registers. With a GPU each is verified against float64 and timed. With --arch
nothing is timed, and no GPU is needed: the static estimate ranks what compiled.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import configured, results
from benchmarks.cases import CASES, OPS, QUICK, batch_for, chosen
from benchmarks.configured import config_of
from benchmarks.rows import MODES
from benchmarks.runs import DTYPES
from benchmarks.search import Task, Trial, ahead, search
from benchmarks.variants import show_variants
from vitkern import dispatch
from vitkern.commands.numbers import real, whole
from vitkern.kernels.machine.blocks import Config
from vitkern.lab.compiling import budget, estimate
from vitkern.lab.compiling.layer import Layer
from vitkern.lab.compiling.matrix import ARCHITECTURES
from vitkern.report import BadInput, near_matches, progress, seconds, table

UNTIMED = "uncalibrated estimate, nothing was timed"
GAIN = 1.05  # a smaller one is no reason for a row


def add_arguments(parser) -> None:
    parser.add_argument("op", nargs="+", help=f"of {', '.join(OPS)}")
    parser.add_argument(
        "--case", nargs="+", default=[], metavar="PART", help="cases whose names hold, or match, a part"
    )
    parser.add_argument("--mode", nargs="+", choices=MODES[:2], default=["forward"])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--arch", help="sm_90 and the like: estimate for it in place of timing here")
    parser.add_argument("--rounds", type=whole(1), default=1, help="steps away from the present configuration")
    parser.add_argument("--jobs", type=whole(1), default=1, help="processes that compile")
    parser.add_argument("--quick", action="store_true", help="one small case an operator")
    parser.add_argument("--minutes", type=real(0), help="start no further search after so long")
    parser.add_argument("--save", metavar="FILE", help="write the rows; 'auto' chooses benchmarks/results/<device>/")
    parser.add_argument("--resume", action="store_true", help="leave out what the file of --save has")


def run(arguments) -> int:
    for op in arguments.op:
        if op not in OPS:
            raise BadInput(f"tune: no operator is called {op!r}.{near_matches(op, OPS)} There are {', '.join(OPS)}.")
    if not dispatch.HAS_TRITON or dispatch.INTERPRETED:
        raise BadInput("tune compiles kernels: it needs Triton, and TRITON_INTERPRET unset.")
    cases = tuple(case for case in (QUICK if arguments.quick else CASES) if case.op in arguments.op)
    cases = chosen(arguments.case, cases)
    arch, gpu, timed = _place(arguments.arch)
    show_variants(cases if timed else (), DTYPES[arguments.dtype], arch)
    print(
        f"{gpu}, {budget.name_of(arch)}: {'verified against float64, then timed' if timed else UNTIMED}\n", flush=True
    )
    path = _path(arguments, arch, timed)
    lines = path.read_text().splitlines() if path and arguments.resume and path.exists() else []
    before = "\n".join(lines)
    deadline, tasks, calls = time.monotonic() + 60 * (arguments.minutes or float("inf")), {}, set()
    for task in tasks_of(cases, arguments.mode, DTYPES[arguments.dtype], arch, gpu):
        calls.add(task.call)
        if f"# {task.call}: " not in before and configured.neighbours(task.call, config_of(task.present)):
            tasks.setdefault(task.call, task)
    if not calls:
        raise BadInput(f"tune: {', '.join(arguments.op)} starts no kernel in {arguments.dtype}: nothing is to tune.")
    ready = ahead(list(tasks.values()), arguments.jobs) if arguments.jobs > 1 else {}
    for task in tasks.values():
        if time.monotonic() > deadline:
            progress(f"out of time: {task.call} for {task} and what follows")
            break
        progress(f"{task.call}: {task}")
        trials = search(task, rounds=arguments.rounds, jobs=arguments.jobs, timed=timed, ready=ready)
        show(task, trials, timed)
        lines += row_of(task, trials, timed)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(lines) + "\n")
    print("for kernels/*/blocks.py:")
    print("\n".join(lines))
    if path:
        print(f"saved {path}")
    return 0


def _path(arguments, arch: int, timed: bool) -> Path | None:
    """Where the rows go."""
    if arguments.save != "auto":
        return Path(arguments.save).with_suffix(".txt") if arguments.save else None
    name = f"tune-{'-'.join(arguments.op)}-{arguments.dtype}" + ("" if timed else f"-{budget.name_of(arch)}")
    name += "-part" * bool(arguments.case) + "-quick" * arguments.quick
    return results.automatic_path(torch.device("cuda" if timed else "cpu"), name).with_suffix(".txt")


def _place(name: str | None) -> tuple[int, str, bool]:
    """(architecture, GPU, whether it is here to be timed)."""
    if name is None:
        if not torch.cuda.is_available():
            raise BadInput("tune: torch sees no GPU to time on. --arch sm_90 ranks by the static estimate instead.")
        from vitkern.kernels.machine import architecture

        arch = architecture.arch_of(torch.empty(0, device="cuda"))
        if arch not in budget.LIMITS:
            raise BadInput(f"tune: there is no static budget of {budget.name_of(arch)}, so nothing tells what fits it.")
        return arch, torch.cuda.get_device_name(), True
    known = {budget.name_of(arch): arch for arch in ARCHITECTURES}
    if name not in known:
        near = near_matches(name, known)
        raise BadInput(f"tune: unknown architecture {name!r}.{near} There are {', '.join(known)}.")
    return known[name], [gpu for gpu, found in estimate.GPUS.items() if found.arch == known[name]][-1], False


def tasks_of(cases: tuple[Layer, ...], modes: list[str], dtype: torch.dtype, arch: int, gpu: str) -> Iterator[Task]:
    """Every call of every case, forward calls first."""
    for case in cases:
        for mode in sorted(modes, key=MODES.index):
            batch = batch_for(case, gpu=True, quick=False)
            for call, present in configured.asked(case, dtype, 2, mode, arch).items():  # no choice is of the batch
                yield Task(call, present, case, dtype, batch, mode, arch, gpu)


def show(task: Task, trials: list[Trial], timed: bool) -> None:
    """The candidates of one call, the best first, then those that were dropped."""
    present = config_of(task.present)
    lines = [
        (
            _text(trial.config),
            seconds(trial.seconds) if trial.seconds is not None else "-",
            trial.limit, trial.programs, trial.registers, trial.shared,
            trial.note or ("present" if trial.config == present else ""),
        )
        for trial in trials
    ]  # fmt: skip
    heading = "median" if timed else f"{task.gpu} at least, {estimate.LABEL}"
    print(f"{task.call}\n  {task}")
    print(table(("", heading, "bound by", "programs/SM", "registers", "shared", ""), lines))
    print(flush=True)


def _text(config: Config | int) -> str:
    return str(config) if isinstance(config, int) else f"Config({', '.join(map(str, config))})"


def row_of(task: Task, trials: list[Trial], timed: bool) -> list[str]:
    """Lines for kernels/*/blocks.py where the best is better than the present one, else a comment that says so."""
    present = next(trial for trial in trials if trial.config == config_of(task.present))
    best, kept = trials[0], f"# {task.call}: nothing better than {_text(present.config)} by {GAIN - 1:.0%}: {task}"
    if best.seconds is None or present.seconds is None or present.seconds / best.seconds < GAIN:
        return [kept]
    gain = f"{present.seconds / best.seconds:.2f}x over {_text(present.config)}"
    what = f"{seconds(best.seconds)}, {gain}" if timed else f"bound {seconds(best.seconds)}, {gain}, {UNTIMED}"
    names, values = zip(*task.call.arguments, strict=True)
    parts = (task.present,) if isinstance(task.present, Config | int) else task.present
    result = ", ".join(_text(best.config) if part == present.config else repr(part) for part in parts)
    return [
        f"# {task.call}: {what}: {task}",
        f"if ({', '.join(names)}) == {values!r}:",
        f"    return {result}",
    ]
