"""timm's attention that multiplies out its scores: TNT's, CrossViT's, VOLO's class token's, Visformer's and SHViT's.
Where no kernel runs, the originals do."""

from typing import ClassVar

import torch
from timm.models.crossvit import CrossAttention as TimmCrossAttention
from timm.models.shvit import SHSA as TimmSHSA
from timm.models.tnt import Attention as TimmTntAttention
from timm.models.visformer import Attention as TimmVisAttention
from timm.models.volo import ClassAttention as TimmClassAttention
from torch import Tensor, nn

from vitkern.dispatch import autocast, runs_kernel
from vitkern.interop.adapter import WAITS, Adapter, Fit
from vitkern.interop.timm import WATCHED
from vitkern.ops.attention import attention
from vitkern.ops.bypass import plain


class Multiplier(Adapter):
    """Of a class whose ``forward`` multiplies queries and keys, and drops weights by ``attn_drop`` if it has one."""

    reads: ClassVar[dict[str, type]] = {}  # children that are read, not called, beside attn_drop

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not cls._is_plain(module):
            return WATCHED
        return Fit(("attention",), (WAITS,), True)

    @classmethod
    def _is_plain(cls, module: nn.Module) -> bool:
        children = {"attn_drop": nn.Dropout} | cls.reads
        held = {name: module._modules[name] for name in children if name in module._modules}
        return all(plain(child, children[name]) for name, child in held.items())

    def _runs(self, x: Tensor) -> bool:
        return self._is_plain(self) and runs_kernel("attention", autocast(x))

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, mask: Tensor | None = None,
        scale: float | None = None,
    ) -> Tensor:  # fmt: skip
        """`attention` of (B, H, N, D), with the module's scale and dropout."""
        dropped = self.attn_drop.p if self.training and "attn_drop" in self._modules else 0.0
        scale = self.scale if scale is None else scale
        return attention(q, k, v, bias=bias, mask=mask, scale=scale, dropout_p=dropped)


def heads(x: Tensor, count: int) -> Tensor:
    """(B, N, H D) -> (B, H, N, D)."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def planes(x: Tensor, count: int) -> Tensor:
    """(B, H D, h, w) -> (B, H, h w, D)."""
    return x.flatten(2).unflatten(1, (count, -1)).transpose(2, 3)


def image(x: Tensor, height: int, width: int) -> Tensor:
    """(B, H, h w, D) -> (B, H D, h, w)."""
    return x.transpose(2, 3).flatten(1, 2).unflatten(-1, (height, width))


class CrossAttention(Multiplier, TimmCrossAttention):
    """`timm.models.crossvit.CrossAttention`: the class token attends."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._runs(x):
            return super().forward(x)
        q, k, v = (heads(part, self.num_heads) for part in (self.wq(x[:, 0:1, ...]), self.wk(x), self.wv(x)))
        return self.proj_drop(self.proj(self._attend(q, k, v).transpose(1, 2).flatten(2)))


class ClassAttention(Multiplier, TimmClassAttention):
    """`timm.models.volo.ClassAttention`: the class token attends."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._runs(x):
            return super().forward(x)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        q = heads(self.q(x[:, :1, :]), self.num_heads)
        return self.proj_drop(self.proj(self._attend(q, k, v).transpose(1, 2).flatten(2)))


class TntAttention(Multiplier, TimmTntAttention):
    """`timm.models.tnt.Attention`."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._runs(x):
            return super().forward(x)
        q, k = self.qk(x).unflatten(-1, (2, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        out = self._attend(q, k, heads(self.v(x), self.num_heads))
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class VisAttention(Multiplier, TimmVisAttention):
    """`timm.models.visformer.Attention`, which by default multiplies its scores out."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._runs(x):
            return super().forward(x)
        qkv = self.qkv(x).flatten(2).unflatten(1, (3, self.num_heads, self.head_dim))
        q, k, v = qkv.permute(1, 0, 2, 4, 3).unbind(0)  # (B, H, N, D)
        return self.proj_drop(self.proj(image(self._attend(q, k, v), *x.shape[2:])))


class SHSA(Multiplier, TimmSHSA):
    """`timm.models.shvit.SHSA`: one head, of some of the channels."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._runs(x):
            return super().forward(x)
        attended, rest = x.split([self.pdim, self.dim - self.pdim], 1)
        qkv = self.qkv(self.pre_norm(attended)).split([self.qk_dim, self.qk_dim, self.pdim], 1)
        out = image(self._attend(*(planes(part, 1) for part in qkv)), *x.shape[2:])
        return self.proj(torch.cat([out, rest], 1))
