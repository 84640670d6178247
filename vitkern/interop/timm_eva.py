"""timm's EVA blocks, DINOv3's, Qwen3's and the RoPE ViTs' among them: attention as the module is, then norm, MLP, gated
or not, and residual as one op."""

from timm.models.eva import EvaBlock as TimmEvaBlock
from timm.models.eva import EvaBlockPostNorm as TimmEvaBlockPostNorm
from torch import Tensor, nn

from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.timm import parts_of


class EvaBlock(Adapter, TimmEvaBlock):
    """`timm.models.eva.EvaBlock`."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*fusion.fit_of(cls._parts(module), module.mlp))

    @staticmethod
    def _parts(block: nn.Module) -> fusion.Mlp | None:
        return parts_of(block.norm2, block.mlp, block.drop_path2, block.gamma_2)

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        mlp = self._parts(self)
        if not fusion.fits(mlp):
            return super().forward(x, *args, **kwargs)
        branch = self.attn(self.norm1(x), *args, **kwargs)
        x = x + self.drop_path1(branch if self.gamma_1 is None else self.gamma_1 * branch)
        return fusion.run(x, mlp)


class EvaBlockPostNorm(Adapter, TimmEvaBlockPostNorm):
    """`timm.models.eva.EvaBlockPostNorm`: the norm stands behind the MLP."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        ops, reasons = fusion.fit_of(cls._parts(module), module.mlp)
        if ops == ("layernorm_glu",):
            return Fit((), ("MLP not fused: its norm stands behind a gated MLP",))
        return Fit(ops, reasons)

    @staticmethod
    def _parts(block: nn.Module) -> fusion.Mlp | None:
        return parts_of(block.norm2, block.mlp, block.drop_path2)

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        mlp = self._parts(self)
        if not fusion.fits(mlp) or mlp.gate:
            return super().forward(x, *args, **kwargs)
        x = x + self.drop_path1(self.norm1(self.attn(x, *args, **kwargs)))
        return fusion.run(x, mlp, post_norm=True)
