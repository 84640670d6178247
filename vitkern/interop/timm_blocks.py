"""timm's blocks that differ from ViT's before their MLP: that half runs as it is, then norm, MLP and residual as one
op."""

from timm.models.cait import LayerScaleBlock as TimmLayerScaleBlock
from timm.models.davit import ChannelBlock as TimmChannelBlock
from timm.models.mlp_mixer import MixerBlock as TimmMixerBlock
from timm.models.xcit import XCABlock as TimmXCABlock
from torch import Tensor, nn

from vitkern.interop import fusion
from vitkern.interop.adapter import Adapter, Fit
from vitkern.interop.timm import mlp_fit, mlp_of, parts_of


class LayerScaleBlock(Adapter, TimmLayerScaleBlock):
    """`timm.models.cait.LayerScaleBlock`."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*fusion.fit_of(cls._parts(module), module.mlp))

    @staticmethod
    def _parts(block: nn.Module) -> fusion.Mlp | None:
        return parts_of(block.norm2, block.mlp, block.drop_path, block.gamma_2)

    def forward(self, x: Tensor) -> Tensor:
        mlp = self._parts(self)
        if not fusion.fits(mlp):
            return super().forward(x)
        x = x + self.drop_path(self.gamma_1 * self.attn(self.norm1(x)))
        return fusion.run(x, mlp)


class MixerBlock(Adapter, TimmMixerBlock):
    """`timm.models.mlp_mixer.MixerBlock`: its MLP between tokens, and that between channels."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        tokens = fusion.fit_of(cls._tokens(module), module.mlp_tokens)
        channels = fusion.fit_of(cls._channels(module), module.mlp_channels)
        mixes = ("token_mixing",) if tokens[0] else ()
        return Fit((*mixes, *channels[0]), tuple(dict.fromkeys(tokens[1] + channels[1])))

    @staticmethod
    def _tokens(block: nn.Module) -> fusion.Mlp | None:
        parts = parts_of(block.norm1, block.mlp_tokens, block.drop_path)
        return None if parts is None or parts.gate else parts

    @staticmethod
    def _channels(block: nn.Module) -> fusion.Mlp | None:
        return parts_of(block.norm2, block.mlp_channels, block.drop_path)

    def forward(self, x: Tensor) -> Tensor:
        tokens, channels = self._tokens(self), self._channels(self)
        if not fusion.fits(tokens) and not fusion.fits(channels):
            return super().forward(x)
        if fusion.fits(tokens):
            x = fusion.run_over_tokens(x, tokens)
        else:
            x = x + self.drop_path(self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2))
        if fusion.fits(channels):
            return fusion.run(x, channels)
        return x + self.drop_path(self.mlp_channels(self.norm2(x)))


class XCABlock(Adapter, TimmXCABlock):
    """`timm.models.xcit.XCABlock`."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        return Fit(*fusion.fit_of(cls._parts(module), module.mlp))

    @staticmethod
    def _parts(block: nn.Module) -> fusion.Mlp | None:
        return parts_of(block.norm2, block.mlp, block.drop_path2, block.gamma2)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        mlp = self._parts(self)
        if not fusion.fits(mlp):
            return super().forward(x, H, W)
        x = x + self.drop_path1(self.gamma1 * self.attn(self.norm1(x)))
        x = x + self.drop_path3(self.gamma3 * self.local_mp(self.norm3(x), H, W))
        return fusion.run(x, mlp)


class ChannelBlock(Adapter, TimmChannelBlock):
    """`timm.models.davit.ChannelBlock`."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if module.mlp is None:
            return Fit((), ("it has no MLP",))
        return Fit(*mlp_fit(module))

    def forward(self, x: Tensor) -> Tensor:
        mlp = None if self.mlp is None else mlp_of(self)
        if not fusion.fits(mlp):
            return super().forward(x)
        shape = x.shape
        x = self.cpe1(x).flatten(2).transpose(1, 2)  # (B, N, C)
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        x = self.cpe2(x.transpose(1, 2).view(shape)).flatten(2).transpose(1, 2)
        return fusion.run(x, mlp).transpose(1, 2).view(shape)
