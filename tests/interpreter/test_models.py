"""Whole models through the interpreted kernels give the logits and gradients of the PyTorch path."""

import pytest
import torch

import vitkern.models as models
from vitkern.dispatch import use_backend

pytestmark = pytest.mark.interpreter

CASES = {
    "vit_tiny_patch16_224": dict(embed_dim=32, depth=1, num_heads=2, mlp_ratio=2.0, img_size=(32, 48), init_values=0.5),
    "swin_tiny_patch4_window7_224": dict(
        embed_dim=16, depths=(2,), num_heads=(1,), window_size=3, img_size=(16, 20), mlp_ratio=2.0
    ),
    "swinv2_tiny_window8_256": dict(
        embed_dim=16, depths=(2,), num_heads=(1,), window_size=3, img_size=(16, 20), mlp_ratio=2.0
    ),
}


def build(name):
    model = models.create_model(name, num_classes=3, drop_path_rate=0.3, **CASES[name]).train()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for key, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(
                1.0 + 0.3 * noise
                if "norm" in key and key.endswith("weight")
                else noise / (p[0].numel() ** 0.5 if p.dim() == 2 else 2.0)
            )
    return model


def run(model, x, backend):
    model.zero_grad()
    image = x.clone().requires_grad_()
    torch.manual_seed(5)
    with use_backend(backend):
        logits = model(image)
        logits.square().sum().backward()
    return {"logits": logits.detach(), "image": image.grad, **{key: p.grad for key, p in model.named_parameters()}}


@pytest.mark.parametrize("name", CASES)
def test_kernels_give_the_logits_and_gradients_of_the_pytorch_path(name):
    model = build(name)
    x = torch.randn(2, 3, *CASES[name]["img_size"])
    actual, expected = run(model, x, "interpreter"), run(model, x, "torch")
    for key, value in expected.items():
        bound = 2e-5 * max(value.abs().max().item(), 1e-3)
        torch.testing.assert_close(actual[key], value, rtol=1e-4, atol=bound, msg=lambda m, key=key: f"{key}: {m}")
