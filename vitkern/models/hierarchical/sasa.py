"""Stand-alone self-attention ResNets (Ramachandran et al. 2019, arXiv 1906.05909): no spatial convolution is left."""

from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.conv_norm import BatchNormAct
from vitkern.models.registry import register
from vitkern.models.residual import Bottleneck
from vitkern.models.staged import Stage, StagedNet, Stem
from vitkern.nn.heads import head_dim
from vitkern.nn.layers import drop_path_rates
from vitkern.nn.standalone_attention import StandaloneAttention

PAPER = "Stand-Alone Self-Attention in Vision Models, Ramachandran et al. 2019, arXiv 1906.05909"


class SpatialAttention(StandaloneAttention):
    """`StandaloneAttention` as a convolution of stride 1 or 2: maps (B, C, h, w) in, and out (B, C, ceil(h / stride),
    ceil(w / stride)); a stride of 2 takes means of 2 x 2 pixels (arXiv 1906.05909, section 4.1)."""

    def __init__(self, dim: int, stride: int, num_heads: int, kernel_size: int) -> None:
        super().__init__(dim, num_heads=num_heads, kernel_size=kernel_size)
        self.pool = nn.AvgPool2d(2, 2, ceil_mode=True) if stride == 2 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


class AttentionStem(nn.Module):
    """Attention over the 4 x 4 pixels around each, and the largest of 4 x 4 results (arXiv 1906.05909, section 3.3).

    sum_ab softmax_ab(q . k_ab) v_ab, where a pixel's value depends on its place in the window: v_ab = (sum_m p_abm
    W_m) x_ab, p_abm = softmax_m((row_a + column_b) . nu_m). Beyond the image pixels are zero and stay in the softmax.

    Args:
        in_chans: channels of the image. dim: channels C of the result. num_heads: H, divides C.
        kernel_size: pixels of the window, of which (kernel_size - 1) // 2 are above and left of the query.
        mixtures: number of W_m.
    """

    def __init__(
        self, in_chans: int, dim: int, num_heads: int = 8, kernel_size: int = 4, mixtures: int = 4, embed_dim: int = 64
    ) -> None:
        super().__init__()
        size = head_dim("AttentionStem", dim, num_heads)
        self.kernel_size = kernel_size
        std = in_chans**-0.5
        self.query, self.key = (
            nn.Parameter(nn.init.normal_(torch.empty(num_heads, size, in_chans), std=std)) for _ in range(2)
        )
        self.value = nn.Parameter(nn.init.normal_(torch.empty(mixtures, num_heads, size, in_chans), std=std))
        self.row_embed, self.column_embed, self.mixture_embed = (
            nn.Parameter(nn.init.normal_(torch.empty(count, embed_dim), std=embed_dim**-0.5))
            for count in (kernel_size, kernel_size, mixtures)
        )
        self.norm = BatchNormAct(dim)
        self.pool = nn.MaxPool2d(4, 4, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, height, width) -> (B, C, ceil(height / 4), ceil(width / 4))."""
        size = x.shape[2:]
        before = (self.kernel_size - 1) // 2
        after = self.kernel_size - 1 - before
        seen = F.unfold(F.pad(x, (before, after, before, after)), self.kernel_size)
        seen = seen.unflatten(1, (x.shape[1], -1))  # (B, in_chans, places, N)
        asked = torch.einsum("hdc,hde,bcn->bhen", self.query, self.key, x.flatten(2))  # q W_K: in_chans numbers a head
        weights = torch.einsum("bhen,bepn->bhpn", asked, seen).softmax(2)
        places = (self.row_embed[:, None] + self.column_embed).flatten(0, 1)
        mixture = (places @ self.mixture_embed.T).softmax(1)  # (places, mixtures)
        mixed = torch.einsum("pm,mhdc->hdcp", mixture, self.value)
        found = torch.einsum("bhpn,bcpn->bhcpn", weights, seen).flatten(2, 3)
        out = mixed.flatten(2) @ found  # (B, H, D, N)
        return self.pool(self.norm(out.flatten(1, 2).unflatten(2, size)))


class SasaResNet(StagedNet):
    """A ResNet of bottlenecks whose 3 x 3 convolutions are attentions over the pixels around each.

    Args:
        img_size: pixels, one number or (height, width); it takes any.
        in_chans: channels of the image.
        num_classes: logits; 0 gives the pooled features.
        global_pool: "avg", "max", "avgmax", or "" for logits of every pixel of the map.
        depths: blocks of each stage. mid_chs: channels of the attentions; a block gives four times as many.
        num_heads: H. kernel_size: pixels, odd.
        stem: "attention", or "conv", a 7 x 7 convolution.
        stem_chs: channels of the stem.
        drop_rate: dropout before the head. drop_path_rate: DropPath of the last block; it grows linearly from 0.

    Raises:
        ValueError: an unknown stem, heads that do not divide the channels, or a kernel without a centre.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (3, 4, 6, 3),
        mid_chs: Sequence[int] = (64, 128, 256, 512),
        num_heads: int = 8,
        kernel_size: int = 7,
        stem: str = "attention",
        stem_chs: int = 64,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        if stem not in ("attention", "conv"):
            raise ValueError(f"SasaResNet: unknown stem: got stem={stem!r}; expected 'attention' or 'conv'.")
        first = AttentionStem(in_chans, stem_chs) if stem == "attention" else Stem(in_chans, (stem_chs,), 7)
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        stages, before = [], stem_chs
        for index, (depth, middle) in enumerate(zip(depths, mid_chs, strict=True)):
            stage, after = Stage(), 4 * middle
            for number in range(depth):
                stride = 2 if index and not number else 1
                attention = SpatialAttention(middle, stride, num_heads, kernel_size)
                stage.append(Bottleneck(before, middle, after, stride, self_attn=attention, drop_path=next(rates)))
                before = after
            stages.append((stage, after, 4 * 2**index))
        super().__init__(
            first, stages, img_size=img_size, in_chans=in_chans, num_classes=num_classes, global_pool=global_pool,
            drop_rate=drop_rate,
        )  # fmt: skip

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        parts = ("rel_h", "rel_w", "_embed")
        return {name for name, _ in self.named_parameters() if name.endswith(parts)}


# Table 1: with attention in all blocks, and in the stem too or with its convolution.
for _layers, _depths in {26: (1, 2, 4, 1), 38: (2, 3, 5, 2), 50: (3, 4, 6, 3)}.items():
    register(f"sasa_resnet{_layers}", SasaResNet, PAPER, depths=_depths)
    register(f"sasa_resnet{_layers}_conv_stem", SasaResNet, PAPER, depths=_depths, stem="conv")
