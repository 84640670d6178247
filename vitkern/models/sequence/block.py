"""One block of a Transformer, with its norms before or after the branches, and a stack of them."""

from collections.abc import Callable, Iterator

import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Checkpointed
from vitkern.models.sequence.attention import CrossAttention, SelfAttention
from vitkern.models.sequence.cache import Cache, LayerCache
from vitkern.nn.layernorm import LayerNorm, add_norm
from vitkern.nn.layernorm_mlp import Mlp, ReluMlp, mlp_residual
from vitkern.nn.layers import DropPath


class Block(nn.Module):
    """Self-attention, attention to an encoder where it is a decoder's, MLP; each with a residual.

    Args:
        dim: channels C. num_heads: H. hidden_dim: width of the MLP.
        pre_norm: x + f(norm(x)) (Xiong et al. 2020, arXiv 2002.04745); otherwise norm(x + f(x)) (Vaswani et al. 2017,
            arXiv 1706.03762, section 3.1).
        causal: a token attends to itself and those before it.
        cross: it attends to an encoder's tokens, too.
        act: "relu", or one that `vitkern.nn.Mlp` knows.
        norm: makes a norm of (dim, eps=).
        drop: dropout of every branch before it is added, in training. attn_drop: of the attention weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden_dim: int,
        *,
        pre_norm: bool = False,
        causal: bool = False,
        cross: bool = False,
        act: str = "gelu",
        norm: Callable[..., nn.Module] = LayerNorm,
        eps: float = 1e-5,
        drop: float = 0.0,
        attn_drop: float = 0.0,
    ) -> None:
        super().__init__()
        self.pre_norm = pre_norm
        self.norm1 = norm(dim, eps=eps)
        self.attn = SelfAttention(dim, num_heads, causal=causal, attn_drop=attn_drop)
        self.norm_cross = norm(dim, eps=eps) if cross else nn.Identity()
        self.cross = CrossAttention(dim, num_heads, attn_drop=attn_drop) if cross else None
        self.norm2 = norm(dim, eps=eps)
        self.mlp = ReluMlp(dim, hidden_dim) if act == "relu" else Mlp(dim, hidden_dim, act)
        self.drop = nn.Dropout(drop)
        self.drop_path = DropPath(0.0)

    def _add(self, x: Tensor, norm: nn.Module, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        if self.pre_norm:
            return x + self.drop(branch(norm(x)))
        return add_norm(x, self.drop(branch(x)), norm)

    def _add_mlp(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        if not self.pre_norm:
            return self._add(x, self.norm2, self.mlp)
        dropping = self.training and self.drop.p > 0.0
        return mlp_residual(x, self.norm2, self.mlp, self.drop if dropping else self.drop_path)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x (B, N, C), memory (B, M, C), masks as in `SelfAttention` and `CrossAttention` -> (B, N, C)."""
        own, kept = (None, None) if cache is None else cache
        x = self._add(x, self.norm1, lambda y: self.attn(y, mask, own))
        if (cross := self.cross) is not None and memory is not None:
            x = self._add(x, self.norm_cross, lambda y: cross(y, memory, memory_mask, kept))
        return self._add_mlp(x)


class Stack(nn.ModuleList, Checkpointed):
    """Blocks, one after another; arguments are those of `Block`."""

    def __init__(self, depth: int, *args: object, **kwargs: object) -> None:
        super().__init__([Block(*args, **kwargs) for _ in range(depth)])  # type: ignore[arg-type]

    def states(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Iterator[Tensor]:
        """What each block gives, in turn: (B, N, C)."""
        for i, block in enumerate(self):
            inputs = x, mask, memory, memory_mask
            x = self.run(block, *inputs) if cache is None else block(*inputs, cache.layers[i])
            yield x

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """What the last block gives: (B, N, C)."""
        out = x
        for out in self.states(x, mask, memory, memory_mask, cache):  # noqa: B007 # the last is the result
            pass
        return out
