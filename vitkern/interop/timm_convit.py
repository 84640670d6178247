"""timm's ConViT: attention by content and position without all weights in memory, and the MLP as one op."""

import math

from timm.models.convit import GPSA as TimmGPSA
from timm.models.convit import MHSA as TimmMHSA
from timm.models.convit import Block as TimmBlock
from torch import Tensor, nn

from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.timm import WATCHED, parts_of
from vitkern.nn.gated_positional_attention import attend
from vitkern.ops.attention import attention_qkvpacked
from vitkern.ops.bypass import plain

_WATCHED = Fit((), ("attn_drop or pos_proj is hooked or replaced, and the op holds no weights to give it",))


class GPSA(Adapter, TimmGPSA):
    """`timm.models.convit.GPSA`, attention dropout included; the original for tokens that are no square. It keeps its
    relative indices as they are: those of `get_attention_map` follow the last image that the original saw."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(("gated_positional_attention",)) if _is_plain(module) else _WATCHED

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.shape[1]
        if not _is_plain(self) or math.isqrt(tokens) ** 2 != tokens:
            return super().forward(x)
        qk = self.qk(x).unflatten(-1, (2, self.num_heads, -1))  # (B, N, 2, H, D)
        out = attend(self, qk, self.v(x).unflatten(-1, (self.num_heads, -1)), scale=self.scale)
        return self.proj_drop(self.proj(out.flatten(2)))


class MHSA(Adapter, TimmMHSA):
    """`timm.models.convit.MHSA`, attention dropout included."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(("attention",)) if plain(module.attn_drop, nn.Dropout) else WATCHED

    def forward(self, x: Tensor) -> Tensor:
        if not plain(self.attn_drop, nn.Dropout):
            return super().forward(x)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, D)
        out = attention_qkvpacked(qkv, scale=self.scale, dropout_p=self.attn_drop.p if self.training else 0.0)
        return self.proj_drop(self.proj(out.flatten(2)))


def _is_plain(module: nn.Module) -> bool:
    """What makes logits of positions, and drops weights, may be read."""
    return plain(module.attn_drop, nn.Dropout) and plain(module.pos_proj, nn.Linear)


class Block(Adapter, TimmBlock):
    """`timm.models.convit.Block`: attention as the module is, then norm, MLP and residual as one op."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*fusion.fit_of(cls._parts(module), module.mlp))

    @staticmethod
    def _parts(block: nn.Module) -> fusion.Mlp | None:
        return parts_of(block.norm2, block.mlp, block.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        mlp = self._parts(self)
        if not fusion.fits(mlp):
            return super().forward(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return fusion.run(x, mlp)
