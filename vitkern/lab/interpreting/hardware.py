"""What a GPU refuses or gets wrong, and Triton's interpreter lets pass: here it raises."""

import functools

import numpy as np

from vitkern.lab.interpreting.patches import Patches


def _check_range(values: np.ndarray, kind, what: str) -> None:
    """``values``, computed in 64 bits, fit the signed integer type ``kind``."""
    limit = 1 << (kind.int_bitwidth - 1)
    if values.size and (values.max() >= limit or values.min() < -limit):
        worst = values.max() if values.max() >= limit else values.min()
        raise OverflowError(f"{kind} overflow in {what}: got {worst}; widen to int64 first")


def _may_overflow(kind) -> bool:
    """Unsigned arithmetic is meant to wrap (hashes, random numbers), and so is that of one bit."""
    return kind.is_int_signed() and 1 < kind.int_bitwidth < 64


def enforce(interp, patches: Patches) -> None:
    """Integer overflow, products below the smallest tile and false alignment hints raise. ``interp`` is
    triton.runtime.interpreter.
    """
    import triton.language as tl

    builder = interp.interpreter_builder

    def check_overflow(self, lhs, rhs, binary_op):
        kind = lhs.type.scalar
        if _may_overflow(kind):
            operation = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[binary_op.__name__]
            exact = operation(lhs.handle.data.astype(np.int64), rhs.handle.data.astype(np.int64))
            _check_range(exact, kind, binary_op.__name__)

    def checked(stock):
        @functools.wraps(stock)
        def run(self, input):
            kind = input.dtype.scalar
            if _may_overflow(kind):
                wide = stock(self, self.to_tensor(input.handle.data.astype(np.int64), tl.int64))
                _check_range((wide[0] if isinstance(wide, list) else wide).handle.data, kind, stock.__name__)
            return stock(self, input)

        return run

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

    # on the class: some Tritons make a semantic for each function of the language
    patches.set(type(interp.interpreter_semantic), "binary_op_sanitize_overflow_impl", check_overflow)
    for owner, names in ((interp.ReduceOps, ("sum",)), (interp.ScanOps, ("cumsum", "cumprod"))):
        for name in names:
            patches.set(owner, name, checked(getattr(owner, name)))
    patches.set(builder, "codegen_fns", {**builder.codegen_fns, "min_dot_size": min_dot_size})
    patches.set(tl, "multiple_of", checked_multiple)
    patches.set(tl.core, "multiple_of", checked_multiple)
