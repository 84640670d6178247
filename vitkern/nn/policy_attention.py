"""Attention of DynamicViT (Rao et al., arXiv 2106.02034, section 3.3): tokens are pruned by a policy in training, and
left out at inference."""

import torch.nn as nn
from torch import Tensor

from vitkern.nn.heads import head_dim
from vitkern.ops.attention import attention_qkvpacked
from vitkern.ops.policy_attention import policy_attention


class PolicyAttention(nn.Module):
    """Multi-head self-attention in which each token counts, as a key, for what a policy says, with projections; named
    as in `timm.layers.Attention`, and as in DynamicViT's code.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H.
        qkv_bias: q, k and v projections have a bias.
        proj_drop: dropout after the output projection, in training.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, qkv_bias: bool = False, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.head_dim = head_dim("PolicyAttention", dim, num_heads)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C). policy (B, N), or (B, N, 1): 1 for a token that is kept, 0 for one that is pruned,
        with the gradient of a straight-through sample. None: plain attention, of the tokens that `keep_tokens` left."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, H, D)
        out = attention_qkvpacked(qkv) if policy is None else policy_attention(qkv, policy)
        return self.proj_drop(self.proj(out.flatten(2)))


def keep_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """The tokens of each image at ``indices`` (B, K), int64, in their order: x (B, N, C) -> (B, K, C), or (B, N) -> (B,
    K). What DynamicViT does at inference with the best of its scores.

    Raises:
        ValueError: one is no batch of the other's.
        RuntimeError: an index is beyond the tokens.
    """
    if x.dim() not in (2, 3) or indices.dim() != 2 or x.shape[0] != indices.shape[0]:
        raise ValueError(
            f"keep_tokens: indices do not belong to the tokens: got {tuple(indices.shape)} for x {tuple(x.shape)}; "
            "expected (B, K) for (B, N, C) or (B, N). Give a row of indices for each image."
        )
    return x.gather(1, indices if x.dim() == 2 else indices[:, :, None].expand(-1, -1, x.shape[2]))
