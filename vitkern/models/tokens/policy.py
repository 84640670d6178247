"""Attention whose keys count for what a policy says (DynamicViT, arXiv 2106.02034, section 3.3), as a plain formula."""

import torch
from torch import Tensor

from vitkern.nn.attention import Attention
from vitkern.ops.attention import attention_qkvpacked


class PolicyAttention(Attention):
    """`vitkern.nn.Attention` in which token j counts, as a key, for policy_j, and each token for 1 to itself."""

    def forward(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        """x (B, N, C), policy (B, N) -> (B, N, C). None: plain attention."""
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, H, D)
        out = attention_qkvpacked(qkv) if policy is None else policy_attention(qkv, policy)
        return self.proj_drop(self.proj(out.flatten(2)))


def policy_attention(qkv: Tensor, policy: Tensor, *, scale: float | None = None, eps: float = 1e-6) -> Tensor:
    """qkv (B, N, 3, H, D), policy (B, N) -> (B, N, H, D):

    E_ij = exp(s_ij - max_j s_ij) G_ij    G_ij = policy_j, 1 where i = j    out = (E + eps / N) v / (sum_j E + eps)
    """
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, N, D) each
    own = torch.eye(qkv.shape[1], dtype=torch.bool, device=qkv.device)
    counts = torch.where(own, 1.0, policy.float()[:, None, None, :])
    scores = (q * (qkv.shape[-1] ** -0.5 if scale is None else scale)) @ k.transpose(-1, -2)  # (B, H, N, N)
    weights = (scores - scores.amax(-1, keepdim=True)).float().exp() * counts
    total = weights.sum(-1, keepdim=True) + eps
    weights = ((weights + eps / qkv.shape[1]) / total).to(v.dtype)
    return (weights @ v).transpose(1, 2)


def keep_tokens(x: Tensor, indices: Tensor) -> Tensor:
    """The tokens of each image at ``indices`` (B, K) int64: x (B, N, C) -> (B, K, C), or (B, N) -> (B, K)."""
    return x.gather(1, indices if x.dim() == 2 else indices[:, :, None].expand(-1, -1, x.shape[2]))
