"""The one place that decides where an op runs: a Triton kernel, Triton's interpreter, or PyTorch.

The decision is a list of reasons why the kernel can *not* run (`why_not`). Empty: it runs. The same list chooses, fills
the report of `vitkern.accelerate` and ``python -m vitkern info``, and is the error when a kernel was asked for by name.
"""

import functools
import importlib.metadata
import importlib.util
import logging
import os
import re
from collections.abc import Iterable
from contextlib import contextmanager

import torch
from torch import Tensor

BACKENDS = ("auto", "triton", "interpreter", "torch")
KERNEL_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HAS_TRITON = importlib.util.find_spec("triton") is not None
# Triton reads this when a kernel is decorated, so a later change has no effect.
INTERPRETED = HAS_TRITON and os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")


def _release(name: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version(name))[:2])


@functools.cache
def _interpreter_reasons() -> tuple[str, ...]:
    if _release("triton") < (3, 7) and _release("numpy") >= (2, 4):
        return ("the interpreter of Triton before 3.7 needs numpy below 2.4",)
    return ()


_NOT_INTERPRETED = "TRITON_INTERPRET=1 was not in the environment before vitkern was imported"

logger = logging.getLogger("vitkern")
_noted: set[str] = set()


def _checked(name: str) -> str:
    if name not in BACKENDS:
        raise ValueError(f"backend: unknown name: got {name!r}; expected one of {', '.join(BACKENDS)}.")
    return name


_backend = _checked(os.environ.get("VITKERN_BACKEND", "auto"))
_any_device = False


def current_backend() -> str:
    """The backend asked for: "auto" unless `use_backend` or ``VITKERN_BACKEND`` says otherwise."""
    return _backend


@contextmanager
def use_backend(name: str):
    """Within the block run every op on backend ``name``: "auto", "triton", "interpreter" or "torch".

    Forcing "triton" or "interpreter" turns each reason why a kernel cannot run into an error. "torch" also makes a
    model exportable to ONNX and gives modules that hook attention weights the plain path.
    """
    global _backend
    before, _backend = _backend, _checked(name)
    try:
        yield
    finally:
        _backend = before


@contextmanager
def any_device():
    """Within the block no device is a reason against a kernel, so that launches can be compiled without a GPU."""
    global _any_device
    before, _any_device = _any_device, True
    try:
        yield
    finally:
        _any_device = before


@functools.cache
def _device_reasons(index: int) -> tuple[str, ...]:
    if torch.version.hip:
        return ()
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        return (f"the GPU is sm_{major}{minor}, and the kernels need sm_80 or newer",)
    return ()


def why_not(tensors: Iterable[Tensor | None], reasons: Iterable[str] = ()) -> list[str]:
    """Reasons why a kernel cannot take ``tensors``, after ``reasons``, which the op found. Empty: it runs."""
    found = list(reasons)
    if not HAS_TRITON:
        found.append("Triton is not installed")
    tensors = [t for t in tensors if t is not None]
    for dtype in dict.fromkeys(t.dtype for t in tensors if t.is_floating_point()):
        if dtype not in KERNEL_DTYPES:
            found.append(f"{dtype} is not one of float16, bfloat16, float32")
    for device in dict.fromkeys(t.device for t in tensors):
        if _any_device:
            continue
        if device.type == "cuda":
            found.extend(_device_reasons(device.index or 0))
            if INTERPRETED:
                found.append("TRITON_INTERPRET is set, and the interpreter takes CPU tensors")
        elif device.type == "cpu" or device.type == "meta":
            if INTERPRETED:
                found.extend(_interpreter_reasons())
            else:
                found.append(f"tensors are on {device.type}, and {_NOT_INTERPRETED}")
        else:
            found.append(f"tensors are on {device.type}, and the kernels run on CUDA and ROCm")
    return found


def runs_kernel(op: str, tensors: Iterable[Tensor | None], reasons: Iterable[str] = ()) -> bool:
    """True: launch the kernel of ``op``. False: take its PyTorch path.

    Raises:
        NotImplementedError: a kernel was forced with `use_backend` or ``VITKERN_BACKEND`` and cannot run; the message
        lists why.
    """
    if _backend == "torch":
        return False
    found = why_not(tensors, reasons)
    if _backend == "triton" and INTERPRETED:
        found.append("TRITON_INTERPRET is set, so kernels are interpreted")
    if _backend == "interpreter" and HAS_TRITON and not INTERPRETED and not found:
        found.append(_NOT_INTERPRETED)
    if not found:
        return True
    if _backend != "auto":
        raise NotImplementedError(
            f"{op}: the kernel was asked for (backend={_backend!r}) and cannot run: {'; '.join(found)}."
        )
    _note(f"{op} runs in PyTorch: {'; '.join(found)}")
    return False


def _note(message: str) -> None:
    if not torch.compiler.is_compiling() and message not in _noted:
        _noted.add(message)
        logger.info(message)


def autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """``tensors`` in the autocast dtype where autocast is on for their device, as they are elsewhere.

    Done here and not by ``register_autocast``, which knows a single fixed dtype.
    """
    first = next(t for t in tensors if t is not None)
    if first.is_meta or not torch.is_autocast_enabled(first.device.type):
        return tensors
    dtype = torch.get_autocast_dtype(first.device.type)
    return tuple(t.to(dtype) if t is not None and t.is_floating_point() else t for t in tensors)
