"""Which modules compute attention: known by what their forward calls, whatever their class is called."""

import dis
import functools
import inspect
import re
from collections.abc import Iterator
from types import CodeType, FunctionType

from torch import nn

INTERFACE = "ALL_ATTENTION_FUNCTIONS"  # through which transformers' modules call their attention function
# One of these is attention by itself.
_WHOLE = frozenset(
    (
        INTERFACE,
        "_flash_attention_forward",
        "flash_attn_func",
        "flash_attn_varlen_func",
        "flex_attention",
        "memory_efficient_attention",
        "multi_head_attention_forward",
        "scaled_dot_product_attention",
    )
)
_PRODUCTS = frozenset(("@", "@=", "baddbmm", "bmm", "einsum", "matmul"))
_QUERIES = re.compile(r"q|qs?_\w+|qkv\w*|qk_\w+|quer(y|ies)\w*|to_q\w*|w_?q|in_proj\w*")
_SAMPLED = "sampling_offsets"  # where deformable attention looks


@functools.cache
def attends(kind: type) -> bool:
    """Whether the forward of ``kind`` calls an attention function; or has queries, and a softmax or two matrix products
    (as linear attention, which has no softmax); or weighs by a softmax what it samples at learnt offsets, or multiplies
    by what it calls attention."""
    called = called_by(kind)
    if called & _WHOLE:
        return True
    softmax = any(name.lower().endswith("softmax") and "log" not in name for name in called)
    products = sum(found in _PRODUCTS for code in _codes(kind) for found in _operations(code))
    if any(_QUERIES.fullmatch(name) for name in called):
        return softmax or products > 1
    return softmax and (_SAMPLED in called or ("attn" in called and products > 0))


@functools.cache
def called_by(kind: type) -> frozenset[str]:
    """The names that ``forward``, the methods that it calls and the functions beside its class use, those of their
    variables among them."""
    return frozenset(name for code in _codes(kind) for name in (*code.co_names, *code.co_varnames))


@functools.cache
def asks_for(kind: type, string: str) -> bool:
    """Whether that code has ``string`` among its constants."""
    consts = [const for code in _codes(kind) for const in code.co_consts]
    return any(string == const or (isinstance(const, tuple) and string in const) for const in consts)


def _operations(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        yield "@" if instruction.opname == "BINARY_MATRIX_MULTIPLY" else instruction.argrepr  # the first: Python 3.10
        if isinstance(instruction.argval, str) and instruction.argval != instruction.argrepr:
            yield instruction.argval


def _codes(kind: type) -> Iterator[CodeType]:
    """The code of ``forward``, of the methods that it calls, of functions beside it, and what is nested in each."""
    bases = [base for base in kind.__mro__ if base not in (nn.Module, object)]
    pending: list[object] = [getattr(kind, "forward", None)]
    seen: set[object] = set()
    while pending:
        found = pending.pop()
        function = inspect.unwrap(found) if isinstance(found, FunctionType) else None
        if not isinstance(function, FunctionType) or function in seen:
            continue
        seen.add(function)
        for code in _nested(function.__code__):
            yield code
            for name in code.co_names:
                method = next((vars(base)[name] for base in bases if name in vars(base)), None)
                pending.append(getattr(method, "__func__", method))
                beside = function.__globals__.get(name)
                if getattr(beside, "__globals__", None) is function.__globals__:
                    pending.append(beside)


def _nested(code: CodeType) -> Iterator[CodeType]:
    yield code
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _nested(inner)
