"""PyTorch's scaled_dot_product_attention under torch.func, vmap and forward-mode autograd."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from vitkern.dispatch import is_transformed


def differentiable_sdpa(*terms: Tensor | None) -> AbstractContextManager[None]:
    """SDPA with every derivative, of its mask too: transformed, it does not see that the mask, which ``terms`` are part
    of, has a gradient, and picks a kernel that has none, nor a jvp."""
    if torch.compiler.is_compiling() or not is_transformed() or all(term is None for term in terms):
        return nullcontext()
    return sdpa_kernel(SDPBackend.MATH)
