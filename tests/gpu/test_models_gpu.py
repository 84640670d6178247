"""Whole models on a GPU: the accelerated one computes what the original does, in inference and in training."""

import copy

import pytest
import torch

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]

MODELS = (
    "swin_tiny_patch4_window7_224",
    "swinv2_tiny_window8_256",
    "vit_small_patch16_224",
    "deit_tiny_distilled_patch16_224",
)


@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_logits_and_gradients_are_the_originals(name, dtype):
    pytest.importorskip("timm", reason="timm is not installed")
    import vitkern
    from vitkern.commands import equality, peers

    peer = peers.build(name, "timm")
    original = peer.model.to("cuda", dtype)
    fast = copy.deepcopy(original)
    report = vitkern.accelerate(fast)
    assert "swapped" in str(report)
    images = torch.randn(4, 3, *peer.input_size, device="cuda").to(dtype)
    result = equality.compare_models(original, fast, images, train=True)
    assert result.passed, str(result)
