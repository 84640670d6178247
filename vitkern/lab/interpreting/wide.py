"""Kernels in double precision: within `wide`, single precision *is* double.

Kernels name float32 for scores, statistics and accumulators, and launchers allocate float32 beside their inputs; so
even float64 inputs would be computed to single precision, and a finite difference of that shows little. Within the
block the name float32 means float64, in the language, in the launchers and in ``Tensor.float``, and ops hand float64
tensors to their kernels. The kernels are the ones that ship, unchanged, with the tiles that float32 gets.
"""

import functools
import inspect
import types

import numpy as np
import torch

import vitkern.kernels
from vitkern import dispatch
from vitkern.lab.interpreting.interpreter import InterpreterChanged, repaired
from vitkern.lab.interpreting.patches import Patches, outermost

_SINGLE = torch.float32.itemsize


def _widen_launchers(patches: Patches) -> None:
    """In every module of kernels, torch.float32 is float64."""
    wide_torch = types.ModuleType("torch", "torch, with float64 for float32")
    wide_torch.__getattr__ = functools.partial(getattr, torch)
    wide_torch.float32 = torch.float64
    for module in vitkern.kernels.modules():
        for name, value in list(vars(module).items()):
            if value is torch:
                patches.set(module, name, wide_torch)


def _as_of_single(choice, *args, **kwargs):
    """What the kernels' ``choice`` is for float32."""
    bound = inspect.signature(choice).bind(*args, **kwargs)
    if "itemsize" in bound.arguments:
        bound.arguments["itemsize"] = min(bound.arguments["itemsize"], _SINGLE)
    return choice(*bound.args, **bound.kwargs)


def _widen_language(interp, patches: Patches) -> None:
    import triton.language as tl

    builder, semantic = interp.InterpreterBuilder, type(interp.interpreter_semantic)
    if not callable(getattr(builder, "get_fp32", None)) or not callable(getattr(semantic, "dot", None)):
        raise InterpreterChanged("wide: got an interpreter without get_fp32 or dot; expected the one of Triton 3.9.")
    single, double, dot, type_named = tl.float32, tl.float64, semantic.dot, tl.str_to_ty

    def wide_dot(self, *operands):  # Triton before 3.9 keeps float32 as a default of tl.dot
        return dot(self, *(double if value is single else value for value in operands))

    def wide_type_named(name, *rest):
        if name.endswith("fp32"):
            raise TypeError("wide: a tensor has four bytes where kernels read eight: got float32; expected float64.")
        return type_named(name, *rest)

    patches.set(tl, "str_to_ty", wide_type_named)
    patches.set(semantic, "dot", wide_dot)
    patches.set(builder, "get_fp32", builder.get_fp64)
    patches.set(tl.core, "float32", double)
    patches.set(tl, "float32", double)


def _self_check(interp) -> None:
    """Constants, casts, functions and products keep the bits that single precision has no place for."""
    import triton.language as tl

    semantic, builder = interp.interpreter_semantic, interp.interpreter_builder
    fine = 1.0 + 2.0**-40
    constant = semantic.to_tensor(fine)
    tile = tl.core.tensor(interp.TensorHandle(np.full((16, 16), fine), tl.float64), tl.block_type(tl.float64, [16, 16]))
    product = semantic.dot(tile, tile, None, "ieee", None, tl.float32)
    found = {
        "a constant": constant.handle.data,
        "a cast": semantic.cast(constant, tl.float32).handle.data,
        "a sum": semantic.add(constant, 0.0, True).handle.data,
        "exp2": np.log2(builder.create_exp2(constant.handle).data),
        "a product": np.sqrt(product.handle.data / 16),
    }
    if wrong := [name for name, value in found.items() if np.abs(value - fine).max() > 1e-15]:
        raise InterpreterChanged(f"wide: the interpreter still rounds to single precision: got {', '.join(wrong)}.")


@outermost
def wide():
    """Within the block the interpreter is repaired, float32 is float64 in kernels and launchers, and ops run their
    kernels on float64 tensors and on no others. Nests.

    Raises:
        RuntimeError: TRITON_INTERPRET is not set.
        InterpreterChanged: this Triton's interpreter is built otherwise.
    """
    from vitkern.kernels.machine.choices import answered

    patches = Patches()
    with repaired():
        from triton.runtime import interpreter as interp

        try:
            _widen_language(interp, patches)
            _self_check(interp)
            _widen_launchers(patches)
            patches.set(torch.Tensor, "float", torch.Tensor.double)
            patches.set(dispatch, "KERNEL_DTYPES", (torch.float64,))
            with answered(_as_of_single):
                yield
        finally:
            patches.undo()
