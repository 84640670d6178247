"""Triton's interpreter, repaired: it computes what a GPU computes, or says why it cannot.

The stock interpreter treats bfloat16 as 16-bit integers, truncates where hardware rounds to nearest, computes TF32
products in full precision, lets 32-bit integers wrap in silence, accepts matrix products that no GPU has, and believes
every alignment hint. Before Triton 3.7 it has no bfloat16 constants, no bool arguments, and with NumPy 2.4 no run-time
loop bounds. `repaired` changes that within a block, and makes it faster: the language is patched once and not at every
call of a device function, and what types and shapes say is remembered.

It replaces private parts of Triton, and is tested with 3.4 to 3.9. Where a part has another shape it raises, rather
than leave a repair out.
"""

import inspect

import numpy as np
import torch

from vitkern import dispatch
from vitkern.lab.interpreting import bfloat16, hardware, remembered
from vitkern.lab.interpreting.patches import Patches, outermost

# class in triton.runtime.interpreter -> the parts that are replaced or called, with their parameters
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
    "TritonSemantic": {
        "broadcast_impl_value": ("self", "lhs", "rhs"),
        "computation_type_impl": ("self", "a_ty", "a_is_scalar", "b_ty", "b_is_scalar", "div_or_mod"),
    },
    "tl.core.block_type": {"__init__": ("self", "element_ty", "shape")},
    "tl.core.tensor": {"__init__": ("self", "handle", "type")},
    "tl.core.dtype": {"__eq__": ("self", "other")},
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
            found = interpreter
            for part in (*owner.split("."), name):
                found = getattr(found, part, None)
            got = tuple(inspect.signature(found).parameters) if callable(found) else None
            if got != parameters:
                raise InterpreterChanged(f"{where}: got {owner}.{name} {got}; expected parameters {parameters}.")
    for owner, names in (
        (interpreter, _EXPECTED_NAMES),
        (interpreter.InterpreterBuilder, _EXPECTED_METHODS),
        (type(interpreter.interpreter_semantic), ("binary_op_sanitize_overflow_impl",)),
    ):
        for name in names:
            if not hasattr(owner, name):
                raise InterpreterChanged(f"{where}: got no {name}; expected one.")
    return interpreter


class _NoScope:
    def restore(self):
        pass


def _patch_language(interp, patches: Patches):
    """Patch the language once. Returns what puts it back."""
    import triton.language as tl

    everything = type("_AllModules", (), {"__globals__": {"tl": tl, "core": tl.core}})
    owners = (tl, tl.core, tl.math, tl.core.tensor, tl.core.dtype, tl.core.tensor_descriptor_base)
    before = [dict(vars(owner)) for owner in owners]
    scope = interp._patch_lang(everything)
    if tl.range is before[0]["range"]:
        raise InterpreterChanged("interpreter: the language was not patched: got tl.range as it was; expected another.")
    if not hasattr(scope, "restore"):  # Triton before 3.6 leaves it patched
        scope = _NoScope()
        for owner, attributes in zip(owners, before, strict=True):
            patches.adopt(owner, attributes)
    patches.set(interp, "_patch_lang", lambda fn: _NoScope())
    # NumPy 2.4 makes no number out of an array of one element, which is what a scalar is here
    patches.set(tl.core.tensor, "__index__", lambda self: int(self.handle.data.item()))
    convert = interp._implicit_cvt

    def implicit_cvt(arg):
        if isinstance(arg, bool):
            return tl.tensor(interp.TensorHandle(np.array([arg], np.bool_), tl.int1), tl.int1)
        return convert(arg)

    patches.set(interp, "_implicit_cvt", implicit_cvt)
    return scope


def _speed_up(interp, patches: Patches) -> None:
    """Leave CPU arguments where they are, and warnings out."""
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


@outermost
def repaired():
    """Within the block Triton's interpreter is repaired, and ops hand it bfloat16 as it is. Nests.

    Raises:
        RuntimeError: TRITON_INTERPRET is not set.
        InterpreterChanged: this Triton's interpreter is built otherwise.
    """
    interp = _module()
    patches = Patches()
    scope = _NoScope()
    try:
        scope = _patch_language(interp, patches)
        _speed_up(interp, patches)
        remembered.remember(interp, patches)
        bfloat16.repair_arithmetic(interp, patches)
        bfloat16.repair_reductions(interp, patches)
        hardware.enforce(interp, patches)
        _self_check(interp)
        patches.set(dispatch, "interpreter_is_repaired", True)
        yield
    finally:
        patches.undo()
        scope.restore()
