"""What a launcher did once, as straight-line Python that does it again and decides nothing: tensors are allocated,
compiled kernels are handed addresses, and the operators of PyTorch in between are called.

A launcher is a function of sizes, strides, dtypes and numbers, never of values: what it does for one call it does for
every call that agrees in these, which `vitkern.plans` sees to. One that looks at values, or at tensors that it is not
given, cannot be recorded.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty.memory_format, _aten.empty_strided.default, _aten.empty_like.default, _aten.new_empty.default,
    _aten.new_empty_strided.default,
}  # fmt: skip
_OF_LAYOUT = {_aten._debug_has_internal_overlap.default}  # decided by sizes and strides, for the launcher alone
_OF_VALUES = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_LITERALS = (int, bool, str, type(None))
_wanted: ContextVar["Recording | None"] = ContextVar("wanted", default=None)


class Tape(NamedTuple):
    """``play(*inputs)`` returns what the launcher would; ``source`` is its text, and ``device`` where it starts
    kernels (None: nowhere)."""

    play: Callable[..., Any]
    source: str
    device: torch.device | None


class _Whole(NamedTuple):
    """The tensor that a variable stands for. Not itself: a launcher may free it while it is recorded."""

    dtype: torch.dtype
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: Tensor) -> "_Whole":
        return cls(tensor.dtype, tensor.shape, tensor.stride(), int(tensor.storage_offset()))


class _View(NamedTuple):
    """A tensor that lies ``offset`` elements behind the beginning of the variable ``base``."""

    base: str
    offset: int


class _Recorder(TorchDispatchMode):
    """Lines of Python for what happens within it. ``reason``: why there can be no tape."""

    def __init__(self, inputs: Sequence[Any], shares: bool) -> None:
        super().__init__()
        self.reason: str | None = None
        # an empty tensor that stands for one that is not wanted may be the same in every call
        self.shares = shares and all(value.numel() for value in inputs if isinstance(value, Tensor))
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"as_strided": torch.as_strided, "empty_strided": torch.empty_strided}
        self.views = WeakTensorKeyDictionary()  # of each tensor a _View
        self.wholes: dict[str, _Whole] = {}  # of each variable that is a tensor
        self.numbers = itertools.count()  # of variables
        self.first: dict[str, int] = {}  # the line that makes a variable
        self.last: dict[str, int] = {}  # and that which reads it last
        self.device: torch.device | None = None
        self.parameters = [self.variable(value) for value in inputs]

    # Names

    def variable(self, value: Any) -> str:
        name = f"t{next(self.numbers)}"
        if isinstance(value, Tensor):
            self.wholes[name], self.views[value] = _Whole.of(value), _View(name, 0)
        return name

    def constant(self, value: Any) -> str:
        kind = type(value)  # of no subclass, whose repr may be another
        if kind in _LITERALS or (kind is float and math.isfinite(value)):
            return repr(value)
        parts = value if isinstance(value, list | tuple) else ()  # a kind that pytree does not take apart
        if any(isinstance(leaf, Tensor) for leaf in (*tree_leaves(value), *parts)):
            self.reason = f"a tensor is in a {type(value).__name__}"
        for name, other in self.names.items():
            if other is value or (kind in (torch.dtype, torch.device) and other == value):
                return name
        name = f"c{len(self.names)}"
        self.names[name] = value
        return name

    def view(self, tensor: Tensor) -> _View:
        """A tensor that nothing recorded made may be of this call alone, as what autocast has cast before."""
        if tensor not in self.views:
            self.reason = "a tensor comes from elsewhere"
            self.variable(tensor)
        view = self.views[tensor]
        if view.base in self.last:
            self.last[view.base] = len(self.lines)
        return view

    def text(self, value: Any) -> str:
        """An expression for a value, a tensor, or a tree of them."""
        if isinstance(value, Tensor):
            base, offset = self.view(value)
            whole = self.wholes[base]
            if offset == 0 and (value.shape, value.stride()) == (whole.shape, whole.stride):
                return base
            where = f"{base}.storage_offset() + {offset}"
            return f"as_strided({base}, {tuple(value.shape)}, {value.stride()}, {where})"
        named = isinstance(value, tuple) and hasattr(value, "_fields")
        if type(value) in (list, tuple) or (named and any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))):
            inner = "".join(f"{self.text(part)}, " for part in value)
            kind = self.constant(type(value)) if named else ""
            return f"[{inner}]" if isinstance(value, list) else f"{kind}({inner})"
        return self.constant(value)

    def address(self, value: Any) -> str:
        """An argument of a compiled kernel: a tensor's address, a tuple of arguments, or a value."""
        if isinstance(value, Tensor):
            base, offset = self.view(value)
            return f"{base}.data_ptr()" + (f" + {offset * value.element_size()}" if offset else "")
        if isinstance(value, tuple) and any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            return f"({''.join(f'{self.address(part)}, ' for part in value)})"
        return self.constant(value)

    # What happens

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.reason is None:
            self.called(func, args, kwargs or {}, result)
        return result

    def called(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        if func in _OF_LAYOUT or not any(isinstance(leaf, Tensor) for leaf in tree_leaves((args, kwargs, result))):
            return
        if func is _aten._local_scalar_dense.default or any(tag in func.tags for tag in _OF_VALUES):
            self.reason = f"{func} looks at values"
        elif func.is_view:
            source = next(value for value in args if isinstance(value, Tensor))
            for tensor in tree_leaves(result):
                self.viewed(source, tensor)
        elif func in _ALLOCATIONS and self.shares and not result.numel():
            self.names[self.variable(result)] = result
        elif func in _ALLOCATIONS:
            made = f"dtype={self.constant(result.dtype)}, device={self.constant(result.device)}"
            self.made(result, f"empty_strided({tuple(result.shape)}, {result.stride()}, {made})")
        else:
            self.computed(func, args, kwargs, result)

    def viewed(self, source: Tensor, part: Tensor) -> None:
        base, _ = self.view(source)
        whole = self.wholes[base]
        if part.dtype != whole.dtype:
            self.reason = "a tensor is read as another dtype"
        else:
            self.views[part] = _View(base, int(part.storage_offset()) - whole.offset)

    def computed(self, func: Any, args: tuple, kwargs: dict, result: Any) -> None:
        given = "".join(f"{self.text(value)}, " for value in args)
        given += "".join(f"{name}={self.text(value)}, " for name, value in kwargs.items())
        call = f"{self.constant(func)}({given})"
        if not isinstance(result, Tensor):
            self.reason = f"{func} returns {type(result).__name__}"
        elif result in self.views:  # in place
            self.lines.append(call)
        else:
            self.made(result, call)

    def made(self, tensor: Tensor, call: str) -> None:
        name = self.variable(tensor)
        self.first[name] = self.last[name] = len(self.lines)
        self.lines.append(f"{name} = {call}")

    def started(self, start: Callable, kernel: Any, grid: tuple, args: tuple, constants: dict, scratch: bool) -> None:
        """A launch, which ``start`` begins. Played, it hands addresses to what Triton compiled; an interpreted kernel
        takes tensors."""
        with _disable_current_modes():  # Triton's own allocations, and all that an interpreted kernel computes
            compiled = start()
        if self.reason is not None:
            return
        self.device = next(value.device for value in tree_leaves(args) if isinstance(value, Tensor))
        if compiled is None:
            given = "".join(f"{self.text(value)}, " for value in args)
            given += "".join(f"{name}={self.text(value)}, " for name, value in constants.items())
            self.lines.append(f"{self.constant(kernel[grid])}({given})")
            return
        if "driver" not in self.names:
            self.names["driver"] = _driver()
            self.lines += ["gpu = driver.active", "now = gpu.get_current_stream(gpu.get_current_device())"]
        bound = kernel.signature.bind(*args, **constants)
        bound.apply_defaults()
        parts = [*map(repr, (*grid, 1, 1)[:3]), "now"]
        parts += [self.constant(compiled.function), self.constant(compiled.packed_metadata)]
        self.constant(compiled)  # Triton unloads what nobody holds
        parts += ["None"] * 3  # metadata of the launch, and the hooks that would be told
        parts += [self.address(value) for value in bound.arguments.values()]
        run = f"{self.constant(compiled.run)}({', '.join(parts)})"
        self.lines.append(f"{self.constant(_scratch())}(lambda: {run})" if scratch else run)

    def tape(self, returned: str) -> Tape:
        """Of a launcher whose results are ``returned``, as `text` has it."""
        body = []
        for number, line in enumerate(self.lines):
            ends = [name for name, last in self.last.items() if last == number]
            if not any(self.first[name] == number for name in ends):  # else nobody reads what it makes
                body += [line, *(f"del {name}" for name in ends)]
        head = f"def play({', '.join(self.parameters)}):\n"
        source = head + "".join(f"    {line}\n" for line in [*body, f"return {returned}"])
        names = dict(self.names)
        exec(compile(source, "<tape>", "exec"), names)
        return Tape(names["play"], source, self.device)


def _driver() -> Any:
    from triton.runtime import driver

    return driver


def _scratch() -> Callable:
    from vitkern.kernels.machine.launch import with_scratch

    return with_scratch


class Recording:
    """``tape``: what a launcher within the block was recorded as; None where none ran, or it cannot be recorded."""

    def __init__(self, shares: bool) -> None:
        self.tape: Tape | None = None
        self.shares = shares


@contextmanager
def recording(shares: bool = False) -> Iterator[Recording]:
    """Within the block, `launched` records what it runs. ``shares``: nobody holds on to empty results."""
    made = Recording(shares)
    token = _wanted.set(made)
    try:
        yield made
    finally:
        _wanted.reset(token)


def launched(launch: Callable, args: Sequence[Any]) -> Any:
    """``launch(*args)``, recorded where `recording` asks for it."""
    made = _wanted.get()
    if made is None:
        return launch(*args)
    from vitkern.kernels.machine.launch import is_redirected, witnessed

    if is_redirected():  # each launch is for the receiver to see
        return launch(*args)
    recorder = _Recorder(args := _apart(args), made.shares)
    with recorder, witnessed(recorder.started):
        results = launch(*args)
    returned = recorder.text(results)
    made.tape = recorder.tape(returned) if recorder.reason is None else None
    return results


def _apart(args: Sequence[Any]) -> list[Any]:
    """``args`` with one tensor an argument, so that each has a name of its own."""
    seen: set[int] = set()
    found = []
    for value in args:
        found.append(value.view_as(value) if isinstance(value, Tensor) and id(value) in seen else value)
        seen.add(id(value))
    return found
