"""Triton's interpreter, repaired: it computes what a GPU computes, or says why it cannot.

The stock interpreter treats bfloat16 as 16-bit integers, truncates where hardware rounds to nearest, computes TF32
products in full precision, lets 32-bit integers wrap in silence, accepts matrix products that no GPU has, and believes
every alignment hint. `repaired` changes that within a block, and makes it faster: the language is patched once and not
at every call of a device function.

It replaces private parts of Triton. Where a part has another shape it raises, rather than leave a repair out.
"""

import inspect
from contextlib import contextmanager

import numpy as np
import torch

from vitkern import dispatch, register
from vitkern.lab import bfloat16
from vitkern.lab.patches import Patches

# class or module in triton.runtime.interpreter -> the parts that are replaced or called, with their parameters
_EXPECTED = {
    "InterpreterBuilder": {
        "cast_impl": ("self", "src", "dst_type"),
        "create_fp_to_fp": ("self", "src", "dst_type", "rounding_mode"),
        "binary_op": ("self", "lhs", "rhs", "op"),
        "ternary_op": ("self", "lhs", "rhs", "other", "op"),
        "unary_op": ("self", "arg", "op"),
        "create_dot": ("self", "a", "b", "d", "input_precision", "max_num_imprecise_acc"),
        "create_fma": ("self", "x", "y", "z"),
        "create_rsqrt": ("self", "arg"),
        "create_erf": ("self", "arg"),
    },
    "ReduceOps": {"sum": ("self", "input"), "min_max": ("self", "input", "val_reduce_op", "idx_reduce_op")},
    "ScanOps": {"cumsum": ("self", "input"), "cumprod": ("self", "input")},
    "GridExecutor": {"_restore_args_dev": ("self", "args_dev", "args_hst", "kwargs", "kwargs_hst")},
}

_EXPECTED_NAMES = ("interpreter_builder", "TensorHandle", "_patch_lang", "_get_np_dtype", "_implicit_cvt")
_EXPECTED_METHODS = (
    *("create_masked_load", "create_masked_store", "create_atomic_rmw", "create_atomic_cas"),
    *("set_grid_dim", "set_grid_idx"),
)


class InterpreterChanged(RuntimeError):
    """Triton's interpreter is not built as the repairs need it."""


def _module():
    """triton.runtime.interpreter, checked."""
    if not dispatch.INTERPRETED:
        raise RuntimeError(
            "interpreter: kernels are compiled in this process: got TRITON_INTERPRET unset; "
            "expected TRITON_INTERPRET=1 before Python starts."
        )
    import triton
    from triton.runtime import interpreter

    where = f"interpreter: Triton {triton.__version__} has another interpreter than the repairs know"
    for owner, members in _EXPECTED.items():
        for name, parameters in members.items():
            found = getattr(getattr(interpreter, owner, None), name, None)
            got = tuple(inspect.signature(found).parameters) if callable(found) else None
            if got != parameters:
                raise InterpreterChanged(f"{where}: got {owner}.{name} {got}; expected parameters {parameters}.")
    for owner, names in (
        (interpreter, _EXPECTED_NAMES),
        (interpreter.InterpreterBuilder, _EXPECTED_METHODS),
        (interpreter.interpreter_semantic, ("binary_op_sanitize_overflow_impl",)),
    ):
        for name in names:
            if not hasattr(owner, name):
                raise InterpreterChanged(f"{where}: got no {name}; expected one.")
    return interpreter


class _NoScope:
    def restore(self):
        pass


def _enforce_hardware(interp, patches: Patches) -> None:
    """Integer overflow, products below the smallest tile and false alignment hints raise."""
    import triton.language as tl

    builder, semantic = interp.interpreter_builder, interp.interpreter_semantic

    def check_overflow(lhs, rhs, binary_op):
        kind = lhs.type.scalar
        if kind.int_bitwidth >= 64 or not kind.is_int_signed():
            return  # unsigned arithmetic is meant to wrap: hashes, random numbers
        operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[binary_op.__name__]
        result = operation(lhs.handle.data.astype(np.int64), rhs.handle.data.astype(np.int64))
        limit = 1 << (kind.int_bitwidth - 1)
        if result.size and (result.max() >= limit or result.min() < -limit):
            worst = result.max() if result.max() >= limit else result.min()
            raise OverflowError(f"{kind} overflow in {binary_op.__name__}: got {worst}; widen to int64 first")

    def min_dot_size(lhs, rhs):
        return (1, 1, 32) if lhs.scalar.primitive_bitwidth == 8 else (1, 1, 16)

    def checked_multiple(input, values, **_):
        numbers = values if isinstance(values, list | tuple) else [values]
        numbers = [int(getattr(value, "value", value)) for value in numbers]
        if isinstance(input, tl.tensor) and input.handle.data.size:
            first = input.handle.data.flat[0]
            if any(int(first) % number for number in numbers):
                raise ValueError(f"tl.multiple_of: got {first}; expected a multiple of {numbers}")
        return input

    patches.set(semantic, "binary_op_sanitize_overflow_impl", check_overflow)
    patches.set(builder, "codegen_fns", {**builder.codegen_fns, "min_dot_size": min_dot_size})
    patches.set(tl, "multiple_of", checked_multiple)
    patches.set(tl.core, "multiple_of", checked_multiple)


def _speed_up(interp, patches: Patches):
    """Patch the language once, and leave CPU arguments where they are. Returns what puts the language back."""
    import triton.language as tl

    everything = type("_AllModules", (), {"__globals__": {"tl": tl, "core": tl.core}})
    scope = interp._patch_lang(everything)
    if not hasattr(scope, "restore"):
        raise InterpreterChanged(
            "interpreter: the language cannot be put back: got no scope from _patch_lang; expected Triton 3.7 or newer."
        )
    patches.set(interp, "_patch_lang", lambda fn: _NoScope())
    copy_back, execute = interp.GridExecutor._restore_args_dev, interp.GridExecutor.__call__

    def keep_in_place(self, args_dev, args_hst, kwargs, kwargs_hst):
        values = [*args_dev, *kwargs.values()]
        if any(isinstance(value, torch.Tensor) and value.device.type != "cpu" for value in values):
            copy_back(self, args_dev, args_hst, kwargs, kwargs_hst)

    def quiet(self, *args, **kwargs):
        with np.errstate(all="ignore"):  # a GPU computes inf - inf without a word
            return execute(self, *args, **kwargs)

    patches.set(interp.GridExecutor, "_restore_args_dev", keep_in_place)
    patches.set(interp.GridExecutor, "__call__", quiet)
    return scope


def _self_check(interp) -> None:
    """The repairs took: rounding, a sum, a comparison and a product in bfloat16."""
    import triton.language as tl

    builder, handle = interp.interpreter_builder, interp.TensorHandle

    def bf16(*values):
        return builder.cast_impl(handle(np.array(values, np.float32), tl.float32), tl.bfloat16)

    def values(x):
        return builder.cast_impl(x, tl.float32).data.tolist()

    product = builder.create_dot(
        handle(bf16(1.5, -2.0).data.reshape(1, 2), tl.bfloat16),
        handle(bf16(3.0, 0.5).data.reshape(2, 1), tl.bfloat16),
        handle(np.zeros((1, 1), np.float32), tl.float32),
        None,
        0,
    )
    checks = {
        "rounding": values(bf16(1.01171875, 1.00390625)) == [1.015625, 1.0],
        "sum": values(builder.create_fadd(bf16(1.5), bf16(-2.25))) == [-0.75],
        "comparison": builder.create_fcmpOLT(bf16(-1.0), bf16(1.0)).data.tolist() == [True],
        "product": product.data.item() == 3.5,
    }
    if wrong := [name for name, right in checks.items() if not right]:
        raise InterpreterChanged(f"interpreter: the repairs did not take: got a wrong bfloat16 {', '.join(wrong)}.")


_depth = 0


@contextmanager
def repaired():
    """Within the block Triton's interpreter is repaired, and ops hand it bfloat16 as it is. Nests.

    Raises:
        RuntimeError: TRITON_INTERPRET is not set.
        InterpreterChanged: this Triton's interpreter is built otherwise.
    """
    global _depth
    if _depth:
        _depth += 1
        try:
            yield
        finally:
            _depth -= 1
        return
    interp = _module()
    patches = Patches()
    scope = _speed_up(interp, patches)
    try:
        bfloat16.repair_arithmetic(interp, patches)
        bfloat16.repair_reductions(interp, patches)
        _enforce_hardware(interp, patches)
        _self_check(interp)
        patches.set(register, "interpreter_is_repaired", True)
        _depth = 1
        yield
    finally:
        _depth = 0
        patches.undo()
        scope.restore()
