"""The one place that decides where an op runs: a Triton kernel, Triton's interpreter, or PyTorch.

The decision is a list of reasons why the kernel can *not* run (`why_not`). Empty: it runs. The same list chooses, fills
the report of `vitkern.accelerate` and ``python -m vitkern info``, and is the error when a kernel was asked for by name.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from vitkern import faults

if TYPE_CHECKING:
    from typing_extensions import TypeVarTuple, Unpack

    Tensors = TypeVarTuple("Tensors")

BACKENDS = ("auto", "triton", "interpreter", "torch")
PLAIN = (Tensor, torch.nn.Parameter)  # types of tensors that are nothing more
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def _without_triton() -> str | None:
    """Why there is no Triton; None where it imports. Importing it touches no driver."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    try:
        importlib.import_module("triton.language")
    except Exception as error:  # a build for another Python or system fails in its own ways
        return f"Triton does not import: {type(error).__name__}: {error}"
    return None


_NO_TRITON = _without_triton()
HAS_TRITON = _NO_TRITON is None
# Triton reads this when a kernel is decorated, so a later change has no effect.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")

interpreter_is_repaired = False  # set by `vitkern.lab.interpreting.interpreter`


def _release(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version(name))[:2])


@functools.cache
def _interpreter_reasons() -> tuple[str, ...]:
    if _release("triton") < (3, 7) and _release("numpy") >= (2, 4):
        return (
            "the interpreter of Triton before 3.7 needs numpy below 2.4, or the repairs of "
            "vitkern.lab.interpreting.interpreter",
        )
    return ()


_NOT_INTERPRETED = "TRITON_INTERPRET=1 was not in the environment before vitkern was imported"

logger = logging.getLogger("vitkern")
_noted: set[str] = set()


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend: unknown name: got {name!r}; expected one of {', '.join(BACKENDS)}.")
    return name


class _Asked:
    """One wish for a backend. Compared by identity: the blocks of several threads may end in any order."""

    def __init__(self, name: str) -> None:
        self.name = name


_asked = [_Asked(_checked(os.environ.get("VITKERN_BACKEND", "auto")))]  # then one for each `use_backend` block
_any_device = False


def current_backend() -> str:
    """The backend asked for: "auto" unless `use_backend` or ``VITKERN_BACKEND`` says otherwise."""
    return _asked[-1].name


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Within the block run every op on backend ``name``: "auto", "triton", "interpreter" or "torch"; in all threads,
    as the threads of a backward pass are not those of the forward.

    Forcing "triton" or "interpreter" turns each reason why a kernel cannot run into an error. "torch" also makes a
    model exportable to ONNX and gives modules that hook attention weights the plain path.
    """
    own = _Asked(_checked(name))
    _asked.append(own)
    try:
        yield
    finally:
        _asked.remove(own)


def is_forced() -> bool:
    """Whether a kernel was asked for by name, so that PyTorch must not take its place."""
    return current_backend() in ("triton", "interpreter")


def forced_in_vain(op: str, reasons: Iterable[str], remedy: str = "") -> NotImplementedError:
    """The error where a kernel was asked for and cannot run."""
    return NotImplementedError(
        f"{op}: the kernel was asked for (backend={current_backend()!r}) and cannot run: {'; '.join(reasons)}. "
        + remedy
    )


@contextmanager
def any_device() -> Iterator[None]:
    """Within the block no device is a reason against a kernel, so that launches can be compiled without a GPU."""
    global _any_device
    before, _any_device = _any_device, True
    try:
        yield
    finally:
        _any_device = before


def switches() -> tuple[str, bool, int]:
    """What decides where operators run, beside their arguments: the backend asked for, whether `any_device` holds, and
    how often a fault has changed anything."""
    return _asked[-1].name, _any_device, faults.changes[0]


@functools.cache
def _device_reasons(index: int) -> tuple[str, ...]:
    if not torch.cuda.is_available():
        return ("PyTorch finds no GPU here",)  # a fake tensor may still be on one
    if torch.version.hip:
        return ()
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        return (f"the GPU is sm_{major}{minor}, and the kernels need sm_80 or newer",)
    return ()


def why_not(tensors: Iterable[Tensor | None], reasons: Iterable[str] = (), op: str | None = None) -> list[str]:
    """Reasons why a kernel cannot take ``tensors``, after ``reasons``, which the op found. Empty: it runs.

    ``op``: the registered operator; what kept its kernel from starting before is a reason then.
    """
    found = list(reasons)
    if _NO_TRITON is not None:
        found.append(_NO_TRITON)
    present = [t for t in tensors if t is not None]
    for dtype in dict.fromkeys(t.dtype for t in present if t.is_floating_point()):
        if dtype not in KERNEL_DTYPES:
            found.append(f"{dtype} is not one of float16, bfloat16, float32")
    for device in dict.fromkeys(t.device for t in present):
        found.extend(faults.reasons(op, device))
        if _any_device:
            continue
        if device.type == "cuda":
            found.extend(_device_reasons(device.index or 0))
            if INTERPRETED:
                found.append("TRITON_INTERPRET is set, and the interpreter takes CPU tensors")
        elif device.type == "cpu" or device.type == "meta":
            if INTERPRETED:
                found.extend(() if interpreter_is_repaired else _interpreter_reasons())
            else:
                found.append(f"tensors are on {device.type}, and {_NOT_INTERPRETED}")
        else:
            found.append(f"tensors are on {device.type}, and the kernels run on CUDA and ROCm")
    return found


def is_transformed() -> bool:
    """Whether derivatives are taken in another way than by one reverse pass: torch.func, vmap, or forward-mode
    autograd. They know PyTorch's own operators only."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_recorded(*values: object) -> bool:
    """Whether the call with ``values`` is being written down as a graph of PyTorch's own operators, of any sizes: by
    torch.jit.trace, the ONNX exporter that builds on it, or torch.fx. In torch.compile and torch.export it is not."""
    if torch.compiler.is_compiling():
        return False
    return torch.jit.is_tracing() or any(isinstance(value, torch.fx.Proxy) for value in values)


def is_seen() -> bool:
    """Whether anything but the caller sees which operators run: a trace, a transformation, a mode."""
    if torch.compiler.is_compiling() or torch._C._is_tracing() or is_transformed():
        return True
    return bool(torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack())


def is_eager(*tensors: Tensor | None) -> bool:
    """Whether operators run as they are called, on ``tensors`` that are nothing more than tensors: no tracing, no
    transformation, no mode or subclass that wants to see them, no capture of a CUDA graph, whose memory is its own.
    Then values may be cached, and memory reused.
    """
    if is_seen() or is_captured():
        return False
    return all([tensor is None or type(tensor) in PLAIN for tensor in tensors])


def is_captured() -> bool:
    """Whether what the current stream is given goes into a CUDA graph."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def is_batched(gradient: Tensor) -> bool:
    """Whether a backward pass is given many gradients at once (``is_grads_batched``), which only PyTorch's own
    operators, and out of place, know."""
    functorch = torch._C._functorch
    return functorch.is_legacy_batchedtensor(gradient) or functorch.is_functorch_wrapped_tensor(gradient)


def runs_kernel(
    op: str, tensors: Iterable[Tensor | None], reasons: Iterable[str] = (), operator: str | None = None
) -> bool:
    """True: call the operator of ``op``, which launches its kernel. False: take the PyTorch path.

    ``operator``: the registered operator that it would call, where its name is not ``op``.

    Raises:
        NotImplementedError: a kernel was forced with `use_backend` or ``VITKERN_BACKEND`` and cannot run; the message
        lists why.
    """
    backend = current_backend()
    if backend == "torch":
        return False
    present = [t for t in tensors if t is not None]
    found = why_not(present, reasons)
    if not torch.compiler.is_compiling() and is_transformed():
        found.append("torch.func, vmap and forward-mode autograd transform PyTorch's own operators only")
    if backend != "auto" or not torch.is_grad_enabled():
        # otherwise the operator itself goes to PyTorch: a checkpoint's second forward must save what its first one did
        for device in dict.fromkeys(t.device for t in present):
            found += faults.reasons(operator or op, device)
    if backend == "triton" and INTERPRETED:
        found.append("TRITON_INTERPRET is set, so kernels are interpreted")
    if backend == "interpreter" and HAS_TRITON and not INTERPRETED and not found:
        found.append(_NOT_INTERPRETED)
    if not found:
        return True
    if backend != "auto":
        raise forced_in_vain(op, found)
    if not torch.compiler.is_compiling():
        for device in dict.fromkeys(t.device for t in present if t.is_cuda):
            _warn_of_environment(op, device)
    _note(f"{op} runs in PyTorch: {'; '.join(found)}")
    return False


def _warn_of_environment(op: str, device: torch.device) -> None:
    """A GPU is there, and what is installed cannot use it."""
    if _NO_TRITON is not None:
        faults.warn(op, faults.Fault(_NO_TRITON, "", "Install the Triton release that this PyTorch asks for."), device)
    for reason in _device_reasons(device.index or 0):
        faults.warn(op, faults.Fault(reason, "", "The kernels need another GPU."), device)


def _note(message: str) -> None:
    if not torch.compiler.is_compiling() and message not in _noted:
        _noted.add(message)
        logger.info(message)


def autocast_dtype(like: Tensor) -> torch.dtype | None:
    """The dtype that autocast asks for on the device of ``like``; None where it is off, as it always is on meta."""
    device = like.device.type
    if device == "meta" or not torch.is_autocast_enabled(device):
        return None
    return torch.get_autocast_dtype(device)


def no_autocast(like: Tensor) -> torch.autocast:
    """Within the block nothing is cast on the device of ``like``: what is wide stays so in matrix products."""
    return torch.autocast("cpu" if like.is_meta else like.device.type, enabled=False)


def autocast(*tensors: "Unpack[Tensors]") -> "tuple[Unpack[Tensors]]":
    """``tensors`` in the autocast dtype where autocast is on for their device, as they are elsewhere.

    Done here and not by ``register_autocast``, which knows a single fixed dtype.
    """
    given: tuple[Any, ...] = tensors
    dtype = autocast_dtype(next(t for t in given if t is not None))
    if dtype is None:
        return tensors
    made: Any = tuple(t.to(dtype) if t is not None and t.is_floating_point() else t for t in given)
    return made
