"""What an operator of `mutation_operators` or `launcher_operators` may ask about the function that it breaks."""

import ast
import functools
import itertools
from dataclasses import dataclass

Change = tuple[ast.AST, str]  # the node whose source becomes the text


@dataclass(frozen=True)
class Scope:
    """What an operator may ask about the function it is in."""

    source: bytes
    parameters: tuple[str, ...]
    read: tuple[str, ...]  # parameters that are pointers which are loaded from
    written: tuple[str, ...]
    constants: tuple[str, ...]  # of the module, numbers

    @functools.cached_property
    def _line_starts(self) -> list[int]:
        return [0, *itertools.accumulate(map(len, self.source.splitlines(keepends=True)))]

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Byte offsets of a node."""
        starts = self._line_starts
        return starts[node.lineno - 1] + node.col_offset, starts[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.AST) -> str:
        start, end = self.span(node)
        return self.source[start:end].decode()


def called(node: ast.AST) -> str:
    """``load`` of tl.load(...), ``exp2`` of tl.math.exp2(...), ``f`` of f(...); else nothing."""
    if not isinstance(node, ast.Call):
        return ""
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


def is_language(node: ast.AST) -> bool:
    """Whether a call is one of tl's."""
    while isinstance(node, ast.Call | ast.Attribute):
        node = node.func if isinstance(node, ast.Call) else node.value
    return isinstance(node, ast.Name) and node.id == "tl"


def scope_of(function: ast.FunctionDef, source: bytes, constants: tuple[str, ...]) -> Scope:
    parameters = tuple(argument.arg for argument in function.args.args)
    read, written = [], []
    for node in ast.walk(function):
        pointer = pointer_of(node)
        if pointer is not None and pointer.id in parameters:
            (written if called(node).startswith("store") else read).append(pointer.id)
    return Scope(source, parameters, tuple(dict.fromkeys(read)), tuple(dict.fromkeys(written)), constants)


def pointer_of(node: ast.AST) -> ast.Name | None:
    """The name of the pointer that a load or a store, or a helper that does it, starts from."""
    if not called(node).startswith(("load", "store", "gather")) or not node.args:
        return None
    first = node.args[0]
    while isinstance(first, ast.BinOp):
        first = first.left
    return first if isinstance(first, ast.Name) else None
