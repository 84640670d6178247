"""HaloNet's attention as a module (Vaswani et al., arXiv 2103.12731)."""

from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.dispatch import why_not
from vitkern.nn.heads import head_dim
from vitkern.nn.layers import unhooked
from vitkern.ops.halo_attention import halo_attention, halo_attention_qkvpacked


class RelativePositions(nn.Module):
    """Holds the vectors of the row and column offsets, (2 E - 1, D) each; named as in timm's `PosEmbedRel`."""

    def __init__(self, extent: int, head_dim: int) -> None:
        super().__init__()
        std = head_dim**-0.5
        self.height_rel, self.width_rel = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(2 * extent - 1, head_dim), std=std)) for _ in range(2)
        )


class HaloAttention(nn.Module):
    """Attention of each block of pixels to itself and a halo around it; named as in `timm.layers.HaloAttn`.

    (B, C, img_h, img_w) -> (B, dim_out, img_h / stride, img_w / stride), as a convolution, which it stands for.
    ``block_size`` divides the height and the width.

    Args:
        dim: channels C.
        dim_out: channels of the result; C by default.
        stride: 1 or 2. With 2, every other query is kept, or with ``avg_down`` or an odd block the mean of 2 x 2.
        num_heads: H, divides ``dim_out``.
        dim_head: channels of a query; by default ``qk_ratio`` * dim_out, rounded to a multiple of 8, over H.
        block_size, halo_size: in tokens; halo <= block.
        qk_ratio: of the channels of queries and keys to ``dim_out``.
        qkv_bias: the projections have a bias.
        avg_down: take means, see ``stride``.
        scale_pos_embed: the relative logits are scaled by dim_head ** -0.5, as q k^T is.

    Raises:
        ValueError: heads do not divide the channels or get none, or block, halo or stride do not fit one another.
    """

    def __init__(
        self,
        dim: int,
        dim_out: int | None = None,
        stride: int = 1,
        num_heads: int = 8,
        dim_head: int | None = None,
        block_size: int = 8,
        halo_size: int = 3,
        qk_ratio: float = 1.0,
        qkv_bias: bool = False,
        avg_down: bool = False,
        scale_pos_embed: bool = False,
    ) -> None:
        super().__init__()
        dim_out = dim_out or dim
        self.dim_head_v = head_dim("HaloAttention", dim_out, num_heads, "dim_out")
        if not 0 <= halo_size <= block_size or block_size <= 0:
            raise ValueError(
                f"HaloAttention: the halo does not fit the block: got block_size={block_size}, halo_size={halo_size}; "
                "expected 0 <= halo_size <= block_size. Take larger blocks."
            )
        if stride not in (1, 2):
            raise ValueError(f"HaloAttention: stride is not usable: got {stride}; expected 1 or 2.")
        self.num_heads, self.block_size, self.halo_size = num_heads, block_size, halo_size
        self.dim_head_qk = dim_head or _multiple_of_8(dim_out * qk_ratio) // num_heads
        if self.dim_head_qk <= 0:
            raise ValueError(
                f"HaloAttention: queries have no channels: got dim_out={dim_out}, qk_ratio={qk_ratio}, dim_head="
                f"{dim_head}, num_heads={num_heads}; expected at least one for each head. Pass dim_head."
            )
        self.scale, self.scale_pos_embed = self.dim_head_qk**-0.5, scale_pos_embed
        pooled = stride == 2 and (avg_down or block_size % 2 == 1)
        self.block_stride = 1 if pooled else stride
        dim_qk = num_heads * self.dim_head_qk
        self.q = nn.Conv2d(dim, dim_qk, 1, stride=self.block_stride, bias=qkv_bias)
        self.kv = nn.Conv2d(dim, dim_qk + dim_out, 1, bias=qkv_bias)
        for linear in (self.q, self.kv):
            nn.init.trunc_normal_(linear.weight, std=dim**-0.5)
        self.pos_embed = RelativePositions(block_size + 2 * halo_size, self.dim_head_qk)
        self.pool = nn.AvgPool2d(2, 2) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        readable = unhooked(self.q, nn.Conv2d) and unhooked(self.kv, nn.Conv2d)
        return self.pool(attend(self, x, readable=readable))

    def extra_repr(self) -> str:
        names = ("num_heads", "dim_head_qk", "dim_head_v", "block_size", "halo_size", "block_stride")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)


def attend(attn: HaloAttention, x: Tensor, *, readable: bool) -> Tensor:
    """Projections and attention of ``attn``, a `HaloAttention` or timm's `HaloAttn`, without what pools the result.

    ``readable``: reading the weights of the projections is the same as calling them; then all may be one product.
    """
    height_rel, width_rel = attn.pos_embed.height_rel, attn.pos_embed.width_rel
    block, halo, scale = attn.block_size, attn.halo_size, attn.scale
    rel_scale = scale if attn.scale_pos_embed else 1.0
    heads = Heads(attn.num_heads, attn.dim_head_qk, attn.dim_head_v)
    if attn.block_stride > 1 or (heads.dim_qk != heads.dim_v and why_not([x])):  # fill up for a kernel alone
        q, k, v = heads.split(attn.q(x).permute(0, 2, 3, 1), attn.kv(x).permute(0, 2, 3, 1), 3)
        out = halo_attention(q, k, v, height_rel, width_rel, block=block, halo=halo, scale=scale, rel_scale=rel_scale)
        return _laid_as(x, out.flatten(3))
    biases = [conv.bias for conv in (attn.q, attn.kv) if conv.bias is not None]
    few = x.shape[0] * x.shape[2] * x.shape[3] <= x.shape[1]  # tokens: packing the weights takes longer
    if readable and len(biases) != 1 and not few:
        weight = heads.packed(attn.q.weight.flatten(1), attn.kv.weight.flatten(1), 0)  # (3 * H * D, C)
        bias = heads.packed(biases[0], biases[1], 0) if biases else None
        qkv = F.linear(x.permute(0, 2, 3, 1).contiguous(), weight, bias)  # (B, img_h, img_w, 3 * H * D)
    else:
        qkv = heads.packed(attn.q(x).permute(0, 2, 3, 1), attn.kv(x).permute(0, 2, 3, 1), 3)
    out = halo_attention_qkvpacked(
        qkv, heads.filled(height_rel, 1), heads.filled(width_rel, 1),
        num_heads=heads.number, block=block, halo=halo, scale=scale, rel_scale=rel_scale,
    )  # fmt: skip
    return _laid_as(x, out.unflatten(3, (heads.number, -1))[..., : heads.dim_v].flatten(3))


def _laid_as(x: Tensor, out: Tensor) -> Tensor:
    """(B, img_h, img_w, C) -> (B, C, img_h, img_w), in memory as ``x`` is: the convolutions that follow expect it."""
    out = out.permute(0, 3, 1, 2)
    return out if x.is_contiguous(memory_format=torch.channels_last) else out.contiguous()


class Heads(NamedTuple):
    """Channels of queries and keys, and of values, in each of ``number`` heads."""

    number: int
    dim_qk: int
    dim_v: int

    def split(self, q: Tensor, kv: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor]:
        """H * Dqk and H * (Dqk + Dv) channels along ``dim`` -> q, k and v, with (H, Dqk) or (H, Dv) in their place."""
        q, kv = (part.unflatten(dim, (self.number, -1)) for part in (q, kv))
        return q, *kv.split([self.dim_qk, self.dim_v], dim + 1)

    def packed(self, q: Tensor, kv: Tensor, dim: int) -> Tensor:
        """As `split` takes them -> 3 * H * D along ``dim``."""
        parts = [self.filled(part, dim + 1) for part in self.split(q, kv, dim)]
        return torch.stack(parts, dim).flatten(dim, dim + 2)

    def filled(self, part: Tensor, dim: int) -> Tensor:
        """Channels of a head along ``dim``, and zeros up to D, the larger of Dqk and Dv: they change neither q k^T nor
        the channels of the result that are kept."""
        missing = list(part.shape)
        missing[dim] = max(self.dim_qk, self.dim_v) - part.shape[dim]
        return torch.cat([part, part.new_zeros(missing)], dim) if missing[dim] else part


def _multiple_of_8(channels: float) -> int:
    """The multiple of 8 nearest to ``channels``, not below 8 and not below nine tenths of it, as timm rounds."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest
