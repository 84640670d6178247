"""What types and shapes say, which are few, and Triton's interpreter works out again at every operation: remembered."""

import math

import numpy as np

from vitkern.lab.interpreting.patches import Patches


def remember(interp, patches: Patches) -> None:
    """NumPy's dtype of a type, what two types are computed in, the parts of a block's type and the shape of a tensor
    are made once each, types are compared by name, and blocks of one shape are not broadcast. ``interp`` is
    triton.runtime.interpreter.
    """
    import triton.language as tl

    core, semantic = tl.core, type(interp.interpreter_semantic)
    stock_numpy, stock_block, stock_equal = interp._get_np_dtype, core.block_type.__init__, core.dtype.__eq__
    stock_broadcast, stock_promoted = semantic.broadcast_impl_value, semantic.computation_type_impl
    numpy_dtypes: dict[tuple[str, str], np.dtype] = {}  # by names: of the element, and of what float32 means in `wide`
    promoted: dict[tuple, object] = {}  # what two types are computed in, by their names and that
    lengths: dict[tuple[int, ...], object] = {}  # shape -> as block types hold it, the same object for all
    blocks: dict[tuple, dict[str, object]] = {}  # (name of the element, shape) -> attributes of its block type
    tensors: dict[tuple[int, ...], tuple] = {}  # shape -> number of elements and shape, as tensors hold them

    def numpy_dtype(kind):
        key = kind.scalar.name, tl.float32.name
        if key not in numpy_dtypes:
            numpy_dtypes[key] = stock_numpy(kind)
        return numpy_dtypes[key]

    def block_type(self, element_ty, shape):
        if {*map(type, shape)} != {int}:  # 16.0 is equal to 16, and no length
            stock_block(self, element_ty, shape)
            return
        key = element_ty.name, *shape
        if key not in blocks:
            stock_block(self, element_ty, shape)
            self.shape = lengths.setdefault(key[1:], self.shape)
            blocks[key] = vars(self).copy()
        vars(self).update(blocks[key], element_ty=element_ty)

    def tensor(self, handle, type):
        shape = (*type.shape,) if type.is_block() else ()
        if shape not in tensors:
            tensors[shape] = core.constexpr(math.prod(shape)), core.tuple([core.constexpr(one) for one in shape])
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = tensors[shape]

    def equal(self, other):
        return self.name == other.name if type(other) is core.dtype else stock_equal(self, other)

    def broadcast(self, lhs, rhs):
        same = lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape
        return (lhs, rhs) if same else stock_broadcast(self, lhs, rhs)

    def computed_in(self, a_ty, a_is_scalar, b_ty, b_is_scalar, div_or_mod):
        key = a_ty.name, a_is_scalar, b_ty.name, b_is_scalar, div_or_mod, tl.float32.name
        if key not in promoted:
            promoted[key] = stock_promoted(self, a_ty, a_is_scalar, b_ty, b_is_scalar, div_or_mod)
        return promoted[key]

    patches.set(interp, "_get_np_dtype", numpy_dtype)
    patches.set(core.block_type, "__init__", block_type)
    patches.set(core.tensor, "__init__", tensor)
    patches.set(core.dtype, "__eq__", equal)
    patches.set(semantic, "broadcast_impl_value", broadcast)
    patches.set(semantic, "computation_type_impl", computed_in)
