"""timm's attention that multiplies out its scores and adds positions to them: LeViT's, EfficientFormer's, GCViT's and
Swin V2 CR's. See `vitkern.interop.timm_products`."""

import math
from typing import ClassVar

import torch
from timm.layers.pos_embed_rel import RelPosBias
from timm.models.efficientformer import Attention as TimmFormerAttention
from timm.models.efficientformer_v2 import Attention2dDownsample as TimmAttention2dDownsample
from timm.models.efficientvit_msra import CascadedGroupAttention as TimmCascadedGroupAttention
from timm.models.gcvit import WindowAttentionGlobal as TimmWindowAttentionGlobal
from timm.models.levit import Attention as TimmLevitAttention
from timm.models.levit import AttentionDownsample as TimmAttentionDownsample
from timm.models.swin_transformer_v2_cr import WindowMultiHeadAttention as TimmWindowMultiHeadAttention
from torch import Tensor
from torch.nn import functional as F

from vitkern.interop.timm_products import Multiplier, heads, image, planes


class CascadedGroupAttention(Multiplier, TimmCascadedGroupAttention):
    """`timm.models.efficientvit_msra.CascadedGroupAttention`: each head sees what the one before it gave."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._runs(x):
            return super().forward(x)
        size, biases = x.shape[2:], self.get_attention_biases(x.device)
        given, results, out = x.chunk(len(self.qkvs), dim=1), [], None
        for part, qkv, dw, bias in zip(given, self.qkvs, self.dws, biases, strict=True):
            q, k, v = qkv(part if out is None else out + part).split([self.key_dim, self.key_dim, self.val_dim], 1)
            out = image(self._attend(*(planes(each, 1) for each in (dw(q), k, v)), bias), *size)
            results.append(out)
        return self.proj(torch.cat(results, 1))


class FormerAttention(Multiplier, TimmFormerAttention):
    """`timm.models.efficientformer.Attention`."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._runs(x):
            return super().forward(x)
        q, k, v = heads(self.qkv(x), self.num_heads).split([self.key_dim, self.key_dim, self.val_dim], -1)
        out = self._attend(q, k, v, bias=self.get_attention_biases(x.device))
        return self.proj(out.transpose(1, 2).flatten(2))


class Attention2dDownsample(Multiplier, TimmAttention2dDownsample):
    """`timm.models.efficientformer_v2.Attention2dDownsample`: queries of a quarter of the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._runs(x):
            return super().forward(x)
        values = self.v(x)
        q, k, v = (planes(part, self.num_heads) for part in (self.q(x), self.k(x), values))
        out = image(self._attend(q, k, v, bias=self.get_attention_biases(x.device)), *self.resolution2)
        return self.proj(self.act(out + self.v_local(values)))


class LevitAttention(Multiplier, TimmLevitAttention):
    """`timm.models.levit.Attention`, of tokens or of images."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._runs(x):
            return super().forward(x)
        qkv = (planes if self.use_conv else heads)(self.qkv(x), self.num_heads)
        q, k, v = qkv.split([self.key_dim, self.key_dim, self.val_dim], -1)
        out = self._attend(q, k, v, bias=self.get_attention_biases(x.device))
        return self.proj(image(out, *x.shape[2:]) if self.use_conv else out.transpose(1, 2).flatten(2))


class AttentionDownsample(Multiplier, TimmAttentionDownsample):
    """`timm.models.levit.AttentionDownsample`, of tokens or of images."""

    def forward(self, x: Tensor) -> Tensor:
        if not self._runs(x):
            return super().forward(x)
        split = planes if self.use_conv else heads
        k, v = split(self.kv(x), self.num_heads).split([self.key_dim, self.val_dim], -1)
        out = self._attend(split(self.q(x), self.num_heads), k, v, bias=self.get_attention_biases(x.device))
        if not self.use_conv:
            return self.proj(out.transpose(1, 2).flatten(2))
        return self.proj(image(out, *((size - 1) // self.stride + 1 for size in x.shape[2:])))


class WindowAttentionGlobal(Multiplier, TimmWindowAttentionGlobal):
    """`timm.models.gcvit.WindowAttentionGlobal`: the queries of an image's windows are their own, or the image's."""

    reads: ClassVar = {"rel_pos": RelPosBias}

    def forward(self, x: Tensor, q_global: Tensor | None = None) -> Tensor:
        shared = self.use_global and q_global is not None
        if not self._runs(x) or (shared and x.shape[-1] != q_global.shape[-1]):
            return super().forward(x, q_global)
        parts = self.qkv(x).unflatten(-1, (-1, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)
        if shared:  # images lie one after the other, each with all of its windows
            q = q_global.repeat_interleave(x.shape[0] // q_global.shape[0], dim=0)
            parts = (heads(q.reshape(x.shape), self.num_heads), *parts)
        out = self._attend(*parts, bias=self.rel_pos.get_bias())
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))


class WindowMultiHeadAttention(Multiplier, TimmWindowMultiHeadAttention):
    """`timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention`: cosines, times a factor for each head."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        if not self._runs(x) or (mask is not None and mask.requires_grad):
            return super().forward(x, mask)
        windows = x.shape[0]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        factor = self.logit_scale.view(1, -1, 1, 1).clamp(max=math.log(1.0 / 0.01)).exp()
        if mask is not None:  # (windows of an image, N, N)
            mask = mask.repeat(windows // mask.shape[0], 1, 1)[:, None]
        bias = self._relative_positional_encodings()
        out = self._attend(F.normalize(q, dim=-1) * factor, F.normalize(k, dim=-1), v, bias, mask, scale=1.0)
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))
