"""A memory sanitizer for interpreted kernels. Within `sanitized`, a launch raises `MemoryFault` where

* an active lane of a load or store leaves the valid elements of the very argument that its pointer came from (elements
  between the rows of a strided view are not valid, nor is another view of the same storage);
* two programs write one element, or one reads what another writes, or one store writes an element twice;
* an atomic adds floats, whose order a GPU does not fix;
* a tensor that some kernel wrote is read where nothing was written, or, at the end of the block, still holds there what
  ``torch.empty`` left.

Masked lanes without ``other`` are poisoned. Load, add, store by one program is legal.

An argument's address carries its number in the upper 16 bits, which no user-space address uses.
"""

import fnmatch
import sys
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from vitkern.lab.interpreting import interpreter
from vitkern.lab.interpreting.memory import Argument, MemoryFault, Storage
from vitkern.lab.interpreting.patches import Patches
from vitkern.lab.interpreting.programs import ORDERS, Programs

__all__ = ["ORDERS", "MemoryFault", "Sanitizer", "sanitized"]
_TAG_SHIFT = np.uint64(48)
_ADDRESS = np.uint64((1 << 48) - 1)


def _line() -> str:
    """The innermost line of a kernel's source that is being interpreted."""
    frame = sys._getframe(1)
    while frame:
        name, variables = frame.f_code.co_filename, frame.f_globals
        if "tl" in variables and "interpreter_semantic" in variables and "/triton/" not in name and "/lab/" not in name:
            return f"{name}:{frame.f_lineno}"
        frame = frame.f_back
    return "an unknown line"


def _named_tensors(name: str, value):
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, tuple):
        for i, one in enumerate(value):
            yield from _named_tensors(f"{name}[{i}]", one)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def _key(tensor: Tensor):
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


class Sanitizer:
    """The state of one `sanitized` block; ``launches`` counts what it has seen."""

    def __init__(self, builder, order: str, seed: int, once: tuple[str, ...], scratch: tuple[str, ...]):
        self.builder, self.programs, self.once, self.scratch = builder, Programs(order, seed), once, scratch
        self.launches = 0
        self._storages: dict[int, Storage] = {}
        self._outputs: list[tuple[str, Argument]] = []
        self.arguments: list[Argument] = []  # of the current or last launch; number - 1
        self._names: dict[tuple, list[str]] = {}

    def launch(self, execute, executor, args, constants) -> None:
        """One launch: ``execute(executor, *args, **constants)``, checked."""
        self.launches += 1
        self.arguments, self._names = [], {}
        for parameter, value in [*zip(executor.arg_names, args, strict=False), *constants.items()]:
            for name, tensor in _named_tensors(parameter, value):
                self._names.setdefault(_key(tensor), []).append(name)
        name = executor.fn.__name__
        try:
            execute(executor, *args, **constants)
        except Exception as error:
            cause = error
            while cause is not None and not isinstance(cause, MemoryFault):
                cause = cause.__cause__
            if cause is None:
                raise
            raise MemoryFault(f"{name}{cause}") from None
        for argument in self.arguments:
            if argument.is_written:
                if not _matches(f"{name}.{argument.name}", self.scratch):
                    self._outputs.append((name, argument))
                if _matches(f"{name}.{argument.name}", self.once):
                    self._named_fault(name, argument.check_once)

    def check_complete(self) -> None:
        """Every element of every tensor that a kernel wrote has been written."""
        for name, argument in self._outputs:
            self._named_fault(name, argument.check_complete)

    @staticmethod
    def _named_fault(name: str, check) -> None:
        try:
            check()
        except MemoryFault as fault:
            raise MemoryFault(f"{name}: {fault}") from None

    def number(self, tensor: Tensor) -> np.uint64:
        """Register an argument of the current launch; returns its number, in the bits that addresses leave free."""
        address, size = tensor.untyped_storage().data_ptr(), tensor.untyped_storage().nbytes()
        storage = self._storages.get(address)
        # An address may be given out again for another size when the first tensor is gone.
        if storage is None or storage.unit > tensor.element_size() or storage.written.size != size // storage.unit:
            storage = self._storages[address] = Storage.of(tensor)
        elif not any(argument.storage is storage for argument in self.arguments):
            storage.start_launch()
        name = "|".join(dict.fromkeys(self._names.get(_key(tensor), ["an argument"])))
        self.arguments.append(Argument(name, tensor, storage))
        return np.uint64(len(self.arguments)) << _TAG_SHIFT

    def access(self, addresses: np.ndarray, mask: np.ndarray, kind: str) -> np.ndarray:
        """Check one access; returns the addresses without the arguments' numbers."""
        shape = np.broadcast_shapes(addresses.shape, mask.shape)
        active = np.broadcast_to(addresses, shape)[np.broadcast_to(mask, shape)]
        try:
            self._check(active, kind)
        except MemoryFault as fault:
            raise MemoryFault(f", program {self.builder.grid_idx}: {fault}, at {_line()}") from None
        return addresses & _ADDRESS

    def _check(self, active: np.ndarray, kind: str) -> None:
        numbers = active >> _TAG_SHIFT
        x, y, z = self.builder.grid_idx
        _, height, depth = self.builder.grid_dim
        program = (x * height + y) * depth + z + 1
        several = active.size and (numbers != numbers[0]).any()
        for number in np.unique(numbers) if several else numbers[:1]:
            if not 1 <= number <= len(self.arguments):
                raise MemoryFault(f"{kind} through a pointer that comes from no argument")
            argument = self.arguments[int(number) - 1]
            chosen = active[numbers == number] if several else active
            offsets = (chosen & _ADDRESS).astype(np.int64) - argument.address
            argument.check_inside(offsets, kind)
            argument.record(offsets, kind, program)


def _poison(interp, pointers):
    """What masked lanes without ``other`` hold: NaN, or a number that no index survives."""
    kind = pointers.get_element_ty()
    dtype = interp._get_np_dtype(kind)
    if kind.name == "bf16":
        value = 0x7FC0
    elif dtype.kind == "f":
        value = np.nan
    else:
        value = True if dtype.kind == "b" else np.iinfo(dtype).max // 2
    return interp.TensorHandle(np.full(pointers.data.shape, value, dtype), kind)


def _hook(interp, sanitizer: Sanitizer, patches: Patches) -> None:
    builder = interp.InterpreterBuilder
    stock, convert, execute = dict(vars(builder)), interp._implicit_cvt, interp.GridExecutor.__call__

    def checked(pointers, mask, kind):
        return interp.TensorHandle(sanitizer.access(pointers.data, mask.data, kind), pointers.dtype)

    def implicit_cvt(arg):
        result = convert(arg)
        if isinstance(arg, Tensor):
            result.handle.data = result.handle.data + sanitizer.number(arg)
        return result

    def create_masked_load(self, ptrs, mask, other, *policy, **named):  # named by loads through descriptors
        if other is None and not mask.data.all():
            other = _poison(interp, ptrs)
        return stock["create_masked_load"](self, checked(ptrs, mask, "load"), mask, other, *policy, **named)

    def create_masked_store(self, ptrs, value, mask, *policy):
        return stock["create_masked_store"](self, checked(ptrs, mask, "store"), value, mask, *policy)

    def create_atomic_rmw(self, operation, ptr, val, mask, *rest):
        if val.dtype.scalar.is_floating():
            raise MemoryFault(f": an atomic on floats, whose order is not fixed, at {_line()}")
        return stock["create_atomic_rmw"](self, operation, checked(ptr, mask, "atomic"), val, mask, *rest)

    def create_atomic_cas(self, ptr, *rest):
        everywhere = interp.TensorHandle(np.ones_like(ptr.data, dtype=bool), interp.tl.int1)
        return stock["create_atomic_cas"](self, checked(ptr, everywhere, "atomic"), *rest)

    def set_grid_dim(self, *grid):
        stock["set_grid_dim"](self, *sanitizer.programs.start(grid))

    def set_grid_idx(self, x, y, z):
        stock["set_grid_idx"](self, *sanitizer.programs.place(x, y, z))

    def call(self, *args, **constants):
        sanitizer.launch(execute, self, args, constants)

    hooks = (create_masked_load, create_masked_store, create_atomic_rmw, create_atomic_cas, set_grid_dim, set_grid_idx)
    for hook in hooks:
        patches.set(builder, hook.__name__, hook)
    patches.set(interp.GridExecutor, "__call__", call)
    patches.set(interp, "_implicit_cvt", implicit_cvt)


@contextmanager
def sanitized(*, order: str = "forward", seed: int = 0, once: tuple[str, ...] = (), scratch: tuple[str, ...] = ()):
    """Within the block, every launch runs in the repaired interpreter, checked; yields the `Sanitizer`. Does not nest.

    Args:
        order: of the programs of a launch: "forward", "reverse" or "random".
        seed: of the random order.
        once: patterns of "kernel.parameter" ("*.out"); a launch that stores to one stores each element exactly once.
        scratch: likewise; tensors that need not be written everywhere, since what is not written is not read either.

    Raises:
        MemoryFault: from the launch at fault, or at the end of the block for elements that were never written.
    """
    if order not in ORDERS:
        raise ValueError(f"sanitizer: unknown order: got {order!r}; expected one of {', '.join(ORDERS)}.")
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with interpreter.repaired():
        from triton.runtime import interpreter as interp

        sanitizer, patches = Sanitizer(interp.interpreter_builder, order, seed, tuple(once), tuple(scratch)), Patches()
        if not before[0]:  # then torch.empty holds NaN, which shows what was never written
            torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            _hook(interp, sanitizer, patches)
            yield sanitizer
            sanitizer.check_complete()
        finally:
            patches.undo()
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
