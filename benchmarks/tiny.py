"""Blocks of timm's models, as they are and accelerated, on tensors so small that little but the host's time is left."""

import copy
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

import vitkern

SIDE, CHANNELS, HEADS = 4, 32, 2


class Pair(NamedTuple):
    name: str
    original: nn.Module
    accelerated: nn.Module
    x: Tensor

    def __str__(self) -> str:
        return f"{self.name}, {SIDE * SIDE} tokens of {CHANNELS}"


def pairs(device: torch.device) -> Iterator[Pair]:
    """A block of ViT, and a shifted one of Swin."""
    from timm.models.swin_transformer import SwinTransformerBlock
    from timm.models.vision_transformer import Block

    x = torch.randn(1, SIDE, SIDE, CHANNELS, device=device)
    swin = SwinTransformerBlock(CHANNELS, (SIDE, SIDE), HEADS, window_size=2, shift_size=1)
    for name, block, given in (("ViT", Block(CHANNELS, HEADS), x.flatten(1, 2)), ("Swin, shifted", swin, x)):
        original = nn.Sequential(block).to(device).eval()
        accelerated = copy.deepcopy(original)
        vitkern.accelerate(accelerated)
        yield Pair(name, original, accelerated, given)
