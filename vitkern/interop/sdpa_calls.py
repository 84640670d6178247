"""Modules that call PyTorch's scaled_dot_product_attention: their forward as it is written, with vitkern's attention
in that function's place. Rotations, norms, biases, gates and pooling stay the library's; hooks see what they saw."""

from types import FunctionType, ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vitkern.dispatch import autocast, runs_kernel
from vitkern.interop.adapter import WAITS, Adapter, Fit
from vitkern.ops.attention import attention

_NAME = "scaled_dot_product_attention"
_ORIGINAL = F.scaled_dot_product_attention


def sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's scaled_dot_product_attention: the kernel of `vitkern.attention` where it runs, else the function itself.

    Args:
        query: (..., H, N, D). key: (..., Hk, M, D). value: (..., Hk, M, Dv), with at most two dimensions in front.
        attn_mask: broadcastable to (B, H, N, M): bool, True attends; or added to the logits, with a gradient.
        The others are those of torch's function.

    Returns:
        (..., H, N, Dv).
    """
    if not _serves(query, key, value, attn_mask, is_causal, enable_gqa) or not runs_kernel(
        "attention", (*autocast(query, key, value), attn_mask)
    ):
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask=attn_mask, dropout_p=dropout_p, is_causal=is_causal, scale=scale,
            enable_gqa=enable_gqa,
        )  # fmt: skip
    lead, bias, mask = query.shape[:-3], None, attn_mask
    if mask is not None and mask.requires_grad:
        bias, mask = mask, None
    if query.dim() != 4:
        query, key, value = (t.reshape(-1, *t.shape[-3:]) for t in (query, key, value))
    out = attention(query, key, value, bias=bias, mask=mask, causal=is_causal, scale=scale, dropout_p=dropout_p)
    return out if len(lead) == 1 else out.reshape(*lead, *out.shape[1:])


def _serves(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool, enable_gqa: bool) -> bool:
    """Whether this call means to vitkern what it means to PyTorch, which aligns causality to the first key and
    broadcasts batches."""
    if is_causal and (mask is not None or query.shape[-2] != key.shape[-2]):
        return False
    if not 3 <= query.dim() <= 5 or (mask is not None and (query.dim() != 4 or mask.dim() > 4)):
        return False
    if not query.shape[:-3] == key.shape[:-3] == value.shape[:-3] or key.shape[-3] != value.shape[-3]:
        return False
    return key.shape[-3] in (1, query.shape[-3]) or enable_gqa


class Caller(Adapter):
    """Of a class whose ``forward`` calls torch's scaled_dot_product_attention. What it gives that function, dropout
    included, goes to `sdpa`; a module that is set to compute its weights itself does so."""

    forward_by_vitkern: ClassVar[FunctionType]
    _names: ClassVar[dict[str, object]]  # what its forward knew by name when it was taken

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        written: Any = cls.adapted.forward
        cls._names = {
            name: written.__globals__[name] for name in written.__code__.co_names if name in written.__globals__
        }
        cls.forward_by_vitkern = _calling_sdpa(written)

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not getattr(module, "fused_attn", True) or getattr(module, "einsum", False):
            return Fit((), ("it is set to compute its attention weights itself, where they can be hooked",))
        return Fit(("attention",), (WAITS,), True)

    def forward(self, *args: Any, **keywords: Any) -> Any:
        if _is_patched(type(self)):
            return super().forward(*args, **keywords)
        return self.forward_by_vitkern(*args, **keywords)


def _is_patched(kind: type[Caller]) -> bool:
    """Whether somebody put another function under a name that the library's forward uses."""
    if F.scaled_dot_product_attention is not _ORIGINAL:
        return True
    known = kind.adapted.forward.__globals__
    return any(known.get(name) is not found for name, found in kind._names.items())


# Answered while compiling, not traced; see `vitkern.ops.bypass.pristine`.
_is_patched._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _calling_sdpa(forward: FunctionType) -> FunctionType:
    """``forward`` with `sdpa` for torch's function, by whichever of torch's modules it reaches it."""
    functional = _copy(F, **{_NAME: sdpa})
    network = _copy(nn, functional=functional)
    stand_ins = {id(F): functional, id(nn): network, id(torch): _copy(torch, nn=network)}
    known = {name: stand_ins.get(id(found), found) for name, found in forward.__globals__.items()}
    known.pop("__name__")  # the compiler would look the names up in that module
    result = FunctionType(forward.__code__, known, forward.__name__, forward.__defaults__, forward.__closure__)
    result.__kwdefaults__ = forward.__kwdefaults__
    return result


def _copy(module: ModuleType, **replaced: object) -> ModuleType:
    copied = ModuleType(module.__name__)
    vars(copied).update(vars(module), **replaced)
    return copied
