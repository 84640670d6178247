"""A run: cases and models one after the other, each saved as it is done, whatever becomes of the next one."""

import time
import traceback
from pathlib import Path

import torch

from benchmarks import ceilings, results, static, tables
from benchmarks.cases import batch_for
from benchmarks.measure import measure, reason_of
from benchmarks.models import batch_of, measure_model
from benchmarks.rows import FAILED, OURS, Row
from benchmarks.runs import DTYPES
from vitkern import dispatch
from vitkern.lab.compiling.layer import Layer
from vitkern.report import BadInput, progress

MODELS = "models"
UNFINISHED = "did not finish"


class DeviceLost(Exception):
    """The GPU reported an error after which nothing runs in this process."""


def measured(arguments, jobs: list, device: torch.device, dtype_name: str, path: Path | None) -> list[Row]:
    """The rows of ``jobs``, cases and names of models, saved to ``path`` after each; prints what was found.

    Raises:
        DeviceLost: all that was measured before is saved.
    """
    start, dtype, timed = time.monotonic(), DTYPES[dtype_name], not arguments.warm
    found = results.environment(device)
    best = ceilings.measured(device, dtype, quick=arguments.quick) if timed else ceilings.NONE
    found["ceilings"] = {str(dtype).removeprefix("torch."): best._asdict()}
    if timed:
        _print_environment(found, device)
    before = results.resumed(path, found) if arguments.resume and path else []
    jobs, kept = _left(jobs, before, arguments, device, dtype)
    rows, keep = list(kept), _keeper(path, found)
    for i, job in enumerate(jobs, 1):
        if arguments.minutes and time.monotonic() - start > 60 * arguments.minutes:
            progress(f"out of time: {len(jobs) - i + 1} of {len(jobs)} cases not run")
            break
        progress(f"[{i}/{len(jobs)}] {_name(job)} {dtype_name} ({time.monotonic() - start:.0f} s)")
        blank = blanks(job, arguments, device, dtype)
        keep(rows + [_noted(row, UNFINISHED) for row in blank])
        try:
            rows += _rows_of(job, arguments, device, dtype, best)
        except BadInput:
            raise
        except Exception as error:
            traceback.print_exc()
            rows += [_noted(row, f"{FAILED}: {reason_of(error)}") for row in blank]
        keep(rows)
        if device.type == "cuda" and not _is_alive():
            raise DeviceLost
    if timed:
        tables.print_operators([row for row in rows if row.op != MODELS], best)
        tables.print_models([row for row in rows if row.op == MODELS])
    if path and rows:
        print(f"saved {path}\n")
    return rows


def _keeper(path: Path | None, found: dict):
    return (lambda rows: None) if path is None else (lambda rows: results.save(path, rows, found))


def _name(job) -> str:
    return job if isinstance(job, str) else f"{job.op}: {job}"


def _rows_of(job: Layer | str, arguments, device: torch.device, dtype: torch.dtype, best) -> list[Row]:
    timed, quick, batch = not arguments.warm, arguments.quick, _batch(job, arguments, device)
    modes = tuple(dict.fromkeys(arguments.mode))
    if isinstance(job, str):
        options = dict(batch=batch, modes=modes, compiled=bool(arguments.compile), progress=progress, timed=timed)
        return measure_model(job, dtype, device, budget=1.0 if quick else arguments.seconds, **options)
    compiled = device.type == "cuda" if arguments.compile is None else arguments.compile
    options = dict(batch=batch, modes=modes, quick=quick, compiled=compiled, timed=timed)
    of_case = measure(job, dtype, device, peak_flops=best.matmul, limit=arguments.limit, **options)
    return [static.added(row, job, arguments.estimate) for row in of_case]


def _batch(job: Layer | str, arguments, device: torch.device) -> int:
    gpu, quick = device.type == "cuda", arguments.quick
    own = batch_of(job, gpu=gpu, quick=quick) if isinstance(job, str) else batch_for(job, gpu=gpu, quick=quick)
    return arguments.batch or own


def blanks(job: Layer | str, arguments, device: torch.device, dtype: torch.dtype) -> list[Row]:
    """Our rows of a job, one for each mode, without figures."""
    op, case, batch = MODELS if isinstance(job, str) else job.op, str(job), _batch(job, arguments, device)
    name, modes = str(dtype).removeprefix("torch."), dict.fromkeys(arguments.mode)
    if isinstance(job, str):
        modes = dict.fromkeys("forward" if mode == "forward" else "training" for mode in modes)
    return [Row(op, case, mode, name, batch, OURS, None) for mode in modes]


def _noted(row: Row, note: str) -> Row:
    return Row(*row.key, row.contender, None, note=note)


def _left(jobs: list, before: list[Row], arguments, device, dtype) -> tuple[list, list[Row]]:
    """The jobs that ``before`` lacks, then those that did not finish, and its other rows."""
    ours = {row.key: row.note for row in before if row.contender == OURS}
    fresh, again, dropped = [], [], set()
    for job in jobs:
        notes = {row.key: ours.get(row.key) for row in blanks(job, arguments, device, dtype)}
        if None in notes.values():
            fresh.append(job)
        elif UNFINISHED in notes.values():
            again.append(job)
        else:
            continue
        dropped |= set(notes)
    return fresh + again, [row for row in before if row.key not in dropped]


def _is_alive() -> bool:
    try:
        torch.cuda.empty_cache()
        torch.cuda.synchronize()
    except RuntimeError as error:
        progress(f"the GPU is lost to this process: {reason_of(error)}")
        return False
    return True


def _print_environment(found: dict, device: torch.device) -> None:
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
