"""Export an accelerated model: torch.export with its kernels' operators, and ONNX by the PyTorch backend.

python examples/export_model.py [--tiny] [--out FILE.onnx]
"""

import argparse

import torch

import vitkern

try:
    import onnxruntime
    import onnxscript  # noqa: F401  torch.onnx needs it
    import timm
except ImportError as missing:
    raise SystemExit(f"{missing}: pip install 'vitkern[examples]'") from None

TINY = dict(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=5)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="a small model without pretrained weights")
    parser.add_argument("--out", default="model.onnx")
    arguments = parser.parse_args()

    options = TINY if arguments.tiny else {}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=not arguments.tiny, **options).eval()
    images = torch.randn(2, 3, options.get("img_size", 224), options.get("img_size", 224))
    expected = model(images).detach()
    vitkern.accelerate(model)

    batch = {0: torch.export.Dim("batch", min=1, max=64)}
    program = torch.export.export(model, (images,), dynamic_shapes=(batch,))
    found = program.module()(torch.cat([images, images]))[:2]
    operators = {str(node.target) for node in program.graph.nodes if "vitkern" in str(node.target)}
    print(f"torch.export: {sorted(operators) or 'the operators of PyTorch'}")
    print(f"for twice as many images: at most {(found - expected).abs().max().item():.1e} apart")

    with vitkern.use_backend("torch"):  # ONNX knows PyTorch's operators alone
        torch.onnx.export(model, (images,), arguments.out, dynamo=True, dynamic_shapes=(batch,), verbose=False)

    session = onnxruntime.InferenceSession(arguments.out, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    print(f"onnxruntime: at most {abs(logits - expected.numpy()).max():.1e} apart, from {arguments.out}")


if __name__ == "__main__":
    main()
