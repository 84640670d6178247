"""tune: other block sizes, warps and stages for an operator's kernels, as rows for kernels/configs.py.

Candidates are one step from the present configuration, round after round. Each is compiled first, and dropped where
it does not compile, fit or keep to registers. With a GPU each is verified against float64 and timed. With --arch
nothing is timed, and no GPU is needed: the static estimate ranks what compiled.
"""

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from vitkern.kernels.configs import Config

from benchmarks import configured, results
from benchmarks.cases import CASES, OPS, batch_for, chosen
from benchmarks.configured import config_of
from benchmarks.layers import Layer
from benchmarks.rows import MODES
from benchmarks.search import Task, Trial, search
from benchmarks.variants import show_variants
from vitkern import dispatch
from vitkern.lab.compiling import budget, estimate
from vitkern.lab.compiling.matrix import ARCHITECTURES
from vitkern.report import BadInput, near_matches, progress, seconds, table

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
UNTIMED = "uncalibrated estimate, nothing was timed"
GAIN = 1.05  # a smaller one is no reason for a row


def add_arguments(parser) -> None:
    parser.add_argument("op", help=f"of {', '.join(OPS)}")
    parser.add_argument(
        "--case", nargs="+", default=[], metavar="PART", help="cases whose names hold, or match, a part"
    )
    parser.add_argument("--mode", nargs="+", choices=MODES[:2], default=["forward"])
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--arch", help="sm_90 and the like: estimate for it in place of timing here")
    parser.add_argument("--rounds", type=int, default=1, help="steps away from the present configuration")
    parser.add_argument("--jobs", type=int, default=1, help="processes that compile")
    parser.add_argument("--minutes", type=float, help="start no further search after so long")
    parser.add_argument("--save", metavar="FILE", help="write the rows; 'auto' chooses benchmarks/results/<device>/")


def run(arguments) -> int:
    if arguments.op not in OPS:
        near = near_matches(arguments.op, OPS)
        raise BadInput(f"tune: no operator is called {arguments.op!r}.{near} There are {', '.join(OPS)}.")
    if not dispatch.HAS_TRITON or dispatch.INTERPRETED:
        raise BadInput("tune compiles kernels: it needs Triton, and TRITON_INTERPRET unset.")
    if min(arguments.rounds, arguments.jobs) < 1:
        raise BadInput("tune: --rounds and --jobs are at least 1")
    cases = chosen(arguments.case, tuple(case for case in CASES if case.op == arguments.op))
    arch, gpu, timed = _place(arguments.arch)
    show_variants(cases if timed else (), DTYPES[arguments.dtype], arch)
    print(
        f"{gpu}, {budget.name_of(arch)}: {'verified against float64, then timed' if timed else UNTIMED}\n", flush=True
    )
    deadline = time.monotonic() + 60 * (arguments.minutes or float("inf"))
    lines, done = [], set()
    for task in tasks_of(cases, arguments.mode, DTYPES[arguments.dtype], arch, gpu):
        if time.monotonic() > deadline:
            progress(f"out of time: {task.call} for {task} and what follows")
            break
        if task.call in done:
            continue
        done.add(task.call)
        progress(f"{task.call}: {task}")
        trials = search(task, rounds=arguments.rounds, jobs=arguments.jobs, timed=timed)
        show(task, trials, timed)
        lines += row_of(task, trials, timed)
    if not done and time.monotonic() <= deadline:
        raise BadInput(f"tune: {arguments.op} starts no kernel in {arguments.dtype}: there is nothing to tune.")
    print("rows for kernels/configs.py:" if lines else f"no candidate is {GAIN - 1:.0%} better than what is there")
    print("\n".join(lines))
    if arguments.save:
        device = torch.device("cuda" if timed else "cpu")
        name = f"tune-{arguments.op}-{arguments.dtype}" + ("" if timed else f"-{budget.name_of(arch)}")
        name += "-part" * bool(arguments.case)
        path = results.automatic_path(device, name) if arguments.save == "auto" else Path(arguments.save)
        path = path.with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")
        print(f"saved {path}")
    return 0


def _place(name: str | None) -> tuple[int, str, bool]:
    """(architecture, GPU, whether it is here to be timed)."""
    if name is None:
        if not torch.cuda.is_available():
            raise BadInput("tune: torch sees no GPU to time on. --arch sm_90 ranks by the static estimate instead.")
        from vitkern.kernels import architecture

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
            for call, present in configured.asked(case, dtype, batch, mode, arch).items():
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


def _text(config: Config) -> str:
    return f"Config({', '.join(map(str, config))})"


def row_of(task: Task, trials: list[Trial], timed: bool) -> list[str]:
    """Two lines for kernels/configs.py where the best is better than the present one, else none."""
    present = next(trial for trial in trials if trial.config == config_of(task.present))
    best = trials[0]
    if best.seconds is None or present.seconds is None or present.seconds / best.seconds < GAIN:
        return []
    gain = f"{present.seconds / best.seconds:.2f}x over {_text(present.config)}"
    what = f"{seconds(best.seconds)}, {gain}" if timed else f"bound {seconds(best.seconds)}, {gain}, {UNTIMED}"
    names, values = zip(*task.call.arguments, strict=True)
    parts = task.present if not isinstance(task.present, Config) else (task.present,)
    result = ", ".join(_text(best.config) if isinstance(part, Config) else repr(part) for part in parts)
    return [
        f"# {task.call.function}: {what}: {task}",
        f"if ({', '.join(names)}) == {values!r}:\n    return {result}",
    ]
