"""timm's HaloNet: blocks and their halo where they lie, relative positions without a bias of all pairs."""

from timm.layers.halo_attn import HaloAttn as TimmHaloAttn
from timm.layers.halo_attn import PosEmbedRel
from torch import Tensor, nn

from vitkern.dispatch import autocast, runs_kernel
from vitkern.interop.adapter import WAITS, Adapter, Fit
from vitkern.nn.halo_attention import attend
from vitkern.ops.bypass import plain


class HaloAttn(Adapter, TimmHaloAttn):
    """`timm.layers.halo_attn.HaloAttn`. With a stride, the original runs where no kernel does: in training it is as
    fast on a CPU."""

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        if not plain(module.pos_embed, PosEmbedRel):
            return Fit((), ("its relative positions are replaced or hooked",))
        strided = module.block_stride > 1
        return Fit(("halo_attention",), (WAITS,) if strided else (), strided)

    def forward(self, x: Tensor) -> Tensor:
        whole = not any(size % self.block_size for size in x.shape[2:])
        if not whole or not plain(self.pos_embed, PosEmbedRel):
            return super().forward(x)
        if self.block_stride > 1 and not runs_kernel("halo_attention", autocast(x), operator="local_attention"):
            return super().forward(x)
        readable = plain(self.q, nn.Conv2d) and plain(self.kv, nn.Conv2d)
        return self.pool(attend(self, x, readable=readable))
