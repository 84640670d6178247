"""torchvision's Swin and Swin V2, which pad and then roll.

Their attention reads its projections instead of calling them, so only plain ones are taken over.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import swin_transformer as swin
from torchvision.ops import StochasticDepth

from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.torchvision import mlp_fit, mlp_of
from vitkern.ops.bypass import plain
from vitkern.ops.window_attention import projected_window_attention

fusion.DROP_PATHS.append(StochasticDepth)


class _ShiftedWindows(Adapter):
    """What both versions of the attention share."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not cls.is_open(module):
            return Fit((), ("qkv or proj is no plain nn.Linear, and torchvision's attention reads their weights",))
        if module.attention_dropout > 0.0:
            return Fit(
                ("window_attention",),
                ("attention dropout is active in training, and windows have none: the original runs then",),
            )
        return Fit(("window_attention",))

    @staticmethod
    def is_open(module: nn.Module) -> bool:
        """Whether calling the projections is what the original does, which reads their weights."""
        return plain(module.qkv, nn.Linear) and plain(module.proj, nn.Linear)

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_open(self) or (self.training and self.attention_dropout > 0.0):
            return super().forward(x)
        out = projected_window_attention(
            x,
            self.project,
            num_heads=self.num_heads,
            window=self.window_size,
            shift=[self._shift(axis, size) for axis, size in enumerate(x.shape[1:3])],
            wrap="padded",
            **self.scores(),
        )
        return F.dropout(self.proj(out), p=self.dropout, training=self.training)

    def _shift(self, axis: int, size: int) -> int:
        """No shift along an axis that one window covers."""
        return 0 if self.window_size[axis] >= size else self.shift_size[axis]


class ShiftedWindowAttention(_ShiftedWindows, swin.ShiftedWindowAttention):
    """`torchvision.models.swin_transformer.ShiftedWindowAttention`."""

    def project(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def scores(self) -> dict[str, Tensor]:
        return {"table": self.relative_position_bias_table}


class ShiftedWindowAttentionV2(_ShiftedWindows, swin.ShiftedWindowAttentionV2):
    """`torchvision.models.swin_transformer.ShiftedWindowAttentionV2`: cosine scores, no bias of the keys."""

    def project(self, x: Tensor) -> Tensor:
        bias = self.qkv.bias
        if bias is None:
            return self.qkv(x)
        bias = bias.clone()
        length = bias.numel() // 3
        bias[length : 2 * length].zero_()
        return F.linear(x, self.qkv.weight, bias)

    def scores(self) -> dict[str, Tensor]:
        bias = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        return {"table": 16 * torch.sigmoid(bias), "logit_scale": self.logit_scale}


class SwinTransformerBlock(Adapter, swin.SwinTransformerBlock):
    """`torchvision.models.swin_transformer.SwinTransformerBlock`: attention as it is, then the MLP as one op."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*mlp_fit(module.norm2, module.mlp, module.stochastic_depth))

    def forward(self, x: Tensor) -> Tensor:
        mlp = mlp_of(self.norm2, self.mlp, self.stochastic_depth)
        if mlp is None or fusion.obstacle(mlp) is not None:
            return super().forward(x)
        return fusion.run(x + self.stochastic_depth(self.attn(self.norm1(x))), mlp)


class SwinTransformerBlockV2(Adapter, swin.SwinTransformerBlockV2):
    """`torchvision.models.swin_transformer.SwinTransformerBlockV2`, with its norms after the branches."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*mlp_fit(module.norm2, module.mlp, module.stochastic_depth))

    def forward(self, x: Tensor) -> Tensor:
        mlp = mlp_of(self.norm2, self.mlp, self.stochastic_depth)
        if mlp is None or fusion.obstacle(mlp) is not None:
            return super().forward(x)
        return fusion.run(x + self.stochastic_depth(self.norm1(self.attn(x))), mlp, post_norm=True)
