"""Gated positional self-attention as a module (ConViT, d'Ascoli et al., arXiv 2103.10697, section 3)."""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.nn.heads import head_dim
from vitkern.ops.bypass import may_bypass
from vitkern.ops.gated_positional_attention import gated_positional_attention, grid_of, mean_weights


class GatedPositionalAttention(nn.Module):
    """Attention by content and by position, mixed by a gate of each head, with projections; named as in
    `timm.models.convit.GPSA`, whose weights it takes. See
    `vitkern.ops.gated_positional_attention.gated_positional_attention`.

    Where ``pos_proj`` or ``attn_drop`` is not a plain module (adapters, hooks), both are called, on all pairs of
    tokens.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H. The local initialisation wants a square: a head for each pixel of a convolution's kernel.
        qkv_bias: q, k and v projections have a bias.
        attn_drop: dropout of the mixed weights; above 0, in training, PyTorch computes the attention, and holds them.
        proj_drop: dropout of the result.
        locality_strength: the paper's alpha, by which `local_init` narrows what a head sees; above 0.

    Raises:
        ValueError: ``num_heads`` does not divide ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        locality_strength: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_heads, self.locality_strength = num_heads, locality_strength
        self.head_dim = head_dim("GatedPositionalAttention", dim, num_heads)
        self.qk = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.v = nn.Linear(dim, dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.pos_proj = nn.Linear(3, num_heads)  # its bias drops out of the softmax
        self.proj_drop = nn.Dropout(proj_drop)
        self.gating_param = nn.Parameter(torch.ones(num_heads))

    def forward(self, x: Tensor, grid: tuple[int, int] | None = None) -> Tensor:
        """(B, N, C) -> (B, N, C). ``grid``: (grid_h, grid_w) of the tokens; a square by default."""
        heads = self.num_heads, self.head_dim
        qk, v = self.qk(x).unflatten(-1, (2, *heads)), self.v(x).unflatten(-1, heads)
        if may_bypass(self.pos_proj, nn.Linear) and may_bypass(self.attn_drop, nn.Dropout):
            out = attend(self, qk, v, grid)
        else:
            weights = self.attn_drop(self._called(qk, grid_of("GatedPositionalAttention", x.shape[1], grid)))
            out = (weights.to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2)
        return self.proj_drop(self.proj(out.flatten(2)))

    def _called(self, qk: Tensor, grid: tuple[int, int]) -> Tensor:
        """The weights (B, H, N, N)."""
        q, k = qk.permute(2, 0, 3, 1, 4)  # (B, H, N, D)
        content = (q @ k.transpose(-1, -2) * self.head_dim**-0.5).softmax(-1)
        gate = self.gating_param[:, None, None]
        place = _places(grid, gate)
        d = place[None] - place[:, None]  # (N, N, 2)
        positions = self.pos_proj(torch.cat([d, d.square().sum(-1, keepdim=True)], -1)).permute(2, 0, 1).softmax(-1)
        return torch.sigmoid(-gate) * content + torch.sigmoid(gate) * positions

    @torch.no_grad()
    def local_init(self) -> None:
        """Heads look like the pixels of a convolution's kernel around each token, as far as they form a square, and v
        is the identity (section 3.2, equation 8, as timm has it)."""
        side = int(self.num_heads**0.5)
        self.v.weight.copy_(torch.eye(self.v.in_features))
        for head in range(side * side):
            dx, dy = (place - (side - 1) / 2 for place in divmod(head, side))
            self.pos_proj.weight[head] = torch.tensor([2 * dx, 2 * dy, -1.0])
        self.pos_proj.weight.mul_(self.locality_strength)

    @torch.no_grad()
    def get_attention_map(
        self, x: Tensor, return_map: bool = False, grid: tuple[int, int] | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """How far each head looks: mean distance (H,) of what tokens of ``x`` (B, N, C) attend to, in tokens; with
        ``return_map`` also the weights (H, N, N), the mean over images. As timm's, of any grid."""
        grid_h, grid_w = grid_of("GatedPositionalAttention", x.shape[1], grid)
        qk = self.qk(x).unflatten(-1, (2, self.num_heads, self.head_dim))
        if may_bypass(self.pos_proj, nn.Linear):
            weights = mean_weights(qk, self.pos_proj.weight, self.gating_param, (grid_h, grid_w))
        else:
            weights = self._called(qk, (grid_h, grid_w)).mean(0)
        place = _places((grid_h, grid_w), weights)
        far = (torch.cdist(place, place) * weights).sum(-1).mean(-1)
        return (far, weights) if return_map else far

    def extra_repr(self) -> str:
        return f"num_heads={self.num_heads}, locality_strength={self.locality_strength}"


def _places(grid: tuple[int, int], like: Tensor) -> Tensor:
    """(N, 2): x and y of each token."""
    token = torch.arange(grid[0] * grid[1], device=like.device)
    return torch.stack([token % grid[1], token // grid[1]], 1).to(like.dtype)


def attend(
    module: Any, qk: Tensor, v: Tensor, grid: tuple[int, int] | None = None, scale: float | None = None
) -> Tensor:
    """The operator with positions, gate and dropout of ``module``: qk (B, N, 2, H, D), v (B, N, H, D)."""
    weights, bias = module.pos_proj.weight, module.pos_proj.bias
    if torch.is_grad_enabled():  # a gradient of 0: who counts on one for every parameter shall have it
        weights = torch.add(weights, bias[:, None], alpha=0)
    dropout_p = module.attn_drop.p if module.training else 0.0
    return gated_positional_attention(qk, v, weights, module.gating_param, grid, scale=scale, dropout_p=dropout_p)
