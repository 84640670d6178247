"""Attention within the windows of an image, or within its grids: MaxViT (arXiv 2204.01697), CoAtNet (2106.04803)."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.embed import pair
from vitkern.nn.heads import head_dim
from vitkern.ops.bypass import may_bypass
from vitkern.ops.local_attention import local_attention
from vitkern.ops.window_attention import projected_window_attention

PARTITIONS = ("window", "grid")
TABLES = ("bias", "bias_tf")


class RelativePositionBias(nn.Module):
    """A learnt bias for each offset between two tokens of a window, and each head.

    Args:
        window: (height, width) in tokens.
        num_heads: H.
        layout: "bias": ((2 h - 1) (2 w - 1), H) by the query's offset from the key, `timm.layers.RelPosBias`;
            "bias_tf": (H, 2 h - 1, 2 w - 1) by the key's offset from the query, `timm.layers.RelPosBiasTf`.
    """

    def __init__(self, window: tuple[int, int], num_heads: int, layout: str = "bias") -> None:
        super().__init__()
        self.window, self.layout = window, layout
        sides = tuple(2 * size - 1 for size in window)
        shape = (num_heads, *sides) if layout == "bias_tf" else (sides[0] * sides[1], num_heads)
        self.relative_position_bias_table = nn.Parameter(torch.empty(shape))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def by_key(self) -> Tensor:
        """(H, 2 h - 1, 2 w - 1), by the key's offset from the query."""
        table = self.relative_position_bias_table
        if self.layout == "bias_tf":
            return table
        return table.view(2 * self.window[0] - 1, 2 * self.window[1] - 1, -1).flip(0, 1).permute(2, 0, 1)

    def by_query(self) -> Tensor:
        """((2 h - 1) (2 w - 1), H), by the query's offset from the key."""
        table = self.relative_position_bias_table
        return table if self.layout == "bias" else table.flip(1, 2).flatten(1).t()


class PartitionAttention(nn.Module):
    """softmax(q k^T / sqrt(D) + B) v among the tokens of one part of an image, B a table of relative positions.

    (B, img_h, img_w, C) -> (B, img_h, img_w, out_dim). Windows are size_h x size_w neighbouring tokens. A grid is
    size_h x size_w tokens too, spread evenly over the image (arXiv 2204.01697, section 3.2). A window as large as the
    image is CoAtNet's attention. Parameters are named as in `timm.models.maxxvit.AttentionCl`; the 1 x 1 convolutions
    of its `Attention2d` load as they are.

    Args:
        dim: channels C.
        num_heads: H, divides ``attn_dim``.
        size: tokens of a part, one number or (height, width); it divides the image.
        partition: "window" or "grid".
        rel_pos: layout of the table, "bias" or "bias_tf" (see `RelativePositionBias`); None: no table.
        head_first: the channels of qkv are split as (H, 3, D), not (3, H, D).
        attn_dim, out_dim: channels of q, k and v, and of the result; C by default.
        bias: the projections have one.
        proj_drop: dropout after the output projection, in training.

    Raises:
        ValueError: arguments that do not fit one another, or an image that ``size`` does not divide.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        size: int | tuple[int, int],
        partition: str = "window",
        *,
        rel_pos: str | None = "bias",
        head_first: bool = True,
        attn_dim: int | None = None,
        out_dim: int | None = None,
        bias: bool = True,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        attn_dim = attn_dim or dim
        head_dim("PartitionAttention", attn_dim, num_heads, "attn_dim")
        self.num_heads, self.size, self.partition, self.head_first = num_heads, pair(size), partition, head_first
        if partition not in PARTITIONS or rel_pos not in (*TABLES, None) or min(self.size) < 1:
            raise ValueError(
                f"PartitionAttention: no such attention: got partition={partition!r}, rel_pos={rel_pos!r}, "
                f"size={self.size}; expected one of {PARTITIONS}, one of {(*TABLES, None)}, and sizes above 0."
            )
        self.qkv = nn.Linear(dim, 3 * attn_dim, bias=bias)
        self.rel_pos = RelativePositionBias(self.size, num_heads, rel_pos) if rel_pos else None
        self.proj = nn.Linear(attn_dim, out_dim or dim, bias=bias)
        self.proj_drop = nn.Dropout(proj_drop)
        self.register_load_state_dict_pre_hook(_take_convolutions)

    def forward(self, x: Tensor) -> Tensor:
        if any(length % part for length, part in zip(x.shape[1:3], self.size, strict=True)):
            raise ValueError(
                f"PartitionAttention: the parts do not divide the image: got image {tuple(x.shape[1:3])}, size "
                f"{self.size}; expected multiples. Resize or pad the image."
            )
        heads, parts = self.num_heads, self.rel_pos
        if self.partition == "window":
            table = None if parts is None else parts.by_query()
            out = projected_window_attention(x, self._project, num_heads=heads, window=self.size, table=table)
        else:
            steps = (max(x.shape[1] // self.size[0], 1), max(x.shape[2] // self.size[1], 1))
            table = None if parts is None else parts.by_key()
            out = local_attention(self._project(x), num_heads=heads, block=self.size, dilation=steps, table=table)
        return self.proj_drop(self.proj(out))

    def _project(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., 3 * attn_dim), the channels split as (3, H, D)."""
        if not self.head_first:
            return self.qkv(x)
        return project_head_first(x, self.qkv, self.num_heads, readable=may_bypass(self.qkv, nn.Linear))

    def extra_repr(self) -> str:
        names = ("num_heads", "size", "partition", "head_first")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def project_head_first(x: Tensor, qkv: nn.Linear, num_heads: int, *, readable: bool) -> Tensor:
    """``qkv(x)``, whose channels are split as (H, 3, D), with them split as (3, H, D).

    ``readable``: reading the weights of ``qkv`` is the same as calling it; then they are sorted, and not the result.
    """
    split = (num_heads, 3, -1)
    if not readable:
        return qkv(x).unflatten(-1, split).transpose(-3, -2).flatten(-3)
    weight = qkv.weight.unflatten(0, split).transpose(0, 1).flatten(0, 2)
    bias = None if qkv.bias is None else qkv.bias.unflatten(0, split).transpose(0, 1).flatten()
    return F.linear(x, weight, bias)


def _take_convolutions(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
    """A 1 x 1 convolution's weight (out, in, 1, 1) is a linear layer's."""
    for name in ("qkv", "proj"):
        weight = state_dict.get(f"{prefix}{name}.weight")
        if weight is not None and weight.shape[2:] == (1, 1):
            state_dict[f"{prefix}{name}.weight"] = weight.flatten(1)
