"""Arithmetic of Triton's interpreter as hardware does it: bfloat16, which it keeps as 16-bit integers, TF32, rounding.

Every operation on bfloat16 widens to float32, computes, and rounds once to nearest even.
"""

import functools

import numpy as np
import torch

from vitkern.lab.interpreting.patches import Patches

_ARITHMETIC = ("add", "subtract", "multiply", "divide", "fmod", "minimum", "maximum", "fmin", "fmax")
_COMPARISONS = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal")


def widened(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bits (uint16) -> float32, exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrowed(values: np.ndarray) -> np.ndarray:
    """float -> bfloat16 bits (uint16), round to nearest even, NaN kept."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded)


def to_tf32(values: np.ndarray) -> np.ndarray:
    """float32 rounded to TF32's 10 mantissa bits; infinities and NaN kept."""
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = ((bits + 0x0FFF + ((bits >> 13) & 1)) & np.uint32(0xFFFFE000)).view(np.float32)
    return np.where(np.isfinite(values), rounded, values)


def repair_arithmetic(interp, patches: Patches) -> None:
    """Replace the builder's arithmetic. ``interp`` is triton.runtime.interpreter."""
    import triton.language as tl

    builder, handle, bf16 = interp.InterpreterBuilder, interp.TensorHandle, tl.bfloat16
    floats = (tl.float16, tl.bfloat16, tl.float32, tl.float64)
    arithmetic = {getattr(np, name) for name in _ARITHMETIC}
    comparisons = {getattr(np, name) for name in _COMPARISONS}
    stock = dict(vars(builder))

    def wide(x):
        return widened(x.data) if x.dtype.scalar == bf16 else x.data

    def cast_impl(self, src, dst_type):
        source, target = src.dtype.scalar, dst_type.scalar
        if source != bf16 and target != bf16:
            return stock["cast_impl"](self, src, dst_type)
        if target == bf16:
            return handle(src.data if source == bf16 else narrowed(src.data), bf16)
        return handle(widened(src.data).astype(interp._get_np_dtype(target)), target)

    def create_fp_to_fp(self, src, dst_type, rounding_mode):
        nearest = rounding_mode is None or str(rounding_mode).endswith("RTNE")
        if nearest and src.dtype.scalar in floats and dst_type.scalar in floats:
            return cast_impl(self, src, dst_type)
        return stock["create_fp_to_fp"](self, src, dst_type, rounding_mode)

    def binary_op(self, lhs, rhs, op):
        if lhs.dtype.scalar != bf16 or (op not in arithmetic and op not in comparisons):
            return stock["binary_op"](self, lhs, rhs, op)
        result = op(widened(lhs.data), widened(rhs.data))
        return handle(result, tl.int1) if op in comparisons else handle(narrowed(result), bf16)

    def ternary_op(self, lhs, rhs, other, op):
        if other.dtype.scalar != bf16 or op is np.where:
            return stock["ternary_op"](self, lhs, rhs, other, op)
        return handle(narrowed(op(widened(lhs.data), widened(rhs.data), widened(other.data))), bf16)

    def unary_op(self, arg, op):
        if arg.dtype.scalar != bf16:
            return stock["unary_op"](self, arg, op)
        return handle(narrowed(op(widened(arg.data))), bf16)

    def create_fma(self, x, y, z):
        if z.dtype.scalar != bf16:
            return stock["create_fma"](self, x, y, z)
        product = np.multiply(wide(x), wide(y), dtype=np.float64)
        return handle(narrowed((product + wide(z)).astype(np.float32)), bf16)

    def get_bf16(self, value):
        return handle(narrowed(np.array([value])), bf16)

    def create_atomic_rmw(self, operation, ptr, val, mask, *rest):
        if val.dtype.scalar != bf16 or not str(operation).endswith("FADD"):
            return stock["create_atomic_rmw"](self, operation, ptr, val, mask, *rest)
        old, memory = np.zeros_like(val.data), interp._interpreter
        for lane in np.ndindex(old.shape):
            place, active = ptr.data[lane].reshape(1), mask.data[lane].reshape(1)
            old[lane] = memory.load(place, active, old[lane].reshape(1), old.dtype)[0]
            memory.store(place, narrowed(widened(old[lane]) + widened(val.data[lane])).reshape(1), active)
        return handle(old, bf16)

    def create_rsqrt(self, arg):
        return unary_op(self, arg, lambda x: (1 / np.sqrt(x)).astype(x.dtype))

    def create_erf(self, arg):
        values = np.ascontiguousarray(arg.data)
        exact = torch.erf(torch.from_numpy(values.astype(np.float64))).numpy()
        return handle(exact.astype(values.dtype), arg.dtype.scalar)

    def create_dot(self, a, b, d, input_precision, max_num_imprecise_acc):
        x, y = wide(a), wide(b)
        if a.dtype.scalar == tl.float32 and str(input_precision).rsplit(".", 1)[-1].upper() == "TF32":
            x, y = to_tf32(x), to_tf32(y)
        if x.dtype not in (np.float16, np.float32):
            return stock["create_dot"](self, a, b, d, input_precision, max_num_imprecise_acc)
        result = np.matmul(x.astype(np.float32, copy=False), y.astype(np.float32, copy=False)) + wide(d)
        return handle(narrowed(result) if d.dtype.scalar == bf16 else result.astype(d.data.dtype), d.dtype.scalar)

    for repair in (
        cast_impl,
        create_fp_to_fp,
        binary_op,
        ternary_op,
        unary_op,
        create_fma,
        create_rsqrt,
        create_erf,
        create_dot,
        create_atomic_rmw,
        get_bf16,
    ):
        patches.set(builder, repair.__name__, repair)


def repair_reductions(interp, patches: Patches) -> None:
    """Reductions and scans of bfloat16 go through float32 and round once."""
    import triton.language as tl

    def through_float32(stock):
        @functools.wraps(stock)
        def run(self, input, *args, **kwargs):
            first = input[0] if isinstance(input, tuple) else input
            if first.dtype != tl.bfloat16:
                return stock(self, input, *args, **kwargs)
            return rounded(stock(self, self.to_tensor(widened(first.handle.data), tl.float32), *args, **kwargs))

        def rounded(value):
            if isinstance(value, tuple | list):
                return type(value)(rounded(one) for one in value)
            if value.dtype != tl.float32:  # an index
                return value
            kind = tl.block_type(tl.bfloat16, list(value.shape)) if value.type.is_block() else tl.bfloat16
            return tl.core.tensor(interp.TensorHandle(narrowed(value.handle.data), tl.bfloat16), kind)

        return run

    for owner, names in ((interp.ReduceOps, ("sum", "min_max")), (interp.ScanOps, ("cumsum", "cumprod"))):
        for name in names:
            patches.set(owner, name, through_float32(getattr(owner, name)))
