"""What would be compiled, as a digest, without compiling it.

The digest of a kernel holds all that its machine code and the figures of it follow from: its source with that of every
function it reaches, hooks among them, and the values of the module constants that these read; its constants; what
Triton specialises on (dtypes, pointers and integers divisible by 16, integers of 1, arguments that are None); options,
architecture, Triton's version; and the files that read machine code. Triton's own key has line numbers too, so that it
changes when a function moves. Names of modules are left out for the same reason.
"""

import ast
import functools
import inspect
import types
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.runtime import driver

from vitkern.lab import trees
from vitkern.lab.compiling import amdgcn, budget, sass
from vitkern.lab.compiling.compiled import caught, hooks_of, is_half, label_of, target

READERS = (amdgcn, budget, sass)
_PLAIN = (bool, int, float, str, torch.dtype, type(None))
_EXPECTED = "numbers, strings, dtypes, tl.constexpr, @triton.jit functions, or tuples of these"


@dataclass(frozen=True)
class Launch:
    """One kernel that a cell launches, not compiled."""

    name: str
    label: str  # as `Compiled.label`
    num_warps: int
    num_stages: int
    half_input: bool  # as `Compiled.half_input`
    key: str  # its digest


def _path(node: ast.AST) -> tuple[str, ...]:
    """("tl", "math", "exp2") of ``tl.math.exp2``; empty where the node is no such chain."""
    if isinstance(node, ast.Name):
        return (node.id,)
    before = _path(node.value) if isinstance(node, ast.Attribute) else ()
    return (*before, node.attr) if before else ()


def _beyond(module: types.ModuleType, path: tuple[str, ...]):
    """The first thing on ``path`` from a module that is no module itself."""
    value = module
    for name in path:
        if not isinstance(value, types.ModuleType):
            break
        value = getattr(value, name, None)
    return value


class Sources:
    """Texts of what kernels are made of. Each function is read once: what it reads must not change meanwhile."""

    def __init__(self):
        self._known = {}  # function -> its digest

    def function(self, jitted) -> str:
        """Digest of a @triton.jit function and of all that it reaches.

        Raises:
            TypeError: it reads a constant of a kind that has no text here.
        """
        plain = jitted.fn
        if plain not in self._known:
            self._known[plain] = f"recursion {plain.__name__}"
            tree, noinline = ast.parse(jitted.src), bool(getattr(jitted, "noinline", False))
            self._known[plain] = trees.digest(f"noinline {noinline}", trees.text(tree), *self._read(plain, tree))
        return self._known[plain]

    def _read(self, plain: Callable, tree: ast.Module) -> list[str]:
        """``name=value`` of what a function reads from outside."""
        scope = plain.__globals__ | inspect.getclosurevars(plain).nonlocals
        nodes = list(ast.walk(tree))
        own = {node.arg for node in nodes if isinstance(node, ast.arg)}
        own |= {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
        read = {}
        for path in map(_path, nodes):
            if path and path[0] in scope and path[0] not in own:
                value = scope[path[0]]
                if isinstance(value, types.ModuleType):
                    read[".".join(path)] = _beyond(value, path[1:])
                else:
                    read[path[0]] = value
        outside = {name: value for name, value in read.items() if not isinstance(value, types.ModuleType)}
        return [f"{name}={self.value(value)}" for name, value in sorted(outside.items())]

    def value(self, value) -> str:
        """A constant: plain, a dtype, tl.constexpr, a function, something of Triton's, or a tuple or its class."""
        if isinstance(value, _PLAIN):
            return repr(value)
        if isinstance(value, tuple | list):
            fields = getattr(value, "_fields", range(len(value)))
            within = (f"{name}={self.value(item)}" for name, item in zip(fields, value, strict=True))
            return f"{type(value).__name__}({', '.join(within)})"
        if isinstance(value, tl.constexpr):
            return f"constexpr {self.value(value.value)}"
        if isinstance(value, tl.dtype):
            return f"dtype {value}"
        if str(getattr(value, "__module__", None)).partition(".")[0] == "triton":
            return f"triton {value.__name__}"  # the version says what it is
        if hasattr(value, "fn") and hasattr(value, "src"):
            return f"function {self.function(value)}"
        if isinstance(value, type) and hasattr(value, "_field_defaults"):
            defaults = (f"{name}={self.value(item)}" for name, item in value._field_defaults.items())
            return f"class {value.__name__}({', '.join((*value._fields, *defaults))})"
        raise TypeError(f"digest: a kernel reads a constant without a text: got {value!r}; expected {_EXPECTED}.")

    def argument(self, value, kind, special) -> str:
        """An argument as Triton sees it: ``kind``, and what it is specialised on; a tuple has a tuple of each."""
        if isinstance(kind, tuple):
            fields = getattr(value, "_fields", range(len(value)))
            within = zip(fields, value, kind, special, strict=True)
            return f"({', '.join(f'{name}={self.argument(*one)}' for name, *one in within)})"
        return f"constexpr {self.value(value)}" if kind == "constexpr" else f"{kind} {special}"


@functools.cache
def _readers() -> str:
    return trees.text([ast.parse(inspect.getsource(module)) for module in READERS])


def launches_of(fn: Callable[[], object], arch: int, sources: Sources) -> list[Launch]:
    """The kernels that ``fn()`` launches for ``arch``, in order, equal ones once; see `compiled.compile_launches`.

    Raises:
        TypeError: see `Sources.function`.
    """
    found = {}
    same = f"Triton {triton.__version__}", f"architecture {arch}", _readers()

    def receive(kernel, grid, args, constants, options):
        device = driver.active.get_current_device()
        binder = kernel.device_caches[device][-1]  # of Triton's launcher: binds arguments and specialises on them
        bound, special, _ = binder(*args, **constants, **options)
        arguments = (
            f"{name}={sources.argument(value, *one)}" for (name, value), one in zip(bound.items(), special, strict=True)
        )
        given = (f"{name}={value}" for name, value in sorted(options.items()))
        key = trees.digest(*same, sources.function(kernel), *given, *arguments)
        label = label_of(kernel.fn.__name__, hooks_of(constants))
        shape = options["num_warps"], options["num_stages"]
        found.setdefault(key, Launch(kernel.fn.__name__, label, *shape, is_half(args), key))

    with target(arch), caught(receive, arch):
        fn()
    return list(found.values())


def of_cell(launches: Iterable[Launch]) -> str:
    """The digest of a cell: of its kernels, in the order of their launch."""
    return trees.digest(*(launch.key for launch in launches))
