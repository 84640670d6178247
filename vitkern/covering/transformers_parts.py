"""What the small models of transformers share: how one departs from the rules of `shrinking`, and inner models."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Changed:
    """``size``: of the square image. ``config``: options that go before the rules'. ``inputs``: of the forward, as
    `shrinking.arguments` reads them."""

    size: int = 32
    config: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, Any] = field(default_factory=dict)


SWIN = dict(embed_dim=16, depths=[2, 2], num_heads=[2, 4], window_size=4, image_size=64, patch_size=4)
SWIN_4 = dict(model_type="swin", **{**SWIN, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 2, 2]})
STAGES = ["stage1", "stage2", "stage3", "stage4"]
RESNET = dict(model_type="resnet", embedding_size=8, hidden_sizes=[8, 16, 16, 32], depths=[1, 1, 1, 1])
RESNET_LAST = dict(RESNET, layer_type="basic", out_features=STAGES[3:])
RESNET_THREE = dict(RESNET, layer_type="basic", out_features=STAGES[1:])
HYBRID = dict(
    backbone_config=dict(
        model_type="rt_detr_resnet",
        embedding_size=8,
        hidden_sizes=[8, 16, 16, 32],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=STAGES[1:],
    ),
    encoder_in_channels=[16, 16, 32],
    encoder_hidden_dim=32,
    decoder_in_channels=[32, 32, 32],
)
DINOV2 = dict(model_type="dinov2", num_hidden_layers=4, out_features=STAGES, reshape_hidden_states=False)
NECK = dict(neck_hidden_sizes=[8, 16, 16, 32], fusion_hidden_size=16)
CLIP = dict(model_type="clip_vision_model")
VIDEO = (2, 4, 3, 32, 32)
GRID = [[1, 4, 4], [1, 4, 4]]
TWO_HEADS = dict(num_heads=2)


def text_with(token: int, count: int) -> dict[str, Any]:
    """Two texts with ``count`` places for features of an image."""
    return dict(input_ids=[[5] + [token] * count + [7, 8, 9]] * 2, attention_mask=[[1] * (count + 4)] * 2)


def flattened(count: int, numbers: int) -> list[list[float]]:
    """Patches of a picture that is four wide, each with its row and its column in front."""
    return [[i // 4 + 1, i % 4 + 1, *((i * 7 + j * j) % 11 / 5 - 1 for j in range(numbers))] for i in range(count)]


def patches(numbers: int, name: str = "hidden_states") -> dict[str, Any]:
    """Those of two pictures in one sequence, 4 x 4 each, a patch of so many ``numbers``."""
    return {name: (32, numbers), "grid_thw": GRID}
