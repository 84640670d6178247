"""ConViT against timm's, and against the results of its authors' code."""

import pytest
import stored
import torch
from model_pairs import (
    assert_another_head,
    assert_checkpointing_changes_nothing,
    assert_gradients_agree,
    assert_intermediates_agree,
    assert_logits_agree,
    assert_maps,
    images,
    pair,
)
from uninitialised import uninitialised

import vitkern.models as models
from vitkern.models.plain.convit import ConVit

# timm's grids are squares.
SMALL = dict(embed_dim=12, num_heads=4, depth=3, local_up_to_layer=2, img_size=80, num_classes=5)


@stored.each("convit_model_2blocks")
def test_model_against_the_authors_code(path):
    config, tensors = stored.read(path)
    del config["input"], config["norm_layer"]
    config["embed_dim"] //= config["num_heads"]
    stored.assert_stored(ConVit(**config).eval(), tensors)


COUNTS = {
    "convit_tiny": 5_710_512,
    "convit_tiny_plus": 9_972_912,
    "convit_small": 27_777_322,
    "convit_small_plus": 48_979_882,
    "convit_base": 86_540_040,
    "convit_base_plus": 153_134_856,
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_the_authors(name):
    assert models.describe(name).parameters == COUNTS[name]
    assert set(models.list_models("convit_*")) == set(COUNTS)


@pytest.mark.parametrize("name", ["convit_tiny", "convit_small", "convit_base"])
def test_parameters_are_those_of_timm(name):
    timm = pytest.importorskip("timm", reason="timm is the reference of this test")
    with uninitialised(), torch.device("meta"):
        ours = models.create_model(name)
    with uninitialised():
        theirs = timm.create_model(name, depth=1)  # its start needs values
    expected = {key: value.shape for key, value in theirs.state_dict().items() if key.startswith("blocks.0.")}
    assert {key: value.shape for key, value in ours.state_dict().items() if key.startswith("blocks.0.")} == expected


@pytest.mark.parametrize(
    "options", [dict(), dict(global_pool="avg", use_pos_embed=False), dict(qkv_bias=True)], ids=str
)
def test_logits_agree_with_timm(options):
    pytest.importorskip("timm", reason="timm is the reference of this test")
    ours, theirs = pair("convit_tiny", **SMALL | options)
    assert_logits_agree(ours, theirs, 80)
    assert_intermediates_agree(ours, theirs, images(80))


def test_gradients_agree_with_timm():
    pytest.importorskip("timm", reason="timm is the reference of this test")
    ours, theirs = pair("convit_tiny", drop_path_rate=0.2, **SMALL | dict(img_size=48))
    for model in (ours, theirs):
        model.double()
    for module in theirs.modules():
        if hasattr(module, "rel_indices"):
            module.rel_indices = module.get_rel_indices(9)
    assert_gradients_agree(ours, theirs, images(48, 4), silent=("pos_proj.bias",))  # a softmax does not see it


def test_an_image_that_is_no_square():
    """Positions are those of the grid: a wide image turned on its side gives the same, if both directions change."""
    model = models.create_model("convit_tiny", **SMALL | dict(img_size=(32, 64), local_up_to_layer=1, depth=2)).eval()
    torch.nn.init.constant_(model.blocks[0].attn.gating_param, 30.0)  # by position alone
    x = torch.randn(1, 8, 48)
    attend = model.blocks[0].attn
    tall = attend(x.unflatten(1, (2, 4)).transpose(1, 2).flatten(1, 2), (4, 2)).unflatten(1, (4, 2)).transpose(1, 2)
    with torch.no_grad():
        attend.pos_proj.weight[:, :2] = attend.pos_proj.weight[:, :2].flip(1)
    torch.testing.assert_close(attend(x, (2, 4)).unflatten(1, (2, 4)), tall, rtol=1e-5, atol=1e-6)
    assert model(images((32, 64))).shape == (2, 5)


def test_blocks_start_as_convolutions():
    timm = pytest.importorskip("timm", reason="timm is the reference of this test")
    ours, theirs = (
        make("convit_small", depth=2, local_up_to_layer=1) for make in (models.create_model, timm.create_model)
    )
    for name in ("pos_proj.weight", "v.weight", "gating_param"):
        assert torch.equal(ours.blocks[0].attn.get_parameter(name), theirs.blocks[0].attn.get_parameter(name))


def test_as_a_backbone():
    x = images(80)
    assert_maps("convit_tiny", 80, **SMALL)
    model = models.create_model("convit_tiny", **SMALL)
    assert_another_head(model, x)
    assert_checkpointing_changes_nothing(model, x)
    assert models.create_model("convit_tiny", **SMALL, mlp_layer="reglu")(x).shape == (2, 5)


def test_bad_input():
    with pytest.raises(ValueError, match="no block sees the class token: got local_up_to_layer=3, depth=3"):
        ConVit(**SMALL | dict(local_up_to_layer=3))
    with pytest.raises(ValueError, match=r"the image size differs.*expected \(80, 80\)"):
        ConVit(**SMALL)(torch.zeros(1, 3, 80, 64))
