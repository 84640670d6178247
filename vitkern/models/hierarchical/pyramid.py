"""What pyramids of convolutional embeddings share: the block, checks of stages and images, maps, pooling, the head."""

import itertools
from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Backbone
from vitkern.models.head import check_pool, pool
from vitkern.nn.embed import ConvEmbed, check_images, check_pixels, pair
from vitkern.nn.grid import as_image
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.nn.layers import DropPath


class Block(nn.Module):
    """x + attn(norm1(x)), then x + mlp(norm2(x)), whatever the attention of an image of tokens.

    Args:
        dim: channels C. attn: takes tokens and the (height, width) of their image. mlp: `vitkern.nn.Mlp`.
        drop_path: rate of both branches. eps: of both LayerNorms.
    """

    def __init__(self, dim: int, attn: nn.Module, mlp: nn.Module, drop_path: float = 0.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=eps)
        self.attn = attn
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, eps=eps)
        self.mlp = mlp
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, N, C), tokens of an image of ``size``, maybe after a class token -> the same shape."""
        return self.feed(x + self.drop_path1(self.attn(self.norm1(x), size)), size)

    def feed(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The branch of the MLP."""
        return mlp_residual(x, self.norm2, self.mlp, self.drop_path2)


class Pyramid(Backbone):
    """Stages on grids of 1/4, 1/8, ... of the image, each behind an embedding that makes its tokens.

    A family gives `encode` and `embeddings`, sets ``norm``, ``head_drop`` and ``head``, and says in ``least`` how many
    tokens a stage needs each way.

    Args:
        img_size, in_chans, num_classes, global_pool: as of the family. stage: names the module of a stage, by its
            index. patch_size: pixels of a token of the first stage; each stage doubles them.
        embed_dims: channels of each stage. per_stage: whatever else has an entry for each.

    Raises:
        ValueError: an unknown pooling, or stages that do not fit each other.
    """

    num_prefix_tokens = 0  # of the last stage

    head_drop: nn.Module

    def __init__(
        self,
        img_size: int | tuple[int, int],
        in_chans: int,
        num_classes: int,
        global_pool: str,
        stage: str,
        patch_size: int,
        embed_dims: Sequence[int],
        **per_stage: Sequence,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_pool(name, global_pool, self.POOLS)
        lengths = {key: len(entries) for key, entries in dict(embed_dims=embed_dims, **per_stage).items()}
        if len(set(lengths.values())) != 1 or not embed_dims:
            raise ValueError(
                f"{name}: stages do not fit each other: got lengths {lengths}; expected one entry for each stage."
            )
        self.img_size, self.in_chans = pair(img_size), in_chans
        self.num_classes, self.global_pool, self.num_features = num_classes, global_pool, embed_dims[-1]
        self.least: Sequence[int] = (1,) * len(embed_dims)
        self.feature_info = [
            dict(num_chs=dim, reduction=patch_size << index, module=stage.format(index))
            for index, dim in enumerate(embed_dims)
        ]

    @property
    def embeddings(self) -> list[ConvEmbed]:
        """Of each stage."""
        raise NotImplementedError

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of the image it was built for; others are taken too."""
        return (self.in_chans, *self.img_size)

    @property
    def input_rule(self) -> str:
        """What the model takes, on one line."""
        others = f"of {self.smallest} pixels or more each way" if self.smallest > 1 else "of any size"
        return f"image {' x '.join(map(str, self.input_size))}, or {others}"

    @property
    def smallest(self) -> int:
        """Height and width of the smallest square image that the model takes."""
        return next(side for side in itertools.count(1) if self.fits((side, side)))

    def fits(self, size: tuple[int, int]) -> bool:
        """Whether each stage gets the tokens it needs from an image of ``size`` = (height, width)."""
        for embed, least in zip(self.embeddings, self.least, strict=False):
            size = embed.grid(size)
            if min(size) < least:
                return False
        return True

    def check(self, x: Tensor) -> Tensor:
        """``x``, if it is a batch of images that the model takes.

        Raises:
            ValueError: it is not.
        """
        name = type(self).__name__
        check_images(name, x, self.in_chans)
        if not self.fits((x.shape[2], x.shape[3])):
            raise ValueError(
                f"{name}: the image is too small: got {tuple(x.shape[2:])}; "
                f"expected {self.smallest} pixels or more each way. Resize the image."
            )
        check_pixels(name, x)
        return x

    def as_map(self, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, prefix + N, C) of stage ``index`` -> ((B, C, img_h, img_w), prefix tokens)."""
        for embed in self.embeddings[: index + 1]:
            size = embed.grid(size)
        prefix = x.shape[1] - size[0] * size[1]
        return as_image(type(self).__name__, x[:, prefix:], size), x[:, :prefix] if prefix else None

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> logits (B, num_classes); ``pre_logits``: pooled features (B, C)."""
        if self.global_pool == "token":
            x = x[:, 0]
        elif self.global_pool:
            x = pool(x[:, self.num_prefix_tokens :], self.global_pool)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)
