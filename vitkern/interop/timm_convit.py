"""timm's ConViT."""

from timm.models.convit import Block as TimmBlock
from torch import Tensor, nn

from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.timm import fit_of, parts_of


class Block(Adapter, TimmBlock):
    """`timm.models.convit.Block`: attention as the module is, then norm, MLP and residual as one op."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*fit_of(cls._parts(module), module.mlp))

    @staticmethod
    def _parts(block: nn.Module) -> fusion.Mlp | None:
        return parts_of(block.norm2, block.mlp, block.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        mlp = self._parts(self)
        if mlp is None or fusion.obstacle(mlp) is not None:
            return super().forward(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return fusion.run(x, mlp)
