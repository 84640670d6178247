"""How one place of a kernel is broken: operators on the syntax tree of ``@triton.jit`` functions.

An operator is called with every node of a function and yields (node, text): the node whose source becomes ``text``.
"""

import ast
import itertools
from collections.abc import Callable, Iterator

from vitkern.lab.breaking.mutation_scope import Change, Scope, called, is_language, pointer_of

_LOOSER = {ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="}
_OPPOSITE = {ast.Add: "-", ast.Sub: "+", ast.FloorDiv: "%", ast.Mod: "//", ast.Mult: "+", ast.Div: "*"}
_INDICES = ("head", "kv_head", "group", "first_head", "first_group", "part", "plane")
_PAIRS = (("group", "head"), ("qi", "ki"), ("N", "M"), ("row", "col"), ("rows", "cols"), ("q_at", "grad_at"))
_RENAMED = {"maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max"}
_OTHER_BASE = {"exp2": "exp", "exp": "exp2", "log": "log2", "log2": "log"}


def _next(name: str, names: tuple[str, ...]) -> str | None:
    """The other one of ``names``, cyclically."""
    if name not in names or len(names) < 2:
        return None
    return names[(names.index(name) + 1) % len(names)]


def _call(node: ast.Call, scope: Scope, *, without: tuple[str, ...] = (), arguments=None) -> str:
    texts = arguments or [scope.text(argument) for argument in node.args]
    texts += [scope.text(keyword) for keyword in node.keywords if keyword.arg not in without]
    return f"{scope.text(node.func)}({', '.join(texts)})"


def drop_mask_term(node, scope) -> Iterator[Change]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitAnd):
        yield node, f"({scope.text(node.left)})"
        yield node, f"({scope.text(node.right)})"


def drop_mask(node, scope) -> Iterator[Change]:
    if called(node) in ("load", "store") and any(keyword.arg == "mask" for keyword in node.keywords):
        yield node, _call(node, scope, without=("mask", "other"))


def drop_other(node, scope) -> Iterator[Change]:
    if called(node) == "load" and any(keyword.arg == "other" for keyword in node.keywords):
        yield node, _call(node, scope, without=("other",))


def compare(node, scope) -> Iterator[Change]:
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in _LOOSER:
        operator = _LOOSER[type(node.ops[0])]
        yield node, f"({scope.text(node.left)} {operator} {scope.text(node.comparators[0])})"


def shift_index(node, scope) -> Iterator[Change]:
    if called(node) in ("arange", "program_id"):
        yield node, f"({scope.text(node)} + 1)"


def swap_stride(node, scope) -> Iterator[Change]:
    strides = tuple(name for name in scope.parameters if name.endswith("strides"))
    single = tuple(name for name in scope.parameters if name.endswith("stride"))
    if isinstance(node, ast.Name):
        for names in (strides, single):
            if other := _next(node.id, names):
                yield node, other
    if isinstance(node, ast.Subscript) and scope.text(node.value).endswith("strides"):
        index = getattr(node.slice, "value", None)
        if isinstance(index, int):
            yield node, f"{scope.text(node.value)}[{index - 1 if index else 1}]"


def swap_pointer(node, scope) -> Iterator[Change]:
    pointer = pointer_of(node)
    if pointer is not None:
        names = scope.written if called(node).startswith("store") else scope.read
        if other := _next(pointer.id, names):
            yield pointer, other


def wrong_index(node, scope) -> Iterator[Change]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in _INDICES:
        yield node, f"({node.id} * 0)"


def flip_sign(node, scope) -> Iterator[Change]:
    yield from _other_operator(node, scope, (ast.Add, ast.Sub))


def swap_division(node, scope) -> Iterator[Change]:
    yield from _other_operator(node, scope, (ast.FloorDiv, ast.Mod))


def wrong_product(node, scope) -> Iterator[Change]:
    yield from _other_operator(node, scope, (ast.Mult, ast.Div))


def _other_operator(node, scope, kinds) -> Iterator[Change]:
    if isinstance(node, ast.BinOp | ast.AugAssign) and type(node.op) in kinds:
        operator = _OPPOSITE[type(node.op)]
        if isinstance(node, ast.AugAssign):
            yield node, f"{scope.text(node.target)} {operator}= {scope.text(node.value)}"
        else:
            right = scope.text(node.right)
            right = f"({right})" if isinstance(node.right, ast.BinOp) else right
            yield node, f"({scope.text(node.left)} {operator} {right})"


def drop_statement(node, scope) -> Iterator[Change]:
    """A store, or what changes a variable that is there already."""
    changes = isinstance(node, ast.AugAssign)
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
        changes = any(isinstance(n, ast.Name) and n.id == node.targets[0].id for n in ast.walk(node.value))
    if changes or (isinstance(node, ast.Expr) and called(node.value).startswith("store")):
        yield node, "pass"


def wrong_constant(node, scope) -> Iterator[Change]:
    """Floats off by one part in 1024 (0 becomes 1), integers of a product by one; named ones too."""
    if isinstance(node, ast.Constant) and type(node.value) is float:
        yield node, "1.0" if node.value == 0.0 else repr(node.value * (1 + 2**-10))
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in scope.constants:
        yield node, f"({node.id} * 1.0009765625)"
    elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult | ast.Sub | ast.Add):
        for side in (node.left, node.right):
            if isinstance(side, ast.Constant) and type(side.value) is int:
                yield side, str(side.value + 1)


def narrow_accumulator(node, scope) -> Iterator[Change]:
    if called(node) in ("zeros", "full"):
        for argument in node.args:
            if scope.text(argument) == "tl.float32":
                yield argument, "tl.float16"


def drop_float32(node, scope) -> Iterator[Change]:
    if called(node) == "to" and node.args and scope.text(node.args[0]) == "tl.float32":
        yield node, scope.text(node.func.value)


def drop_int64(node, scope) -> Iterator[Change]:
    if called(node) == "to" and node.args and scope.text(node.args[0]) == "tl.int64":
        yield node, scope.text(node.func.value)


def swap_extreme(node, scope) -> Iterator[Change]:
    if called(node) in _RENAMED and node.args:
        yield node.func, ("tl." if is_language(node) else "") + _RENAMED[called(node)]


def other_base(node, scope) -> Iterator[Change]:
    if called(node) in _OTHER_BASE and is_language(node):
        yield node.func, f"tl.math.{_OTHER_BASE[called(node)]}"


def tf32(node, scope) -> Iterator[Change]:
    if isinstance(node, ast.keyword) and node.arg == "input_precision":
        yield node.value, '"tf32"'


def wrong_axis(node, scope) -> Iterator[Change]:
    if called(node) in ("sum", "max", "min") and is_language(node) and len(node.args) == 2:
        axis = node.args[1]
        if isinstance(axis, ast.Constant):
            yield axis, str(1 - axis.value)


def skip_block(node, scope) -> Iterator[Change]:
    """A loop without its first or its last step; a rounded-up quotient rounded down."""
    if called(node) == "range" and len(node.args) >= 2:
        start, end, *step = (scope.text(argument) for argument in node.args)
        width = step[0] if step else "1"
        yield node.args[0], f"{start} + {width}"
        yield node.args[1], f"({end}) - {width}"
    if called(node) == "cdiv":
        numerator, denominator = (scope.text(argument) for argument in node.args)
        yield node, f"(({numerator}) // {denominator})"


def swap_branches(node, scope) -> Iterator[Change]:
    if called(node) == "where" and len(node.args) == 3:
        condition, first, second = (scope.text(argument) for argument in node.args)
        yield node, _call(node, scope, arguments=[condition, second, first])


def negate(node, scope) -> Iterator[Change]:
    if isinstance(node, ast.If):
        yield node.test, f"not ({scope.text(node.test)})"


def transpose(node, scope) -> Iterator[Change]:
    """[:, None] for [None, :] and back."""
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Tuple) and len(node.slice.elts) == 2:
        kinds = [isinstance(element, ast.Slice) for element in node.slice.elts]
        if sum(kinds) == 1 and any(isinstance(e, ast.Constant) and e.value is None for e in node.slice.elts):
            yield node, f"{scope.text(node.value)}[{'None, :' if kinds[0] else ':, None'}]"


def swap_arguments(node, scope) -> Iterator[Change]:
    """Two neighbours of one kind in a call."""
    if isinstance(node, ast.Call):
        texts = [scope.text(argument) for argument in node.args]
        for i, pair in enumerate(itertools.pairwise(texts)):
            if pair in _PAIRS or pair[::-1] in _PAIRS:
                yield node, _call(node, scope, arguments=[*texts[:i], texts[i + 1], texts[i], *texts[i + 2 :]])


KERNEL: dict[str, Callable] = {
    function.__name__.replace("_", "-"): function
    for function in (
        drop_mask_term, drop_mask, drop_other, compare, shift_index, swap_stride, swap_pointer, wrong_index, flip_sign,
        swap_division, wrong_product, drop_statement, wrong_constant, narrow_accumulator, drop_float32, drop_int64,
        swap_extreme, other_base, tf32, wrong_axis, skip_block, swap_branches, negate, transpose, swap_arguments,
    )
}  # fmt: skip
