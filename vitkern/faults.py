"""Faults of the environment: what keeps Triton from building or starting a kernel although the call is right.

An operator that meets one runs in PyTorch, there and from then on, and warns once per cause (`vitkern.register`). What
a kernel needs of a GPU depends on shapes: where that is too much, calls of those shapes run in PyTorch, and no others.
Everything else, a wrong argument, a bug in a kernel or an error that the GPU reports while it runs one, is no fault and
is raised as it came.
"""

import json
import re
import subprocess
import warnings
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

from torch import Tensor
from torch import device as Device


class FallbackWarning(RuntimeWarning):
    """An operator runs in PyTorch because its kernel could not be built or started."""


class Fault(NamedTuple):
    """``cause`` names the kind, ``detail`` is what was seen, ``remedy`` a sentence on what to do."""

    cause: str
    detail: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.cause} ({self.detail})" if self.detail else self.cause


CACHE = "Triton's cache is not writable"
DAMAGED = "Triton's cache is damaged"
COMPILER = "the C compiler that Triton needs is missing or fails"
DRIVER = "there is no GPU driver that Triton can use"
ARCHITECTURE = "Triton has no code for this GPU"
RESOURCES = "the kernel needs more than this GPU has"
BUILD = "Triton could not compile the kernel"

REMEDIES = {
    CACHE: "Point TRITON_CACHE_DIR to a folder of yours that can be written to.",
    DAMAGED: "Delete the folder that TRITON_CACHE_DIR names, by default ~/.triton/cache.",
    COMPILER: "Install gcc and the headers of Python, or point CC to a C compiler that works.",
    DRIVER: "Install the GPU's driver, one build of PyTorch for it, and the Triton that this PyTorch asks for.",
    ARCHITECTURE: "Install a release of PyTorch and Triton that supports this GPU, and unset TRITON_PTXAS_PATH.",
    RESOURCES: "Use a half-precision dtype or a smaller head dim, and report the shapes.",
    BUILD: "Install the Triton release that this PyTorch asks for; if it is there, report the message.",
}

# What a plain RuntimeError or AssertionError of Triton and its drivers says
_MESSAGES = (
    (r"active drivers|libcuda|Backend device .* is not active|Failed to open lib", DRIVER),
    (r"Failed to find C(\+\+)? compiler|Failed to load newly compiled", COMPILER),
    (r"Could not create or locate cache dir", CACHE),
    (r"kernel image is invalid|named symbol not found|hipErrorInvalidImage", DAMAGED),
    (r"no kernel image|unsupported toolchain|compatible backends for target|hipErrorNoBinaryForGpu", ARCHITECTURE),
    (r"PassManager::run failed|Cannot find (ptxas|ld\.lld)", BUILD),
)


def fault_of(error: BaseException) -> Fault | None:
    """The fault that ``error`` is, or None: then it is to be raised as it came.

    Only what `vitkern.kernels.machine.launch` saw coming out of Triton can be one; it leaves the kernel's name on the
    error.
    """
    kernel = getattr(error, "kernel_of_launch", None)
    if kernel is None or not isinstance(error, Exception):
        return None
    cause = _cause(error)
    if cause is None:
        return None
    lines = _said(error).strip().splitlines() or [type(error).__name__]
    said = next((line for line in lines if "fatal" in line), lines[0])
    return Fault(cause, f"{kernel}: {said.strip()[:300]}", REMEDIES[cause])


def _cause(error: Exception) -> str | None:
    from triton.compiler.errors import CompilationError, CompileTimeAssertionFailure
    from triton.runtime.errors import OutOfResources, PTXASError

    if isinstance(error, OutOfResources):
        return RESOURCES
    if isinstance(error, PTXASError):
        return (
            ARCHITECTURE if re.search(r"not defined for option|unsupported .*gpu|sm_\d+.* not", str(error)) else BUILD
        )
    if isinstance(error, CompilationError):
        return None if isinstance(error, CompileTimeAssertionFailure) else BUILD
    if _passed(error.__traceback__, "triton.compiler.compiler", "__init__"):
        return DAMAGED  # Triton reads what its cache holds of a kernel there, and nothing else
    if isinstance(error, subprocess.CalledProcessError | ImportError):
        return COMPILER
    if isinstance(error, json.JSONDecodeError):
        return DAMAGED
    if isinstance(error, OSError):
        return COMPILER if _passed(error.__traceback__, "triton.runtime.build", "_build") else CACHE
    if type(error) in (RuntimeError, AssertionError):
        return next((cause for pattern, cause in _MESSAGES if re.search(pattern, str(error))), None)
    return None


def _said(error: Exception) -> str:
    """The message; of a compilation error without the source that comes before it."""
    if hasattr(error, "error_message"):
        return error.error_message or repr(error.__cause__ or error)
    return str(error)


def _passed(traceback: TracebackType | None, module: str, function: str) -> bool:
    """Whether the error came through a function."""
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_globals.get("__name__") == module and frame.f_code.co_name == function:
            return True
        traceback = traceback.tb_next
    return False


# Single operations on dicts, so that threads need no lock and a fork cannot inherit one that is held
_reasons: dict[str, str] = {}  # by operator and device
_too_large: dict[tuple[str, str], str] = {}  # by operator and device, and what sizes of a call decide
_warned: dict[tuple[str, str], object] = {}
changes = [0]  # another number after each `record` and `forget`


def record(op: str, device: Device, fault: Fault, arguments: Iterable = ()) -> None:
    """From now on `reasons` has one for ``op`` on ``device``; of `RESOURCES` `reasons_of_sizes` has, for such
    ``arguments``. Warns, once per operator and cause."""
    reason = f"the kernel could not be started on {device}: {fault}"
    if fault.cause == RESOURCES:
        sizes = _sizes(arguments)
        _too_large[f"{op} {device}", sizes] = f"{reason}, for tensors of {sizes}"
    else:
        _reasons[f"{op} {device}"] = reason
    changes[0] += 1
    warn(op, fault, device)


def _sizes(arguments: Iterable) -> str:
    """What of a call decides the resources of its kernels: all sizes but the first, which counts programs."""
    tensors = (value for value in arguments if isinstance(value, Tensor))
    return ", ".join(f"{str(t.dtype).removeprefix('torch.')} (*, {', '.join(map(str, t.shape[1:]))})" for t in tensors)


def warn(op: str, fault: Fault, device: Device) -> None:
    """Once per operator and cause."""
    mark = object()
    if _warned.setdefault((op, fault.cause), mark) is mark:
        warnings.warn(
            f"{op}: the kernel cannot run on {device}: {fault}. PyTorch runs instead, now and in later calls"
            f"{' of such sizes' if fault.cause == RESOURCES else ''}. "
            f"{fault.remedy}",
            FallbackWarning,
            stacklevel=3,
        )


def reasons(op: str | None, device: Device) -> list[str]:
    """Why ``op`` does not try its kernel on ``device`` again; empty where it does."""
    found = _reasons.get(f"{op} {device}")
    return [] if found is None else [found]


def reasons_of_sizes(op: str, device: Device, arguments: Iterable) -> list[str]:
    """As `reasons`, of calls with such ``arguments`` alone."""
    found = _too_large.get((f"{op} {device}", _sizes(arguments))) if _too_large else None
    return [] if found is None else [found]


def faulted(device: Device) -> list[tuple[str, str]]:
    """(operator, reason) for each operator that does not try its kernel on ``device`` again, for some sizes or all."""
    found = list(_reasons.items()) + [(where, reason) for (where, _), reason in list(_too_large.items())]
    return [(where.split()[0], reason) for where, reason in found if where.split()[1] == str(device)]


def forget() -> None:
    """Try every kernel again, and warn again: for a process that outlives the cause of a fault."""
    _reasons.clear()
    _too_large.clear()
    _warned.clear()
    changes[0] += 1
