"""Where a vision transformer looked: heat maps of a photograph by three methods.

python examples/relevance_map.py [--tiny] [--image PHOTO]
"""

import argparse

import torch

import vitkern

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2)


def picture(path: str | None, size: int) -> torch.Tensor:
    """(1, 3, size, size), as ImageNet models take it; a bright square where no photograph is given."""
    if path is None:
        image = torch.full((1, 3, size, size), -1.0)
        image[:, :, size // 4 : size // 2, size // 4 : size // 2] = 1.0
        return image
    from PIL import Image
    from torchvision.transforms import v2

    steps = [v2.PILToTensor(), v2.Resize((size, size)), v2.ToDtype(torch.float32, scale=True)]
    return v2.Compose([*steps, v2.Normalize([0.5] * 3, [0.5] * 3)])(Image.open(path).convert("RGB"))[None]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="a small model without pretrained weights")
    parser.add_argument("--image", help="a photograph")
    arguments = parser.parse_args()

    options = TINY if arguments.tiny else {}
    model = vitkern.create_model("vit_tiny_patch16_224", pretrained=not arguments.tiny, **options).eval()
    images = picture(arguments.image, options.get("img_size", 224))
    for method in ("relevance", "rollout", "attention"):
        found = vitkern.explain(model, images, method=method)
        heat = found.heat[0] / found.heat.max()
        print(f"{method}, class {found.target[0].item()}:")
        for row in heat:
            print("  " + "".join(" .:-=+*#%@"[min(int(value * 10), 9)] for value in row for _ in range(2)))


if __name__ == "__main__":
    main()
