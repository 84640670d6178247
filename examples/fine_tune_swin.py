"""Fine-tune timm's Swin with mixed precision and gradient checkpointing; the checkpoint loads into plain timm.

    python examples/fine_tune_swin.py [--tiny]

Your own images: put a folder with one subfolder a class in place of `images_and_labels`, read by
`torchvision.datasets.ImageFolder`.
"""

import argparse

import torch
from torch import Tensor, nn

import vitkern

try:
    import timm
except ImportError as missing:
    raise SystemExit(f"{missing}: pip install 'vitkern[examples]'") from None

TINY = dict(img_size=32, patch_size=2, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4))


def images_and_labels(size: int, count: int) -> tuple[Tensor, Tensor]:
    """Bright and dark noise, classes 1 and 0."""
    labels = torch.arange(count) % 2
    return torch.randn(count, 3, size, size) + labels.view(-1, 1, 1, 1) - 0.5, labels


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="a small model without pretrained weights")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", default="swin.pth", help="the checkpoint")
    arguments = parser.parse_args()

    options = dict(TINY if arguments.tiny else {}, num_classes=2)
    name, size = "swin_tiny_patch4_window7_224", options.get("img_size", 224)
    model = timm.create_model(name, pretrained=not arguments.tiny, **options)
    model.set_grad_checkpointing()
    print(vitkern.accelerate(model))

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).train()
    kind = torch.float16 if device.type == "cuda" else torch.bfloat16
    scaler = torch.amp.GradScaler(device.type, enabled=kind is torch.float16)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(arguments.steps):
        images, labels = (tensor.to(device) for tensor in images_and_labels(size, 8))
        with torch.autocast(device.type, kind):
            loss = nn.functional.cross_entropy(model(images), labels)
        optimiser.zero_grad(set_to_none=True)
        scaler.scale(loss).backward()
        scaler.step(optimiser)
        scaler.update()
        print(f"step {step}: loss {loss.item():.4f}")

    torch.save(model.state_dict(), arguments.out)
    plain = timm.create_model(name, **options)
    plain.load_state_dict(torch.load(arguments.out, map_location="cpu", weights_only=True), strict=True)
    images, _ = images_and_labels(size, 4)
    with torch.no_grad():
        difference = (plain.eval()(images) - model.eval()(images.to(device)).cpu()).abs().max().item()
    print(f"loaded into timm's own class: logits differ by at most {difference:.1e}")


if __name__ == "__main__":
    main()
