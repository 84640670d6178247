"""The search of ``tune``: compile the neighbours of a configuration, then time them or compare their estimates."""

import functools
import statistics
from dataclasses import dataclass, replace

import torch

from benchmarks import configured, static, timers
from benchmarks.configured import Call, config_of, overridden
from benchmarks.measure import reason_of, verified, verify
from benchmarks.rows import WRONG
from benchmarks.runs import runner, tensors_of
from vitkern import dispatch
from vitkern.kernels.machine.blocks import Config
from vitkern.lab.compiling import estimate, workers
from vitkern.lab.compiling.compiled import Compiled
from vitkern.lab.compiling.layer import Layer
from vitkern.report import progress


@dataclass(frozen=True)
class Task:
    """One call of one case. ``present``: what the function returns now; ``gpu``: what is timed, or estimated for."""

    call: Call
    present: object
    case: Layer
    dtype: torch.dtype
    batch: int
    mode: str
    arch: int
    gpu: str

    def __str__(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.")
        return f"{self.case} {self.mode} {dtype} batch {self.batch}, {self.gpu}"


@dataclass(frozen=True)
class Trial:
    """A candidate. ``seconds``: of the whole case, timed or estimated; None where ``note`` says why it was dropped.

    ``limit``: the pipe or memory that the estimate names; the other figures are those of the kernel that changed.
    """

    config: Config | int
    seconds: float | None = None
    limit: str = "-"
    programs: int | str = "-"
    registers: int | str = "-"
    shared: int | str = "-"
    note: str = ""

    @property
    def order(self) -> tuple:
        """Faster first; of equal estimates the one that leaves more room on a multiprocessor; dropped ones last."""
        if self.seconds is None:
            return (1, 0.0, 0)
        return (0, self.seconds, -self.programs if isinstance(self.programs, int) else 0)


@dataclass(frozen=True)
class Compilation:
    """A task with one configuration; travels to the processes that compile."""

    task: Task
    config: Config | int


def compiled(what: Compilation, arch: int) -> list[Compiled]:
    """The kernels of the case under that configuration, compiled in this process."""
    task = what.task
    with overridden({task.call: what.config}):
        return static.kernels_of(task.case, task.dtype, task.batch, task.mode, arch)[0]


def ahead(tasks: list[Task], jobs: int) -> dict[Compilation, workers.Done]:
    """What the first round of each of ``tasks`` compiles, by one set of processes: they take seconds to start."""
    wanted = [Compilation(task, config) for task in tasks for config in _first(task)]
    return _compiled(wanted, jobs)


def _first(task: Task) -> tuple[Config | int, ...]:
    present = config_of(task.present)
    return (present, *configured.neighbours(task.call, present))


def search(
    task: Task, *, rounds: int, jobs: int, timed: bool, ready: dict[Compilation, workers.Done] | None = None
) -> list[Trial]:
    """Trials, the best first: the present configuration, its neighbours, and for each further round the best's.
    ``ready``: see `ahead`."""
    present, ready = config_of(task.present), ready or {}
    tried, known, best = [], [], present
    for _ in range(rounds):
        seen = {trial.config for trial in tried}
        fresh = [config for config in (present, *configured.neighbours(task.call, best)) if config not in seen]
        if not fresh:
            break
        wanted = {config: Compilation(task, config) for config in fresh}
        done = ready | _compiled([one for one in wanted.values() if one not in ready], jobs)
        known = known or done[wanted[present]].kernels
        trials = [_judged(task, config, done[wanted[config]], [] if config == present else known) for config in fresh]
        tried += [_timed(task, trial) if timed and not trial.note else trial for trial in trials]
        best = min(tried, key=lambda trial: trial.order).config
    return sorted(tried, key=lambda trial: trial.order)


def _compiled(wanted: list[Compilation], jobs: int) -> dict[Compilation, workers.Done]:
    done = {}
    for result in workers.compile_cells([(one, one.task.arch) for one in wanted], jobs, compiled) if wanted else ():
        one = result.cell[0]
        done[one] = result
        progress(f"[{len(done)}/{len(wanted)}] compiled {one.task.call.function} {one.config} {result.failed}".rstrip())
    return done


def _judged(task: Task, config: Config | int, done: workers.Done, known: list[Compiled]) -> Trial:
    """What the compiler says: dropped where it failed, changes nothing, or has problems.

    ``known``: the kernels of the present configuration, which stays whatever it is; empty where this is that one.
    """
    if done.failed:
        return Trial(config, note=f"dropped: {done.failed}")
    new = [kernel for kernel in done.kernels if kernel not in known]
    if not new:
        return Trial(config, note="dropped: it changes nothing")
    gpus = {name: gpu for name, gpu in estimate.GPUS.items() if gpu.arch == task.arch}
    gpu = gpus.get(task.gpu) or next(iter(gpus.values()), None)
    changed = max(new, key=lambda kernel: kernel.machine.registers)
    figures = dict(programs=changed.programs, registers=changed.machine.registers, shared=changed.shared)
    problems = [problem for kernel in new for problem in kernel.problems()]
    problems += ["not one program fits a multiprocessor"] * any(kernel.programs == 0 for kernel in new)
    if known and problems:
        return Trial(config, **figures, note=f"dropped: {problems[0]}")
    if gpu is None:
        return Trial(config, **figures)
    bounds = [estimate.bound(kernel, gpu) for kernel in done.kernels]
    return Trial(
        config, sum(bound.seconds for bound in bounds), max(bounds, key=lambda bound: bound.seconds).by, **figures
    )


def _timed(task: Task, trial: Trial) -> Trial:
    """``trial`` with its time on this GPU, once it is verified."""
    device = torch.device("cuda")
    try:
        with overridden({task.call: trial.config}), dispatch.use_backend("triton"):
            wrong = verify(task.case, task.dtype, device, images=verified(task.case, task.batch, task.dtype))
            if wrong:
                return replace(trial, seconds=None, note=f"dropped, {WRONG}: {wrong[0]}")
            return replace(trial, seconds=_median(task, device))
    except Exception as error:
        return replace(trial, seconds=None, note=f"dropped: {reason_of(error)}")


def _median(task: Task, device: torch.device) -> float:
    problem, runs = task.case.problem(task.batch), []
    for tensors in timers.copies_of(tensors_of(problem, task.dtype, device), timers.last_cache(device)):
        function = functools.partial(problem.run, **tensors, **problem.options)
        runs.append(runner(function, [tensors[name] for name in problem.gradients], task.mode))
    return statistics.median(timers.samples_of(timers.in_turn(runs), device, quick=False))
