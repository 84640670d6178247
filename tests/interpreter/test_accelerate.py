"""A swapped model on the kernels, in the interpreter: logits and every gradient against the unswapped model."""

import copy
import sys
from pathlib import Path

import pytest
import timm
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from swapping import assert_near, gradients, randomise

import vitkern
from vitkern.interop.report import RECORDED

pytestmark = pytest.mark.interpreter

MODELS = {
    "vit": (
        "vit_tiny_patch16_224",
        dict(depth=1, embed_dim=32, num_heads=2, img_size=16, patch_size=8, init_values=0.5),
    ),
    "swin": (
        "swin_tiny_patch4_window7_224",
        dict(depths=(2,), embed_dim=32, num_heads=(2,), img_size=(24, 20), window_size=4),
    ),
    "swin v2": (
        "swinv2_tiny_window8_256",
        dict(depths=(2,), embed_dim=32, num_heads=(2,), img_size=(24, 20), window_size=4),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_swapped_model_runs_on_kernels(name):
    entry, arguments = MODELS[name]
    model = randomise(timm.create_model(entry, num_classes=3, **arguments)).train()
    images = torch.randn(1, 3, *model.patch_embed.img_size)
    swapped = copy.deepcopy(model)
    report = vitkern.accelerate(swapped)
    assert "runs on Triton's interpreter here (cpu, float32)" in str(report)
    expected, expected_gradients = gradients(model, images)
    with vitkern.use_backend("interpreter"):  # an op that could not run there would raise
        actual, actual_gradients = gradients(swapped, images)
    assert_near(actual, expected, 1e-4, "logits")
    for key, gradient in expected_gradients.items():
        assert (gradient is None) == (actual_gradients[key] is None), key
        if gradient is not None:
            scale = max(gradient.abs().max().item(), 1e-2)
            assert (actual_gradients[key] - gradient).abs().max().item() <= 1e-3 * scale, key


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_what_is_traced_has_no_kernel_unless_one_is_forced():
    entry, arguments = MODELS["vit"]
    model = randomise(timm.create_model(entry, num_classes=3, **arguments)).eval()
    images = torch.randn(1, 3, *model.patch_embed.img_size)
    assert RECORDED in str(vitkern.accelerate(model))
    found = {}
    for backend in ("auto", "interpreter"):
        with torch.no_grad(), vitkern.use_backend(backend):
            graph = torch.jit.trace(model, images, check_trace=False).inlined_graph
        found[backend] = {node.kind() for node in graph.nodes() if node.kind().startswith("vitkern::")}
    assert found == {"auto": set(), "interpreter": {"vitkern::attention_qkvpacked", "vitkern::layernorm_mlp"}}
