"""Serve features of Hugging Face's DINOv2: accelerate, then torch.compile.

python examples/serve_dinov2.py [--tiny]
"""

import argparse
import time

import torch

import vitkern

try:
    from transformers import Dinov2Config, Dinov2Model
except ImportError as missing:
    raise SystemExit(f"{missing}: pip install 'vitkern[examples]'") from None

TINY = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="a small model without pretrained weights, not by inductor")
    parser.add_argument("--batch", type=int, default=4)
    arguments = parser.parse_args()

    tiny = Dinov2Config(**TINY) if arguments.tiny else None
    model = Dinov2Model(tiny) if tiny else Dinov2Model.from_pretrained("facebook/dinov2-small")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.eval().to(device)
    images = torch.randn(arguments.batch, 3, model.config.image_size, model.config.image_size, device=device)

    with torch.inference_mode():
        expected = model(images).pooler_output
        report = vitkern.accelerate(model)
        print(report)
        served = torch.compile(model, backend="eager" if arguments.tiny else "inductor")
        served(images)  # compiles
        begun = time.perf_counter()
        features = served(images).pooler_output
        if device.type == "cuda":
            torch.cuda.synchronize()
        took = time.perf_counter() - begun
    print(f"features {tuple(features.shape)} in {took * 1e3:.1f} ms")
    print(f"beside the model as it was: at most {(features - expected).abs().max().item():.1e} apart")


if __name__ == "__main__":
    main()
