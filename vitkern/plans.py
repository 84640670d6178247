"""What does not depend on data, decided once.

A `Plan` is of calls of a public function that agree in all that a decision depends on: sizes, strides, dtypes, devices
and alignment of tensors, the other arguments, and what is switched for the process: the backend asked for, TF32,
autocast, what a fault has taught. The first such call checks its arguments, chooses, and records the launchers that it
runs (`vitkern.tape`); a later one checks nothing, chooses nothing, and goes past the dispatcher of torch.library. On
the CPU, where nothing is launched, a plan says that arguments are checked and that PyTorch runs.

Only plain eager calls are planned. Within torch.compile, export, tracing, torch.func, a mode or a profile, with
subclasses of tensors, and where Triton's launch hooks listen, every call goes its usual way.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import profiler

from vitkern import dispatch
from vitkern.tape import Tape, recording

if TYPE_CHECKING:
    from vitkern.register import KernelOp

MOST = 4096  # plans; beyond them the oldest goes
MOST_PARTS = 32  # of a plan
_plans: dict[Hashable, "Plan"] = {}

if dispatch.HAS_TRITON:
    from triton import knobs

    from vitkern.kernels.machine.blocks import allows_tf32
    from vitkern.kernels.machine.switch import Switch

    enabled = Switch(True)
    interpreted = Switch(False)  # whether calls on kernels that are interpreted are planned too


class Plan:
    """Of calls of the public function ``op``. ``checked``: such a call was found right before. ``known``: and runs on a
    kernel. ``casts``: autocast may be on. ``stays``: calls that run in PyTorch are planned, too."""

    __slots__ = ("_choice", "_grades", "_key", "_stays", "_tapes", "casts", "checked", "known", "layouts", "op")

    def __init__(self, op: str, key: Hashable | None, grades: bool, casts: bool, stays: bool = False) -> None:
        self.op, self.checked, self.known, self.casts = op, False, False, casts
        self._key, self._grades, self._stays = key, grades, stays
        self._choice: tuple | None = None
        self._tapes: dict[Any, Tape | None] = {}  # None: the launcher cannot be recorded
        self.layouts: dict[KernelOp, Any] = {}  # of the arguments of an operator

    def runs_kernel(
        self, tensors: Iterable[Tensor | None], reasons: Iterable[str] = (), operator: str | None = None
    ) -> bool:
        """`dispatch.runs_kernel`, where it is not known. The caller has checked all arguments."""
        if self.checked:
            return self.known
        runs = dispatch.runs_kernel(self.op, tensors, reasons, operator)
        if self._key is not None and (runs or self._stays):
            self.checked, self.known = True, runs
            _keep(self._key, self)
        return runs

    def sources(self) -> list[str]:
        """What later calls run, as text: the forward's tape first."""
        return [tape.source for tape in self._tapes.values() if tape is not None]

    def chosen(self, choose: Callable[[], tuple]) -> tuple:
        """``choose()``, once."""
        if self._choice is None:
            self._choice = choose()
        return self._choice

    def run(self, operator: "KernelOp", *args: Any) -> Any:
        """``operator(*args)``; beside tensors that are planned for, ``args`` hold what such a call always makes of
        them."""
        if self._key is None:
            return operator(*args)
        if self._grades:
            return operator.planned.apply(*args, self)
        return self.played(operator, operator.implementation, args, shares=True)

    def differentiate(
        self, operator: "KernelOp", grads: Sequence[Tensor | None], saved: Sequence[Tensor], args: Sequence[Any]
    ) -> Any:
        """The launcher of the gradients of ``operator``. Its tensors, ``grads`` and what was ``saved``, are described
        anew: hooks may have saved them in another layout, and ``.data`` may be another tensor by now."""
        switches = _eager(saved[0])
        described = None if switches is None else _described((*grads, *saved))
        if described is None:
            return operator.backward_overload(*args)
        part = operator.name, switches, tuple(args[-1]), described
        return self.played(part, operator.backward_implementation, args, shares=True)

    def played(self, part: Hashable, implementation: Callable, args: Sequence[Any], *, shares: bool = False) -> Any:
        """``implementation(*args)``, by its tape if there is one of this ``part`` of the plan. ``shares``: results that
        are empty stand for nothing, and are not kept."""
        tape = self._tapes.get(part)
        if tape is not None:
            device = tape.device
            if device is None or device.type != "cuda" or device.index == torch.cuda.current_device():
                return tape.play(*args)
            with torch.cuda.device(device):
                return tape.play(*args)
        if part in self._tapes:
            return implementation(*args)
        before = _switches()
        with recording(shares) as made:
            results = implementation(*args)
        if _switches() == before:  # no fault kept the kernel from starting
            if len(self._tapes) > MOST_PARTS:
                self._tapes.clear()
            self._tapes[part] = made.tape
        return results


def plan_of(op: str, tensors: Sequence[Tensor | None], options: tuple) -> Plan:
    """That of a call of the public function ``op`` with these arguments, of which the first is a tensor.

    ``options``: all that are no tensors.
    """
    first = tensors[0]
    stays = first is not None and type(first) in dispatch.PLAIN and first.is_cpu and not dispatch.INTERPRETED
    switches = _eager(first, stays)
    described = None if switches is None else _described(tensors)
    if first is None or switches is None or described is None:
        return Plan(op, None, False, True)
    types = tuple([tuple(map(type, value)) if type(value) is tuple else type(value) for value in options])
    needs = tuple([tensor is not None and tensor.requires_grad for tensor in tensors])
    grades = torch.is_grad_enabled() and True in needs
    key = (op, options, types, switches, grades, needs, described)
    try:
        found = _plans.get(key)
    except TypeError:  # an option that is a list, say
        return Plan(op, None, False, True)
    return Plan(op, key, grades, switches[-1] is not None, stays) if found is None else found


def dispatched(op: str, implementation: Callable, args: Sequence[Any]) -> Any:
    """``implementation(*args)`` of a registered operator that came through the dispatcher, as out of a compiled graph:
    checked there, and planned by its own arguments."""
    tensors = [value for value in args if isinstance(value, Tensor)]
    switches = _eager(tensors[0])
    described = None if switches is None else _described(tensors)
    if described is None:
        return implementation(*args)
    values = tuple(
        [Tensor if isinstance(value, Tensor) else tuple(value) if type(value) is list else value for value in args]
    )
    key = (op, values, switches, described)
    found = _plans.get(key)
    if found is None:
        found = Plan(op, key, False, False)
        _keep(key, found)
    return found.played("", implementation, args)


def forget() -> None:
    """Decide everything anew."""
    _plans.clear()


def _keep(key: Hashable, made: Plan) -> None:
    _plans[key] = made
    if len(_plans) > MOST:
        with contextlib.suppress(RuntimeError, StopIteration):  # another thread makes room
            _plans.pop(next(iter(_plans)), None)


def _eager(first: Any, stays: bool = False) -> tuple | None:
    """What of the process decides how a call runs: `_switches`, and the dtype of autocast, which also holds for what
    PyTorch computes between launches. None where calls are not planned; ``stays``: those that run in PyTorch are."""
    if not dispatch.HAS_TRITON or type(first) not in dispatch.PLAIN:
        return None
    if not (stays or first.is_cuda or interpreted.value or dispatch.switches()[1]):
        return None
    if dispatch.is_seen() or profiler._is_profiler_enabled or _is_watched() or not enabled.value:
        return None
    return *_switches(), dispatch.autocast_dtype(first) if torch._C._is_any_autocast_enabled() else None


def _described(tensors: Sequence[Tensor | None]) -> tuple | None:
    """What of tensors decides how a call runs; None where one is more than its memory, or other."""
    found: list = []
    single = False
    for tensor in tensors:
        if tensor is None:
            found.append(None)
            continue
        if type(tensor) not in dispatch.PLAIN or tensor.is_neg():  # minus what is in memory
            return None
        try:
            address = tensor.data_ptr()
            found += tensor.shape, tensor.stride(), tensor.dtype, tensor.device, address & 15
        except RuntimeError:  # sparse or nested: for the checks to refuse
            return None
        if not address and tensor._is_zerotensor():  # zeros that are not in memory
            return None
        single = single or tensor.dtype is torch.float32
    return *found, single and allows_tf32()


def _switches() -> tuple:
    return *dispatch.switches(), Switch.turned


def _is_watched() -> bool:
    """Whether somebody wants to be told of each launch."""
    for hook in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        if getattr(hook, "calls", hook):
            return True
    return False
