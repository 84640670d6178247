"""Whether a module may be bypassed: its weights read, its work done elsewhere, without calling it. Asked at each call,
of modules that are exactly what their library made of them, and that nobody watches."""

import inspect
from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType, MappingProxyType
from typing import Any, NamedTuple, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Kind = TypeVar("Kind", bound=nn.Module)

_LIBRARIES = frozenset(("timm", "torch", "torchvision", "transformers", "vitkern"))
_DECORATORS = frozenset(("contextlib", "functools", "torch"))  # what may stand around a library's own function
_TENSORS = (Tensor, nn.Parameter)
_FUNCTIONS = (FunctionType, staticmethod, classmethod)
_MODULE = vars(torch.nn.modules.module)


class _Functions(NamedTuple):
    """What a class had of the functions that a call of it runs: in ``places``, live views of what it and its bases
    define, under ``names``."""

    places: tuple[MappingProxyType[str, Any], ...]
    names: tuple[str, ...]
    found: tuple[object, ...]


_functions: dict[type, _Functions] = {}


def may_bypass(module: Any, *kinds: type[Kind]) -> TypeGuard[Kind]:
    """Whether nobody can tell that ``module``, exactly one of ``kinds``, is not called but read."""
    return plain(module, *kinds) and not watched()


def plain(module: Any, *kinds: type[Kind]) -> TypeGuard[Kind]:
    """Exactly one of ``kinds``, with the functions that its library gave it, nothing attached, and parameters that are
    nothing but floating-point tensors."""
    kind = type(module)
    if kind not in kinds or not pristine(kind) or not untouched(module):
        return False
    return all(map(ordinary, module._parameters.values()))


def all_plain(modules: Iterable[nn.Module]) -> bool:
    """`plain` of each, whatever its kind; each kind is looked at once."""
    modules = list(modules)
    if not all(map(pristine, set(map(type, modules)))):
        return False
    return all([untouched(m) and all(map(ordinary, m._parameters.values())) for m in modules])


def untouched(module: nn.Module) -> bool:
    """No hooks, and nothing on the instance in place of what its class has. A hook with keywords, or one that is always
    called, is among the forward hooks; a full backward hook is among the backward ones."""
    if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    held = module.__dict__  # in it, these would hide the class's function, and the parameters
    return "forward" not in held and "weight" not in held and "bias" not in held


def ordinary(tensor: Tensor | None) -> bool:
    """A floating-point tensor that is what it says: not quantised, not distributed. What stands for one while PyTorch
    traces is one."""
    if tensor is None:
        return True
    kind = type(tensor)
    if kind not in _TENSORS and not kind.__module__.startswith("torch._subclasses."):
        return False
    return tensor.is_floating_point()


def watched() -> bool:
    """Whether something wants to see every call of a module or a function: a global hook, a patch of nn.Module, a mode
    of somebody's own. PyTorch's modes (a default device, selective checkpoints, fakes) know registered operators."""
    if torch.nn.modules.module._has_any_global_hook():
        return True
    if torch.compiler.is_compiling():
        return False
    if _globals_of(nn.Module.__call__) is not _MODULE or _globals_of(nn.Module._call_impl) is not _MODULE:
        return True
    if torch._C._len_torch_function_stack() and any(map(_is_foreign, _get_current_function_mode_stack())):
        return True
    return torch._C._len_torch_dispatch_stack() > 0 and any(map(_is_foreign, _get_current_dispatch_mode_stack()))


def _globals_of(function: object) -> object:
    return getattr(function, "__globals__", None)


def _is_foreign(mode: object) -> bool:
    return type(mode).__module__.split(".")[0] != "torch"


def pristine(kind: type) -> bool:
    """Whether a call of ``kind`` runs the functions that its library gave it, its bases' included."""
    known = _functions.get(kind)
    if known is None:
        bases, names, found = zip(*_run_by(kind), strict=True)
        if not all(map(_is_genuine, bases, names, found)):
            return False
        known = _functions[kind] = _Functions(tuple(map(vars, bases)), names, found)
    return tuple(map(MappingProxyType.get, known.places, known.names)) == known.found


# Answered while compiling, not traced: what torch.compiler.assume_constant_result does, which imports the compiler.
pristine._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _run_by(kind: type) -> Iterator[tuple[type, str, object]]:
    """(class, name, what it has under this name or None) for ``kind`` and each base below nn.Module, and for each
    function that ``forward`` may call."""
    bases = [base for base in kind.__mro__ if base not in (nn.Module, object)]
    names, pending = set(), ["__call__", "_call_impl", "forward"]
    while pending:
        name = pending.pop()
        if name in names:
            continue
        names.add(name)
        for base in bases:
            found = vars(base).get(name)
            yield base, name, found
            function = getattr(found, "__func__", found)
            if isinstance(function, FunctionType):
                called = names_of(inspect.unwrap(function).__code__)
                pending += [n for n in called if any(isinstance(vars(b).get(n), _FUNCTIONS) for b in bases)]


def names_of(code: CodeType) -> set[str]:
    """The names of attributes and globals that ``code`` and the functions in it use."""
    return set(code.co_names).union(*(names_of(inner) for inner in code.co_consts if isinstance(inner, CodeType)))


def _is_genuine(base: type, name: str, found: object) -> bool:
    """Whether ``found`` was written in the body of ``base``, a class of a library, under this ``name``."""
    library = base.__module__.split(".")[0]
    function = getattr(found, "__func__", found)
    if found is None:
        return True
    if library not in _LIBRARIES or not isinstance(function, FunctionType):
        return False
    while hasattr(function, "__wrapped__"):
        if function.__globals__["__name__"].split(".")[0] not in _DECORATORS | {library}:
            return False
        function = function.__wrapped__
    home = function.__globals__["__name__"]
    if library == "vitkern":  # an adapter has the forward of a class that several adapters share
        return home.split(".")[0] == library
    return home == base.__module__ and function.__qualname__ == f"{base.__qualname__}.{name}"
