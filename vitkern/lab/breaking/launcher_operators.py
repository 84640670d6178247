"""How one place of a launcher is broken: the grid, what is handed to a kernel, what is allocated for it.

As in `mutation_operators`, an operator yields (node, text) for the nodes that it would change.
"""

import ast
from collections.abc import Callable, Iterator

from vitkern.lab.breaking.mutation_scope import Change, called

_COUNTS = ("rows", "cols", "inner", "channels", "heads", "groups", "chunk", "n", "m", "hidden", "splits", "count",
           "sample_rows", "hidden_channels")  # fmt: skip
_BLOCKS = {"block_m": "block_n", "block_n": "block_m"}
_FOLLOWING = {"q": "k", "k": "v", "v": "q", "out": "grad", "grad": "out", "dq": "dk", "dk": "dv", "dv": "dq",
              "lse": "delta", "delta": "lse", "mean": "rstd", "rstd": "mean", "weight": "bias",
              "dweight": "dbias", "dbias": "dweight", "a": "b", "x": "residual", "dy": "dtotal",
              "fc1": "fc2", "fc2": "fc1", "fc1_bias": "fc2_bias", "fc2_bias": "fc1_bias"}  # fmt: skip


def _launched(node: ast.AST) -> list[ast.AST]:
    """The arguments that a launch hands to its kernel by position."""
    return node.args[2:] if called(node) == "launch" else []


def grid(node, scope) -> Iterator[Change]:
    """One program less; one factor less."""
    if called(node) == "launch" and isinstance(node.args[1], ast.Tuple):
        for size in node.args[1].elts:
            yield size, f"({scope.text(size)}) - 1"
            if isinstance(size, ast.BinOp) and isinstance(size.op, ast.Mult):
                yield size, scope.text(size.left)


def count(node, scope) -> Iterator[Change]:
    for argument in _launched(node):
        if getattr(argument, "attr", getattr(argument, "id", "")) in _COUNTS:
            yield argument, f"{scope.text(argument)} + 1"


def other_tensor(node, scope) -> Iterator[Change]:
    for argument in _launched(node):
        owner = argument.value if isinstance(argument, ast.Attribute) and argument.attr == "tensor" else argument
        if isinstance(owner, ast.Name) and owner.id in _FOLLOWING and _is_known(_FOLLOWING[owner.id], scope):
            yield owner, _FOLLOWING[owner.id]


def other_strides(node, scope) -> Iterator[Change]:
    for argument in _launched(node):
        if isinstance(argument, ast.Call) and called(argument) == "over":
            owner = argument.func.value
            if isinstance(owner, ast.Name) and _is_known(_FOLLOWING.get(owner.id, ""), scope):
                yield owner, _FOLLOWING[owner.id]
        elif called(argument) == "stride" and argument.args:
            axis = argument.args[0]
            yield axis, str(1 - axis.value)
        elif called(argument) == "_row_stride":
            yield argument, f"{scope.text(argument)} + 1"


def _is_known(name: str, scope) -> bool:
    return name in scope.parameters


def shape(node, scope) -> Iterator[Change]:
    """An allocation with one entry more, or less, along an axis."""
    if called(node) not in ("empty", "new_empty"):
        return
    sizes = node.args[0].elts if node.args and isinstance(node.args[0], ast.Tuple) else node.args
    for size in sizes:
        if not isinstance(size, ast.Starred | ast.Constant) and not scope.text(size).endswith("shape"):
            yield size, f"({scope.text(size)}) + 1"
            yield size, f"({scope.text(size)}) - 1"


def half_allocation(node, scope) -> Iterator[Change]:
    if isinstance(node, ast.keyword) and node.arg == "dtype" and scope.text(node.value) == "torch.float32":
        yield node.value, "torch.float16"


def wrong_block(node, scope) -> Iterator[Change]:
    if isinstance(node, ast.Attribute) and node.attr in _BLOCKS and scope.text(node.value) == "config":
        yield node, f"config.{_BLOCKS[node.attr]}"


def always_even(node, scope) -> Iterator[Change]:
    """A kernel that is told that no block sticks out, or that tells heads apart no more."""
    if isinstance(node, ast.keyword) and node.arg and node.arg.startswith(("EVEN", "PER_")):
        yield node.value, "True"


def first_partial(node, scope) -> Iterator[Change]:
    """The first partial sum in place of all."""
    if called(node) == "sum" and len(node.args) == 1 and isinstance(node.args[0], ast.Constant):
        yield node, f"{scope.text(node.func.value)}[{node.args[0].value}]"


def no_scale(node, scope) -> Iterator[Change]:
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult) and scope.text(node.right).startswith("LOG2_OF_E"):
        yield node, scope.text(node.left)


LAUNCHER: dict[str, Callable] = {
    function.__name__.replace("_", "-"): function
    for function in (
        grid, count, other_tensor, other_strides, shape, half_allocation, wrong_block, always_even, first_partial,
        no_scale,
    )
}  # fmt: skip
