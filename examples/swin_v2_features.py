"""Maps of SwinV2's stages for a detector: torchvision's feature pyramid and its Faster R-CNN on a vitkern backbone.

python examples/swin_v2_features.py [--tiny]
"""

import argparse

import torch
from torch import Tensor, nn

import vitkern

try:
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.rpn import AnchorGenerator
    from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
except ImportError as missing:
    raise SystemExit(f"{missing}: pip install 'vitkern[examples]'") from None

TINY = dict(embed_dim=16, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8), window_size=4)


class Pyramid(nn.Module):
    """A backbone with a pyramid of ``channels`` on its stages, as detectors take it."""

    def __init__(self, name: str, channels: int, size: int, pretrained: bool, **options) -> None:
        super().__init__()
        self.body = vitkern.create_model(name, pretrained=pretrained, features_only=True, img_size=size, **options)
        info = self.body.feature_info
        self.neck = FeaturePyramidNetwork(info.channels(), channels)
        self.names = [f"stride {reduction}" for reduction in info.reduction()]
        self.out_channels = channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.neck(dict(zip(self.names, self.body(images), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="a small model without pretrained weights")
    arguments = parser.parse_args()

    size, options = (128, TINY) if arguments.tiny else (256, {})
    body = Pyramid("swinv2_tiny_window8_256", 32, size, not arguments.tiny, **options)
    for name, features in body(torch.randn(1, 3, size, size)).items():
        print(f"{name}: {tuple(features.shape)}")

    detector = FasterRCNN(
        body, num_classes=3, min_size=size, max_size=size, fixed_size=(size, size), box_batch_size_per_image=16,
        rpn_anchor_generator=AnchorGenerator(((16,), (32,), (64,), (128,)), ((0.5, 1.0, 2.0),) * 4),
        box_roi_pool=MultiScaleRoIAlign(body.names, 7, 2),
    )  # fmt: skip
    target = dict(boxes=torch.tensor([[8.0, 8.0, size / 2, size / 2]]), labels=torch.tensor([1]))
    losses = detector([torch.rand(3, size, size)], [target])
    sum(losses.values()).backward()
    print("losses of one step:", ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items()))
    print("every stage has a gradient:", all(p.grad is not None for p in body.parameters()))


if __name__ == "__main__":
    main()
