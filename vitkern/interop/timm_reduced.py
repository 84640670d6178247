"""timm's attention to spatially reduced keys, PVTv2's and Twins', and Twins' block."""

from timm.models.pvt_v2 import Attention as TimmAttention
from timm.models.twins import Block as TimmBlock
from timm.models.twins import GlobalSubSampleAttn as TimmGlobalSubSampleAttn
from torch import Tensor, nn

from vitkern.dispatch import autocast, runs_kernel
from vitkern.interop import fusion
from vitkern.interop.adapter import WAITS, Adapter, Fit
from vitkern.interop.timm import WATCHED, mlp_fit, mlp_of
from vitkern.nn.grid import as_image, as_tokens
from vitkern.nn.spatial_reduction_attention import attend
from vitkern.ops.bypass import plain


class Attention(Adapter, TimmAttention):
    """`timm.models.pvt_v2.Attention`, dropout included. The original runs where no kernel does: there PyTorch's own
    attention is what both call."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return _fit(module)

    def forward(self, x: Tensor, feat_size: list[int]) -> Tensor:
        if not _runs(self, x):
            return super().forward(x, feat_size)
        keys = x
        if self.sr is not None:
            image = as_image("Attention", x, (feat_size[0], feat_size[1]))
            keys = self.norm(as_tokens(self.sr(image if self.pool is None else self.pool(image))))
            keys = keys if self.act is None else self.act(keys)
        return attend(self, x, keys)


class GlobalSubSampleAttn(Adapter, TimmGlobalSubSampleAttn):
    """`timm.models.twins.GlobalSubSampleAttn`, dropout included; see `Attention`."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return _fit(module)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        if not _runs(self, x):
            return super().forward(x, size)
        keys = x
        if self.sr is not None:
            keys = self.norm(as_tokens(self.sr(as_image("GlobalSubSampleAttn", x, size))))
        return attend(self, x, keys)


class Block(Adapter, TimmBlock):
    """`timm.models.twins.Block`: attention as the module is, then norm, MLP and residual as one op."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*mlp_fit(module))

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        mlp = mlp_of(self)
        if not fusion.fits(mlp):
            return super().forward(x, size)
        x = x + self.drop_path1(self.attn(self.norm1(x), size))
        return fusion.run(x, mlp)


def _fit(module: nn.Module) -> Fit:
    if not plain(module.attn_drop, nn.Dropout):
        return WATCHED
    return Fit(("attention",), (WAITS,), True)


def _runs(module: nn.Module, x: Tensor) -> bool:
    return plain(module.attn_drop, nn.Dropout) and runs_kernel("attention", autocast(x))
