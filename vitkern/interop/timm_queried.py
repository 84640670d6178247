"""timm's attention whose queries multiply learnt positions: MViTv2's and BoTNet's. The module computes what these add
to the scores. See `vitkern.interop.timm_products`."""

from timm.layers.bottleneck_attn import BottleneckAttn as TimmBottleneckAttn
from timm.models.mvitv2 import MultiScaleAttention as TimmMultiScaleAttention
from timm.models.mvitv2 import cal_rel_pos_type, reshape_post_pool, reshape_pre_pool
from torch import Tensor, nn

from vitkern.interop.timm_products import Multiplier, image, planes


class MultiScaleAttention(Multiplier, TimmMultiScaleAttention):
    """`timm.models.mvitv2.MultiScaleAttention`: queries, keys and values are pooled first."""

    def forward(self, x: Tensor, feat_size: list[int]) -> tuple[Tensor, list[int]]:
        if not self._runs(x):
            return super().forward(x, feat_size)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, q_size = self._pooled(q, feat_size, self.pool_q, self.norm_q)
        k, k_size = self._pooled(k, feat_size, self.pool_k, self.norm_k)
        v, _ = self._pooled(v, feat_size, self.pool_v, self.norm_v)
        bias = None
        if self.rel_pos_type == "spatial":
            bias = q.new_zeros(*q.shape[:3], k.shape[2])
            bias = cal_rel_pos_type(bias, q, self.has_cls_token, q_size, k_size, self.rel_pos_h, self.rel_pos_w)
        out = self._attend(q, k, v, bias)
        out = out + q if self.residual_pooling else out
        return self.proj(out.transpose(1, 2).flatten(2)), q_size

    def _pooled(
        self, x: Tensor, size: list[int], pool: nn.Module | None, norm: nn.Module | None
    ) -> tuple[Tensor, list[int]]:
        """(B, H, N, D) of an image -> that of the pooled one, and its size."""
        if pool is not None:
            x, token = reshape_pre_pool(x, size, self.has_cls_token)
            x, size = reshape_post_pool(pool(x), self.num_heads, token)
        return (x if norm is None else norm(x)), size


class BottleneckAttn(Multiplier, TimmBottleneckAttn):
    """`timm.layers.bottleneck_attn.BottleneckAttn`."""

    def forward(self, x: Tensor) -> Tensor:
        size = x.shape[2:]
        if not self._runs(x) or size != (self.pos_embed.height, self.pos_embed.width):
            return super().forward(x)
        parts = self.qkv(x).split([self.dim_out_qk, self.dim_out_qk, self.dim_out_v], 1)
        q, k, v = (planes(part, self.num_heads) for part in parts)
        bias = self.pos_embed(q.flatten(0, 1)).unflatten(0, q.shape[:2])
        out = self._attend(q, k, v, bias * self.scale if self.scale_pos_embed else bias)
        return self.pool(image(out, *size))
