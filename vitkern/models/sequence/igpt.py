"""iGPT: GPT-2 on the pixels of small images (Chen et al. 2020, Generative Pretraining from Pixels)."""

import itertools
import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Checkpointed
from vitkern.models.registry import register
from vitkern.models.sequence.block import Stack
from vitkern.models.sequence.cache import Cache
from vitkern.models.sequence.decode import draw
from vitkern.models.sequence.embeddings import check_tokens
from vitkern.models.sequence.keys import convert
from vitkern.models.sequence.tables import IMAGEGPT
from vitkern.nn.embed import pair
from vitkern.nn.rmsnorm import RMSNorm

PAPER = "Generative Pretraining from Pixels, Chen et al. 2020, ICML"


def colours(images: Tensor, clusters: Tensor) -> Tensor:
    """Pixels as ids of the nearest colours, row by row (section 3.2).

    Args:
        images: (B, 3, height, width). clusters: (K, 3), in the same scale.

    Returns:
        (B, height * width) int64.
    """
    pixels = images.flatten(2).transpose(1, 2)  # (B, N, 3)
    return torch.cdist(pixels, clusters.expand(len(pixels), -1, -1)).argmin(-1)


class ImageGPT(Checkpointed):
    """A causal Transformer over the colours of an image, row by row, behind a start token.

    Args:
        img_size: pixels, one number or (height, width); N is their product.
        num_classes: colours, which are logits; the start token is the id after them.
        dim: channels C. depth: blocks. num_heads: H. mlp_ratio: hidden channels of an MLP over C.
        drop_rate: dropout of embeddings and branches, in training. attn_drop_rate: of the attention weights.
        act: see `vitkern.nn.Mlp`. eps: of every norm.

    Raises:
        ValueError: channels that do not split into heads, or an unknown activation.
    """

    hub_ids: ClassVar = {f"igpt_{size}": f"openai/imagegpt-{size}" for size in ("small", "medium", "large")}

    def __init__(
        self,
        img_size: int | tuple[int, int] = 32,
        num_classes: int = 512,
        dim: int = 512,
        depth: int = 24,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        *,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        act: str = "quick_gelu",
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.img_size = pair(img_size)
        self.num_pixels = self.img_size[0] * self.img_size[1]
        self.num_classes, self.num_features, self.start_id = num_classes, dim, num_classes
        self.embed = nn.Embedding(num_classes + 1, dim)
        self.pos_embed = nn.Parameter(torch.zeros(self.num_pixels, dim))
        self.drop = nn.Dropout(drop_rate)
        self.blocks = Stack(
            depth, dim, num_heads, int(dim * mlp_ratio), pre_norm=True, causal=True, act=act, norm=RMSNorm, eps=eps,
            drop=drop_rate, attn_drop=attn_drop_rate,
        )  # fmt: skip
        self.norm = RMSNorm(dim, eps=eps)
        self.head = nn.Linear(dim, num_classes, bias=False)
        self.init_weights()

    def init_weights(self) -> None:
        """Random weights of deviation 0.02, those that end a branch divided by sqrt(2 depth), as GPT-2's; no biases."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                last = name.endswith(("attn.proj.weight", "mlp.fc2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * len(self.blocks)) if last else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @property
    def input_rule(self) -> str:
        """What `forward` takes, on one line."""
        return f"tokens (B, N), ids up to the start token {self.start_id}, which is the first, N <= {self.num_pixels}"

    def example_inputs(self, batch: int = 1, tokens: int = 4) -> tuple[Tensor]:
        """The start token and pixels, so many in all, or as many as there are, on the model's device."""
        pixels = torch.arange(batch * tokens, device=self.embed.weight.device).view(batch, tokens) % self.num_classes
        return (self.behind_start(pixels[:, : self.num_pixels]),)

    def longest_inputs(self) -> tuple[Tensor]:
        """All of one picture: 32 x 32 pixels as it is published."""
        return self.example_inputs(tokens=self.num_pixels)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training: norms and biases."""
        return {name for name, parameter in self.named_parameters() if parameter.dim() == 1}

    def behind_start(self, pixels: Tensor) -> Tensor:
        """Pixels (B, N) as the model is given them to predict them: the start token, and all but the last."""
        return torch.cat([torch.full_like(pixels[:, :1], self.start_id), pixels[:, :-1]], 1)

    def _embedded(self, tokens: Tensor, start: int = 0) -> Tensor:
        """(B, N) -> (B, N, C)."""
        check_tokens(self, "tokens", tokens, self.num_pixels, start)
        return self.drop(self.embed(tokens) + self.pos_embed[start : start + tokens.shape[1]])

    def forward_features(self, tokens: Tensor, cache: Cache | None = None) -> Tensor:
        """Tokens (B, N) after ``cache.length`` others -> (B, N, C) after the last norm."""
        x = self._embedded(tokens, 0 if cache is None else cache.length)
        return self.norm(self.blocks(x, cache=cache))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, N, C) -> (B, N, num_classes)."""
        return x if pre_logits else self.head(x)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the pixel that follows each of ``tokens``.

        Args:
            tokens: (B, N) int64 or int32; the start token, then pixels, see `behind_start`.

        Returns:
            (B, N, num_classes).

        Raises:
            TypeError: ids of another dtype. ValueError: no (B, N), or more than the pixels of an image.
        """
        return self.forward_head(self.forward_features(tokens))

    def probe(self, pixels: Tensor, layer: int | None = None) -> Tensor:
        """Features for a linear classifier (section 2.4): the mean over pixels of what attention of a block is given.

        Args:
            pixels: (B, N) colours.
            layer: the block, from 0 to their number, which means the last norm; half of it by default: features are
                best in the middle.

        Returns:
            (B, C).

        Raises:
            ValueError: no such block.
        """
        depth = len(self.blocks)
        layer = depth // 2 if layer is None else layer
        if not 0 <= layer <= depth:
            raise ValueError(f"ImageGPT: there is no such block: got layer={layer}; expected 0 to {depth}.")
        x = self._embedded(self.behind_start(pixels))
        for block in itertools.islice(self.blocks, layer):
            x = block(x)
        norm = self.norm if layer == depth else self.blocks.get_submodule(f"{layer}.norm1")
        return norm(x).mean(1)

    @torch.no_grad()
    def generate(
        self,
        pixels: Tensor,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        use_cache: bool = True,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Completes images, in evaluation mode: draws the pixels that are missing, row by row.

        Args:
            pixels: (B, M) the first colours of each image; M = 0 draws it whole.
            temperature, top_k, generator: see `vitkern.models.sequence.decode.draw`; temperature 0 takes the likeliest.
            use_cache: keep keys and values of earlier pixels; the result is the same without.

        Returns:
            (B, N) colours, of which the first M are ``pixels``.

        Raises:
            TypeError: colours of another dtype. ValueError: no (B, M), or more than the pixels of an image.
        """
        check_tokens(self, "pixels", pixels, self.num_pixels)
        cache = Cache(len(self.blocks)) if use_cache else None

        def following(tokens: Tensor) -> Tensor:
            new = tokens if cache is None else tokens[:, cache.length :]
            return self.head(self.forward_features(new, cache)[:, -1])

        tokens = torch.cat([pixels.new_full((len(pixels), 1), self.start_id), pixels], 1)
        steps = self.num_pixels - pixels.shape[1]
        return draw(following, tokens, steps, temperature=temperature, top_k=top_k, generator=generator)[:, 1:]

    def convert_state_dict(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state dict of transformers' ImageGPTForCausalImageModeling under our names; see
        `vitkern.models.sequence.keys.convert`."""
        return convert((IMAGEGPT,), state)


for _name, _arguments in {
    "igpt_small": dict(dim=512, depth=24, num_heads=8),
    "igpt_medium": dict(dim=1024, depth=36, num_heads=8),
    "igpt_large": dict(dim=1536, depth=48, num_heads=16),
}.items():
    register(_name, ImageGPT, PAPER, **_arguments)
