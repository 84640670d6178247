"""One small model before and after `vitkern.accelerate`: what was swapped, and whether anything changed by it."""

import copy
import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vitkern.covering.family import Family, randomise
from vitkern.covering.running import FLOOR, Run, apart, run
from vitkern.interop.accelerate import accelerate
from vitkern.interop.report import Report

LIMIT = 1e-5  # relative, in float32
EXACT = 1e-8  # relative, in float64: what is nearer there was rounding before
SWAYS, SWAYED = 30.0, 1e-3  # or, in units of what the weights' last bits do there, while that itself is small
OK, ROUNDING, DRIFTED, BROKE, NOT_RUN = "ok", "rounding", "DRIFTED", "BROKE", "not run"
WRONG = (DRIFTED, BROKE)


@dataclasses.dataclass
class Row:
    """What came of one family.

    swapped, attending: modules that compute attention, on vitkern now and in all. operators: of the swapped modules,
        with their number. kept: the others, with the reason. logits, gradients: relative differences in eval mode;
        train: the larger of the two in train mode; double: the largest of all in float64, where float32 is over the
        limit. None: not looked at. status: one of the above. remark: an error, or what differs.
    """

    name: str
    swapped: int = 0
    attending: int = 0
    operators: dict[str, int] = dataclasses.field(default_factory=dict)
    kept: dict[str, int] = dataclasses.field(default_factory=dict)
    logits: float | None = None
    gradients: float | None = None
    train: float | None = None
    double: float | None = None
    status: str = OK
    remark: str = ""


def examine(family: Family) -> Row:
    """Build, swap, compare, restore. Whatever is raised ends in the row: `NOT_RUN` where the original itself cannot be
    built or run, `BROKE` after that."""
    row = Row(family.name)
    try:
        torch.manual_seed(0)
        model, inputs = family.build()
        model = randomise(model).eval()
        swapped = copy.deepcopy(model)  # before a run leaves tensors with a history in the model
        plain = run(model, inputs)
        before = plain, run(model, inputs, grad=False)
        trained = _training(model, inputs)
        if not (plain.says_something() and trained.says_something()):
            raise ValueError("it answers no real numbers, or has no gradients that are some")
    except Exception as error:
        row.status, row.remark = NOT_RUN, _said(error)
        return row
    try:
        _compare(row, model, swapped, inputs, before, trained)
    except Exception as error:
        row.status, row.remark = BROKE, _said(error)
    return row


def _compare(
    row: Row, model: nn.Module, swapped: nn.Module, inputs: Mapping[str, Any], before: tuple[Run, Run], trained: Run
) -> None:
    state, kinds = _state(swapped), [type(module) for module in swapped.modules()]
    report = accelerate(swapped)
    _count(row, report)
    if not _same(state, _state(swapped)):
        raise ValueError("the state dict is another one after accelerate")
    after, inferred = run(swapped, inputs), run(swapped, inputs, grad=False)
    row.logits = max(apart(before[0].outputs, after.outputs), apart(before[1].outputs, inferred.outputs))
    row.gradients = apart(before[0].gradients, after.gradients, FLOOR)
    report.restore()
    if [type(module) for module in swapped.modules()] != kinds or not _same(state, _state(swapped)):
        raise ValueError("restore left something changed")
    restored = run(swapped, inputs, grad=False)
    if apart(before[1].outputs, restored.outputs):
        raise ValueError("the restored model computes other bits")
    accelerate(swapped)
    learnt = _training(swapped, inputs)
    row.train = _apart(trained, learnt)
    difference = max(row.logits, row.gradients, row.train)
    if difference > LIMIT:
        _judge(row, difference, model, swapped, inputs)


def _judge(row: Row, difference: float, model: nn.Module, swapped: nn.Module, inputs: Mapping[str, Any]) -> None:
    """Whether ``difference`` is that of rounding: in float64, or where the original has none as it is."""
    allowed, doubled = 0.0, {name: _double(value) for name, value in inputs.items()}
    try:
        plain = _steps(model.double(), doubled)
    except Exception:
        plain, doubled = _steps(model.float(), inputs), dict(inputs)
    else:
        row.double = difference = max(map(_apart, plain, _steps(swapped.double(), doubled)))
        allowed = EXACT
    sway = max(map(_apart, plain, _steps(_swayed(model), doubled)))
    if sway < SWAYED:
        allowed = max(allowed, SWAYS * sway)
    row.status = ROUNDING if difference <= allowed else DRIFTED


def _steps(model: nn.Module, inputs: Mapping[str, Any]) -> list[Run]:
    """In eval and in train mode."""
    return [run(model.eval(), inputs), _training(model, inputs)]


def _swayed(model: nn.Module) -> nn.Module:
    """Changes the last bit of each weight."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            signs = torch.randint(0, 2, parameter.shape, generator=generator) * 2 - 1
            parameter.mul_(1 + signs.to(parameter) * torch.finfo(parameter.dtype).eps)
    return model


def _apart(one: Run, other: Run) -> float:
    return max(apart(one.outputs, other.outputs), apart(one.gradients, other.gradients, FLOOR))


def _training(model: nn.Module, inputs: Mapping[str, Any]) -> Run:
    """A step in train mode; the statistics that it leaves in buffers are among its outputs. Back in eval mode, with the
    buffers as they were."""
    kept = {name: buffer.clone() for name, buffer in model.named_buffers()}
    found = run(model.train(), inputs)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
    for name, buffer in model.named_buffers():
        if name in kept and buffer.shape == kept[name].shape:
            buffer.copy_(kept[name])
    model.eval()
    return Run({**found.outputs, **buffers}, found.gradients)


def _count(row: Row, report: Report) -> None:
    row.attending, row.swapped = len(report.attention), sum(each.by is not None for each in report.attention)
    names = (
        op + (", where a kernel runs" if entry.needs_kernel else "") for entry in report.swapped for op in entry.ops
    )
    row.operators = dict(Counter(names))
    row.kept = dict(Counter(f"{entry.kind.__name__}: {entry.reason}" for entry in report.kept))


def _state(model: nn.Module) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in model.state_dict().items()}


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return list(one) == list(other) and all(_equal(value, other[name]) for name, value in one.items())


def _equal(one: Any, other: Any) -> bool:
    return torch.equal(one, other) if isinstance(one, Tensor) and isinstance(other, Tensor) else bool(one == other)


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _said(error: BaseException) -> str:
    lines: Iterable[str] = (line.strip() for line in str(error).splitlines() if line.strip())
    return f"{type(error).__name__}: {' '.join(lines)}"[:300]
