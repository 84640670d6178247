"""What does not depend on data, decided once.

Two memories, keyed by all that a decision depends on: sizes, strides, dtypes, devices and alignment of tensors, the
other arguments, and what is switched for the process: the backend asked for, TF32, what a fault has taught. `passed`
knows the calls of public functions whose arguments were checked and that run on a kernel; `run` has the tape of an
operator's launcher (`vitkern.tape`). So a second call checks nothing, chooses nothing, and goes past the dispatcher of
torch.library.

Only plain eager calls are remembered. Within torch.compile, export, tracing, torch.func, a mode or a profile, with
subclasses of tensors, and where Triton's launch hooks listen, every call goes its usual way.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import profiler

from vitkern import dispatch, faults
from vitkern.kernels.machine.blocks import allows_tf32
from vitkern.kernels.machine.switch import Switch
from vitkern.tape import Tape, recording

MOST = 4096  # entries of a memory; beyond them the oldest goes
interpreted = Switch(False)  # whether calls on kernels that are interpreted are remembered too

Value = TypeVar("Value")
_PLAIN = (Tensor, torch.nn.Parameter)
_passed: dict[Hashable, None] = {}
_tapes: dict[Hashable, Tape | None] = {}  # None: the launcher cannot be recorded

if dispatch.HAS_TRITON:
    from triton import knobs


def key(op: str, tensors: Sequence[Tensor | None], options: tuple) -> Hashable | None:
    """Of a call of a public function, for `passed` and `passes`; None where it is not to be remembered.

    ``options``: all arguments that are no tensors. The first tensor is not None.
    """
    found = _described(tensors)
    if found is None:
        return None
    types = tuple([tuple(map(type, value)) if type(value) is tuple else type(value) for value in options])
    needs = [tensor is not None and tensor.requires_grad for tensor in tensors]
    made = (op, options, types, *needs, torch.is_grad_enabled(), dispatch.autocast_dtype(tensors[0]), *found)
    try:
        hash(made)
    except TypeError:  # an option that is a list, say
        return None
    return made


def passed(key: Hashable | None) -> bool:
    """Whether such a call was found right, and runs on a kernel."""
    return key is not None and key in _passed


def passes(key: Hashable | None) -> None:
    """From now on `passed`."""
    if key is not None:
        _keep(_passed, key, None)


def key_of_operator(op: str, args: Sequence[Any]) -> Hashable | None:
    """Of a call of a registered operator, for `run`; None where it is to go through the dispatcher."""
    found = _described([value for value in args if isinstance(value, Tensor)])
    if found is None:
        return None
    values = [
        Tensor if isinstance(value, Tensor) else tuple(value) if type(value) is list else (type(value), value)
        for value in args
    ]
    return (op, *values, *found)


def run(key: Hashable, implementation: Callable, args: Sequence[Any]) -> Any:
    """``implementation(*args)``, by its tape where one is there for ``key``, that of `key_of_operator`."""
    tape = _tapes.get(key)
    if tape is not None:
        device = tape.device
        if device is None or device.type != "cuda" or device.index == torch.cuda.current_device():
            return tape.play(*args)
        with torch.cuda.device(device):
            return tape.play(*args)
    if key in _tapes:
        return implementation(*args)
    before = _switches()
    with recording() as made:
        results = implementation(*args)
    if _switches() == before:  # no fault kept the kernel from starting
        _keep(_tapes, key, made.tape)
    return results


def forget() -> None:
    """Decide everything anew."""
    _passed.clear()
    _tapes.clear()


def _keep(memory: dict[Hashable, Value], key: Hashable, value: Value) -> None:
    memory[key] = value
    if len(memory) > MOST:
        try:
            memory.pop(next(iter(memory)), None)
        except (RuntimeError, StopIteration):  # another thread makes room
            pass


def _described(tensors: Sequence[Tensor | None]) -> list | None:
    """What of tensors, and of the process, decides how a call runs; None where calls are not remembered."""
    first = tensors[0]
    if not dispatch.HAS_TRITON or type(first) not in _PLAIN or not (first.is_cuda or interpreted.value or dispatch.takes_any_device()):
        return None
    if not dispatch.is_eager(*tensors) or profiler._is_profiler_enabled or _is_watched():
        return None
    found, single = list(_switches()), False
    for tensor in tensors:
        if tensor is None:
            found.append(None)
        else:
            single = single or tensor.dtype is torch.float32
            found += tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.data_ptr() & 15
    found.append(single and allows_tf32())
    return found


def _switches() -> tuple:
    return dispatch.current_backend(), dispatch.takes_any_device(), faults.changes(), Switch.turned


def _is_watched() -> bool:
    """Whether somebody wants to be told of each launch."""
    for hook in (knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook):
        if getattr(hook, "calls", hook):
            return True
    return False
