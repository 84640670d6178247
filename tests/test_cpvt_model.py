"""CPVT, of which its authors published no code: against timm's blocks and the convolution of their Twins, and against
the stored results of the latter."""

import pytest
import stored
import torch
from model_pairs import (
    assert_another_head,
    assert_checkpointing_changes_nothing,
    assert_gradients_agree,
    assert_logits_agree,
    assert_maps,
    images,
    same_weights,
)
from uninitialised import uninitialised

import vitkern.models as models
from vitkern.models.plain.cpvt import ConditionalVisionTransformer
from vitkern.models.positional_conv import PositionalConv

SMALL = dict(embed_dim=32, num_heads=2, depth=3, img_size=48, num_classes=5)
GAP = dict(global_pool="avg", class_token=False, fc_norm=False)


@stored.each("cpvt_peg_s1")
def test_positions_against_the_authors_code(path):
    config, tensors = stored.read(path)
    tensors = {name.replace("proj.0.", "proj."): value for name, value in tensors.items()}
    grid = config["H"], config["W"]
    module = PositionalConv(config["embed_dim"])
    stored.assert_stored(module, tensors, lambda x: module(x.unflatten(1, grid)).flatten(1, 2))


@pytest.mark.parametrize("size, count", [("tiny", 5_717_416), ("small", 22_050_664), ("base", 86_567_656)])
def test_parameters_are_those_of_deit_with_other_positions(size, count):
    """6, 23 and 88 million, as published (table 3): no embedding of 197 positions, 3 x 3 weights and a bias instead."""
    width = models.describe(f"deit_{size}_patch16_224").arguments["embed_dim"]
    count += 10 * width - 197 * width
    assert models.describe(f"cpvt_{size}_patch16_224").parameters == count
    assert models.describe(f"cpvt_{size}_patch16_gap_224").parameters == count - width  # no class token


def built(**options):
    """(ours, timm's blocks and convolution) with the same random weights."""
    timm = pytest.importorskip("timm", reason="timm is the reference of this test")
    from timm.models.twins import PosConv

    class Peer(timm.models.vision_transformer.VisionTransformer):
        def __init__(self, **kwargs):
            super().__init__(pos_embed="none", dynamic_img_size=True, **kwargs)
            self.pos_block = torch.nn.ModuleList([PosConv(self.embed_dim, self.embed_dim)])

        def forward_features(self, x, **kwargs):
            size = x.shape[2] // 16, x.shape[3] // 16
            x, prefix = self.blocks[0](self._pos_embed(self.patch_embed(x))), self.num_prefix_tokens
            x = torch.cat([x[:, :prefix], self.pos_block[0](x[:, prefix:], size)], 1)
            return self.norm(self.blocks[1:](x))

    with uninitialised():
        ours, theirs = ConditionalVisionTransformer(**SMALL | options), Peer(**SMALL | options)
    theirs.pos_block[0].proj = theirs.pos_block[0].proj[0]
    return same_weights(ours, theirs)


POOLINGS = pytest.mark.parametrize("options", [dict(), GAP], ids=["class token", "mean"])


@POOLINGS
def test_logits_agree_with_timms_parts_at_any_size(options):
    ours, theirs = built(**options)
    for size in (48, (32, 112)):
        assert_logits_agree(ours, theirs, size)


@POOLINGS
def test_gradients_agree_with_timms_parts(options):
    assert_gradients_agree(*built(**options, drop_path_rate=0.2), images((48, 64), 4))


def test_as_a_backbone():
    assert_maps("cpvt_tiny_patch16_224", 48, **SMALL)
    model, x = models.create_model("cpvt_tiny_patch16_224", **SMALL, pos_depth=2), images((48, 32))
    assert len(model.pos_block) == 2 and "pos_block.1.proj.weight" in model.no_weight_decay()
    assert_another_head(model, x)
    assert_checkpointing_changes_nothing(model, x)


def test_sizes_that_are_no_patches_are_refused():
    with pytest.raises(ValueError, match=r"patches do not divide the image: got \(48, 40\); expected multiples of"):
        ConditionalVisionTransformer(**SMALL)(torch.zeros(1, 3, 48, 40))
