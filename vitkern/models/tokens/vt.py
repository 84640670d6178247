"""Visual Transformers (Wu et al. 2020, arXiv 2006.03677): ResNets whose last stage works on a few tokens gathered from
the map."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.head import ClassifierHead, init_linear
from vitkern.models.registry import register
from vitkern.models.residual import BasicBlock, Bottleneck
from vitkern.models.staged import Stage, StagedNet, Stem
from vitkern.nn.grid import as_tokens
from vitkern.nn.heads import head_dim
from vitkern.nn.layers import drop_path_rates
from vitkern.ops.attention import attention

PAPER = "Visual Transformers: Token-based Image Representation and Processing for Computer Vision, Wu et al. 2020, "
PAPER += "arXiv 2006.03677"


def matched(in_dim: int, out_dim: int) -> nn.Module:
    """A projection where channels differ: maps and tokens may have other numbers of them."""
    return nn.Identity() if in_dim == out_dim else nn.Linear(in_dim, out_dim, bias=False)


def attended(query: Tensor, key: Tensor, value: Tensor, num_heads: int) -> Tensor:
    """softmax(query key^T) value without a scale, in heads of the channels: (B, N, C), (B, M, C), (B, M, Cv) ->
    (B, N, Cv)."""
    parts = (x.unflatten(2, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))  # (B, H, N, D)
    return attention(*parts, scale=1.0).transpose(1, 2).flatten(2)


class Tokenizer(nn.Module):
    """Each token is a mean of all pixels: softmax_pixels(X W)^T X V. So few tokens need no kernel of their own.

    W is learnt ("filter-based", arXiv 2006.03677, equation 1), or comes from the tokens before (``recurrent``,
    equation 2), W = (T W_TR)^T.

    Args:
        dim: channels C of a pixel. token_dim: of a token. num_tokens: L.
    """

    def __init__(self, dim: int, token_dim: int, num_tokens: int, *, recurrent: bool) -> None:
        super().__init__()
        self.recurrent = recurrent
        if recurrent:
            self.from_tokens = nn.Linear(token_dim, dim, bias=False)
        else:
            self.filters = nn.Parameter(nn.init.trunc_normal_(torch.empty(num_tokens, dim), std=0.02))
        self.value = matched(dim, token_dim)

    def forward(self, pixels: Tensor, tokens: Tensor | None) -> Tensor:
        """(B, N, C), (B, L, token_dim) -> (B, L, token_dim)."""
        asked = self.from_tokens(tokens) if self.recurrent else self.filters  # (B, L, C) or (L, C)
        weights = (pixels @ asked.transpose(-1, -2)).softmax(1)  # (B, N, L)
        return self.value(weights.transpose(1, 2) @ pixels)


class TokenTransformer(nn.Module):
    """T' = T + softmax((T K)(T Q)^T) T, then T' + relu(T' F1) F2 (arXiv 2006.03677, equations 3, 4)."""

    def __init__(self, dim: int, key_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.key, self.query = (nn.Linear(dim, key_dim, bias=False) for _ in range(2))
        self.fc1, self.fc2 = (nn.Linear(dim, dim, bias=False) for _ in range(2))

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, C) -> the same shape."""
        tokens = tokens + attended(self.key(tokens), self.query(tokens), tokens, self.num_heads)
        return tokens + self.fc2(F.relu(self.fc1(tokens)))


class Projector(nn.Module):
    """X + softmax_tokens((X W_Q)(T W_K)^T) T V: pixels read the tokens (arXiv 2006.03677, equation 5)."""

    def __init__(self, dim: int, token_dim: int, key_dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, key_dim, bias=False)
        self.key = nn.Linear(token_dim, key_dim, bias=False)
        self.value = matched(token_dim, dim)

    def forward(self, pixels: Tensor, tokens: Tensor) -> Tensor:
        """(B, N, C), (B, L, token_dim) -> (B, N, C)."""
        return pixels + attended(self.query(pixels), self.key(tokens), self.value(tokens), self.num_heads)


class VTModule(nn.Module):
    """Tokens from the map, a transformer on them, and what the map gets back; the last of a network gives no map."""

    def __init__(
        self, dim: int, token_dim: int, key_dim: int, num_tokens: int, num_heads: int, *, first: bool, last: bool
    ) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(dim, token_dim, num_tokens, recurrent=not first)
        self.transformer = TokenTransformer(token_dim, key_dim, num_heads)
        self.projector = None if last else Projector(dim, token_dim, key_dim, num_heads)

    def forward(self, pixels: Tensor, tokens: Tensor | None) -> tuple[Tensor, Tensor]:
        """(B, N, C), tokens of the module before -> (B, N, C), (B, L, token_dim)."""
        tokens = self.transformer(self.tokenizer(pixels, tokens))
        return (pixels if self.projector is None else self.projector(pixels, tokens)), tokens


class VisualTransformer(StagedNet):
    """Three stages of a ResNet, modules of tokens on the map of the last, the mean of the tokens, a head.

    Args:
        img_size: pixels, one number or (height, width); it takes any.
        in_chans: channels of the image.
        num_classes: logits; 0 gives the pooled features.
        global_pool: of the tokens: "avg", "max", "avgmax", or "" for logits of each.
        depths: blocks of each stage. bottleneck: which blocks.
        vt_depth: modules of tokens; their tokenizers are recurrent, but the first's.
        num_tokens: L. token_dim: channels of a token. key_dim: channels of queries and keys; half of those by default.
        num_heads: H of transformers and projectors; the equations have one.
        drop_rate: dropout before the head. drop_path_rate: DropPath of the last block; it grows linearly from 0.

    Raises:
        ValueError: heads that do not divide channels.
    """

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        depths: Sequence[int] = (2, 2, 2),
        bottleneck: bool = False,
        vt_depth: int = 2,
        num_tokens: int = 16,
        token_dim: int = 1024,
        key_dim: int | None = None,
        num_heads: int = 16,
        stem_chs: int = 64,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        key_dim = key_dim or token_dim // 2
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        stages, before = [], stem_chs
        for index, depth in enumerate(depths):
            middle = stem_chs * 2**index
            stage, after = Stage(), 4 * middle if bottleneck else middle
            for number in range(depth):
                stride, rate = 2 if index and not number else 1, next(rates)
                if bottleneck:
                    stage.append(Bottleneck(before, middle, after, stride, drop_path=rate))
                else:
                    stage.append(BasicBlock(before, after, stride, drop_path=rate))
                before = after
            stages.append((stage, after, 4 * 2**index))
        for channels, name in ((token_dim, "token_dim"), (key_dim, "key_dim"), (before, "channels of the map")):
            head_dim("VisualTransformer", channels, num_heads, name)
        super().__init__(
            Stem(in_chans, (stem_chs,), 7), stages,
            img_size=img_size, in_chans=in_chans, num_classes=num_classes, global_pool=global_pool,
            drop_rate=drop_rate,
        )  # fmt: skip
        self.vt = nn.ModuleList(
            VTModule(before, token_dim, key_dim, num_tokens, num_heads, first=not number, last=number == vt_depth - 1)
            for number in range(vt_depth)
        )
        self.num_features = token_dim
        self.head = ClassifierHead(token_dim, num_classes, global_pool, drop_rate)
        for part in (self.vt, self.head):
            part.apply(init_linear)
        self.feature_info[-1]["module"] = f"stages.{len(depths) - 1}"
        self.feature_info.append(dict(num_chs=before, reduction=4 * 2 ** (len(depths) - 1), module="vt"))

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (tokens of the last module (B, L, token_dim), maps of the features in ``taken``)."""
        tokens: Any
        x, found = super().encode(x, taken, stop_early)
        if stop_early and len(found) == len(taken):
            return x, found
        pixels, tokens = as_tokens(x), None
        for module in self.vt:
            pixels, tokens = self.run(module, pixels, tokens)
        if len(self.feature_info) - 1 in taken:
            found.append(pixels.transpose(1, 2).unflatten(2, x.shape[2:]))
        return tokens, found

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Tokens -> logits (B, num_classes); ``pre_logits``: pooled features (B, token_dim)."""
        return self.head(x[:, None], pre_logits=pre_logits)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes what follows the last of ``indices``, and the head if asked; returns the indices."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        if taken[-1] < len(self.feature_info) - 1:
            self.vt = nn.ModuleList()
        elif prune_head:
            self.vt = self.vt[:-1]  # the last gives tokens alone
        return taken

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {name for name, _ in self.named_parameters() if name.endswith("filters")}


# Section 5.1: as many modules as the ResNet has blocks in the stage that they replace.
for _layers, _depths, _modules in ((18, (2, 2, 2), 2), (34, (3, 4, 6), 3), (50, (3, 4, 6), 3), (101, (3, 4, 23), 3)):
    _arguments = dict(depths=_depths, bottleneck=_layers > 34, vt_depth=_modules)
    register(f"vt_resnet{_layers}", VisualTransformer, PAPER, **_arguments)
