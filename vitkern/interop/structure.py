"""Whether a class is a renamed copy of another one: the source of what a call runs is the same, and so is all of their
files that it reaches. transformers' folders copy each other's layers."""

import ast
import builtins
import functools
import inspect
import itertools
import logging
import textwrap
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from torch import nn

from vitkern.ops.bypass import plain

_UNREAD = frozenset(("annotation", "ctx", "kind", "returns", "type_comment", "type_params"))
_CONSTANTS = (bool, int, float, str)
_MISSING = object()
_same: dict[tuple[type, type], bool] = {}


def like(kind: type, *exemplars: type) -> bool:
    """Whether ``kind`` is one of ``exemplars``, or a copy of one in all that a call of it runs."""
    for exemplar in exemplars:
        known = _same.get((kind, exemplar))
        if known is None:
            known = _same[kind, exemplar] = kind is exemplar or difference(kind, exemplar, "__call__") is None
        if known:
            return True
    return False


# Answered while compiling, not traced: it reads sources.
like._dynamo_marked_constant = True  # type: ignore[attr-defined]


def plain_like(module: Any, *exemplars: type) -> bool:
    """`vitkern.ops.bypass.plain`, of exactly one of ``exemplars`` or of a class that is made and called as one."""
    kind = type(module)
    return plain(module, kind) and _made_like(kind, *exemplars)


def _made_like(kind: type, *exemplars: type) -> bool:
    return any(kind is e or difference(kind, e, "__call__", "__init__") is None for e in exemplars)


_made_like._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def difference(kind: type, exemplar: type, *names: str) -> str | None:
    """How ``kind`` differs from ``exemplar`` in what ``forward``, and the methods ``names``, run; None: in nothing.

    The nodes of the sources are compared, without docstrings and annotations. Behind names of functions and classes is
    looked in turn, whatever they are called; so it is behind the methods and properties that are used.
    """
    try:
        comparison = _Comparison()
        for name in ("forward", *names):
            comparison.members(kind, exemplar, name)
    except _Different as found:
        return str(found)
    except (OSError, TypeError, SyntaxError):  # as inspect and ast say it
        return "in what is not known: its source cannot be read"
    return None


class _Different(Exception):
    """Where two sources part."""


class _Token(NamedTuple):
    """One node of a function's source, and its line in it."""

    kind: str
    fields: tuple[object, ...]
    line: int


class _Comparison:
    def __init__(self) -> None:
        self.seen: set[tuple[object, object]] = set()

    def members(self, a: type, b: type, name: str, where: str = "") -> None:
        """What two classes have under ``name``: methods, properties, constants, or neither has it."""
        one, other = (next((vars(base)[name] for base in _bases(k) if name in vars(base)), None) for k in (a, b))
        self.values(one, other, (a, b), where or f"in what its {name} is")

    def values(self, one: Any, other: Any, owners: tuple[type, type] | None, where: str) -> None:
        """Two objects that stand behind names in the same place."""
        if isinstance(one, property) and isinstance(other, property):
            one, other = one.fget, other.fget
        one, other = getattr(one, "__func__", one), getattr(other, "__func__", other)
        if one is other or (isinstance(one, logging.Logger) and isinstance(other, logging.Logger)):
            return
        if type(one) is not type(other):
            raise _Different(where)
        if isinstance(one, FunctionType):
            if (one, other) not in self.seen:
                self.seen.add((one, other))
                self.functions(one, other, owners)
        elif isinstance(one, type) and issubclass(one, nn.Module) and issubclass(other, nn.Module):
            if (one, other) not in self.seen:
                self.seen.add((one, other))
                for name in ("__init__", "__call__", "forward"):
                    self.members(one, other, name)
        elif not (isinstance(one, _CONSTANTS) and one == other):
            raise _Different(where)

    def functions(self, one: FunctionType, other: FunctionType, owners: tuple[type, type] | None) -> None:
        one, other = inspect.unwrap(one), inspect.unwrap(other)
        lines, start = inspect.getsourcelines(one)
        tokens, expected = _tokens("".join(lines)), _tokens(inspect.getsource(other))
        local, others = _local(one.__code__), _local(other.__code__)
        renamed = _Renamed(one, other)
        where = f"in line {start}"
        for token, wanted in itertools.zip_longest(tokens, expected, fillvalue=None):
            if token is not None:
                where = f"in line {start + token.line - 1}: `{lines[token.line - 1].strip()}`"
            if token is None or wanted is None or token.kind != wanted.kind:
                raise _Different(where)
            if token.kind not in ("Name", "arg"):
                if token.fields != wanted.fields:
                    raise _Different(where)
                if token.kind == "Attribute" and owners is not None:
                    self.members(*owners, str(token.fields[0]), where)
                continue
            name, its = str(token.fields[0]), str(wanted.fields[0])
            if (name in local) != (its in others) or (name in local and not renamed.agrees(name, its)):
                raise _Different(where)
            if name not in local:
                self.values(_beside(one, name, where), _beside(other, its, where), None, where)
                if name == "super" and owners is not None:
                    self.inherited(*owners, one.__name__, where)

    def inherited(self, a: type, b: type, name: str, where: str) -> None:
        """What ``super()`` may find in a method of this name."""
        for base, other in itertools.zip_longest(_bases(a)[1:], _bases(b)[1:], fillvalue=object):
            self.values(vars(base).get(name), vars(other).get(name), (a, b), where)


class _Renamed:
    """Which local variable of one function is which of the other. The parameters of ``forward`` have one name: callers
    use it. Those of others may have another one, but none that names another parameter."""

    def __init__(self, one: FunctionType, other: FunctionType) -> None:
        self.there: dict[str, str] = {}
        self.back: dict[str, str] = {}
        a, b = inspect.signature(one).parameters, inspect.signature(other).parameters
        for name in {*a, *b} if one.__name__ == "forward" else {*a} & {*b}:
            self.there[name] = self.back[name] = name

    def agrees(self, name: str, its: str) -> bool:
        return self.there.setdefault(name, its) == its and self.back.setdefault(its, name) == name


def _bases(kind: type) -> list[type]:
    return [base for base in kind.__mro__ if base not in (nn.Module, object)]


def _beside(function: FunctionType, name: str, where: str) -> Any:
    """What a name means in the file of ``function``."""
    found = function.__globals__.get(name, getattr(builtins, name, _MISSING))
    if found is _MISSING:
        raise _Different(where)
    return found


def _local(code: CodeType) -> frozenset[str]:
    inner = (_local(const) for const in code.co_consts if isinstance(const, CodeType))
    return frozenset((*code.co_varnames, *code.co_cellvars)).union(*inner)


@functools.cache
def _tokens(source: str) -> list[_Token]:
    """The nodes of a function but its name, its docstrings and its annotations."""
    function = ast.parse(textwrap.dedent(source)).body[0]
    if not isinstance(function, ast.FunctionDef):
        raise SyntaxError(f"no function: {source}")
    function.name = ""
    return list(_walk(function, 1))


def _walk(node: ast.AST, line: int) -> Iterator[_Token]:
    line = getattr(node, "lineno", line)
    if isinstance(node, ast.AnnAssign):
        if node.value is None:
            return
        node = ast.Assign([node.target], node.value)
    fields = [value for name, value in ast.iter_fields(node) if name not in _UNREAD]
    kept = [value for value in fields if not isinstance(value, ast.AST | list)]
    named = not isinstance(node, ast.Constant)  # the text 1 is not the number
    yield _Token(type(node).__name__, tuple(kept if named else map(repr, kept)), line)
    for field in fields:
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST) and not _is_docstring(child):
                yield from _walk(child, line)
            elif isinstance(field, list) and not isinstance(child, ast.AST):
                yield _Token("", (child,), line)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
