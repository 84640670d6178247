"""HaloNet (Vaswani et al. 2021, arXiv 2103.12731), and ResNets with its attention in places. Named as in timm."""

from collections.abc import Sequence

from vitkern.models.registry import register
from vitkern.models.residual import Bottleneck
from vitkern.models.staged import Stage, StagedNet, Stem
from vitkern.nn.halo_attention import HaloAttention
from vitkern.nn.layers import drop_path_rates

PAPER = "Scaling Local Self-Attention for Parameter Efficient Visual Backbones, Vaswani et al. 2021, arXiv 2103.12731"


class HaloNet(StagedNet):
    """Four stages of bottlenecks on grids of 1/4, 1/8, 1/16, 1/32 of the image, a halo attention within each.

    Args:
        img_size: pixels, one number or (height, width), multiples of 32 times the block.
        in_chans: channels of the image.
        num_classes: logits; 0 gives the pooled features.
        global_pool: "avg", "max", "avgmax", or "" for logits of every pixel of the map.
        depths: blocks of each stage.
        mid_chs: channels of queries and keys in each stage.
        value_ratio: channels of values to those, r_v of table 1. out_ratio: channels of a block's result to them, r_b.
        num_heads: H of each stage.
        attends: which blocks of each stage have an attention, by their numbers, where the others have a 3 x 3
            convolution; None: all.
        block_size, halo_size: of the attention; one number, or one per stage.
        stem_chs: channels of the convolutions before the first stage. stem_kernel: their size.
        final_chs: channels of a 1 x 1 convolution before the pooling, d_f of table 1; None: there is none.
        act: "relu" or "silu".
        drop_rate: dropout before the head. drop_path_rate: DropPath of the last block; it grows linearly from 0.

    Raises:
        ValueError: heads that do not divide the channels, or a halo that is larger than its block.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 256,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (3, 3, 10, 3),
        mid_chs: Sequence[int] = (64, 128, 256, 512),
        value_ratio: float = 1.0,
        out_ratio: float = 1.0,
        num_heads: Sequence[int] = (8, 8, 8, 8),
        attends: Sequence[Sequence[int]] | None = None,
        block_size: int = 8,
        halo_size: int | Sequence[int] = 3,
        stem_chs: Sequence[int] = (64,),
        stem_kernel: int = 7,
        final_chs: int | None = None,
        act: str = "relu",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        halos = [halo_size] * len(depths) if isinstance(halo_size, int) else halo_size
        stages, before = [], stem_chs[-1]
        for index, (depth, middle, heads, halo) in enumerate(zip(depths, mid_chs, num_heads, halos, strict=True)):
            values, after, stage = int(middle * value_ratio), int(middle * out_ratio), Stage()
            for number in range(depth):
                stride = 2 if index and not number else 1
                attention = None
                if attends is None or number in attends[index]:
                    attention = HaloAttention(
                        middle, values, stride, heads, middle // heads, block_size=block_size, halo_size=halo
                    )
                wide = None if attention is None else values
                stage.append(
                    Bottleneck(
                        before, middle, after, stride,
                        self_attn=attention, attn_chs=wide, act=act, drop_path=next(rates),
                    )
                )  # fmt: skip
                before = after
            stages.append((stage, after, 4 * 2**index))
        super().__init__(
            Stem(in_chans, stem_chs, stem_kernel, act), stages,
            img_size=img_size, in_chans=in_chans, num_classes=num_classes, global_pool=global_pool,
            drop_rate=drop_rate, final_chs=final_chs, act=act,
        )  # fmt: skip
        self.multiple = 32 * block_size

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {name for name, _ in self.named_parameters() if "pos_embed" in name}


# Table 1: block, halo, r_v, r_b, blocks of the third stage, d_f, pixels of the image. Eight heads, as timm's H1 has:
# the values of the last stage of H5, H6 and H7 have more than the kernel's 128 channels a head, and run in PyTorch.
FAMILY = {
    "h0": (8, 3, 1.0, 0.5, 7, None, 256),
    "h1": (8, 3, 1.0, 1.0, 10, None, 256),
    "h2": (8, 3, 1.0, 1.25, 11, None, 256),
    "h3": (10, 3, 1.0, 1.5, 12, 1024, 320),
    "h4": (12, 2, 1.0, 3.0, 12, 1280, 384),
    "h5": (14, 2, 2.5, 2.0, 23, 1536, 448),
    "h6": (8, 4, 3.0, 2.75, 24, 1536, 512),
    "h7": (10, 3, 4.0, 3.5, 26, 2048, 640),
}

for _name, (_block, _halo, _values, _out, _third, _final, _pixels) in FAMILY.items():
    _arguments = dict(
        img_size=_pixels, depths=(3, 3, _third, 3), value_ratio=_values, out_ratio=_out, block_size=_block,
        halo_size=_halo, final_chs=_final,
    )  # fmt: skip
    register(f"halonet_{_name}", HaloNet, PAPER, **_arguments)

_RESNET = dict(out_ratio=4.0, stem_chs=(24, 32, 64), stem_kernel=3)
register("halonet26t", HaloNet, PAPER, depths=(2, 2, 2, 2), attends=((), (), (1,), (0, 1)), halo_size=2, **_RESNET)
register(
    "halonet50ts", HaloNet, PAPER, depths=(3, 4, 6, 3), attends=((), (3,), (1, 3, 5), (1,)), num_heads=(8, 4, 8, 8),
    act="silu", **_RESNET,
)  # fmt: skip
