"""HaloNets against timm's with the same random weights, the paper's table, bad input."""

import copy

import model_pairs
import pytest
import torch
from uninitialised import uninitialised

import vitkern.models as models
from vitkern.models.hierarchical.halonet import FAMILY

TIMM = ("halonet_h1", "halonet26t", "halonet50ts")
# Blocks of 2 and few channels, so that images of 64 pixels will do.
SMALL = dict(
    num_classes=5, depths=(1, 2, 2, 2), mid_chs=(16, 16, 32, 32), block_size=2, halo_size=1, drop_path_rate=0.2
)
KINDS = {"halonet_h1": dict(), "halonet50ts": dict(attends=((), (1,), (0, 1), (0,)), num_heads=(8, 8, 8, 8))}


def small(name):
    """(ours, timm's) of one kind, at reduced size."""
    timm = pytest.importorskip("timm", reason="timm is the reference of this test")
    from timm.models.byobnet import ByoBlockCfg

    ratio = 1.0 if name == "halonet_h1" else 0.25
    where = KINDS[name].get("attends") or [range(depth) for depth in SMALL["depths"]]
    blocks = tuple(
        tuple(
            ByoBlockCfg("self_attn" if n in there else "bottle", d=1, c=int(c / ratio), s=min(i, 1) + 1, gs=0, br=ratio)
            for n in range(depth)
        )
        for i, (depth, c, there) in enumerate(zip(SMALL["depths"], SMALL["mid_chs"], where, strict=True))
    )
    with uninitialised():
        peer = timm.create_model(
            name, num_classes=5, drop_path_rate=0.2, blocks=blocks, self_attn_layer="halo",
            self_attn_kwargs=dict(block_size=2, halo_size=1),
        )  # fmt: skip
    with torch.device("meta"):
        ours = models.create_model(name, **SMALL, **KINDS[name])
    return model_pairs.same_weights(ours, peer)


@pytest.mark.parametrize("name", TIMM)
def test_parameters_are_those_of_timm(name):
    timm = pytest.importorskip("timm", reason="timm is the reference of this test")
    with uninitialised(), torch.device("meta"):
        ours, theirs = models.create_model(name), timm.create_model(name)
        description = models.describe(name)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    assert description.parameters == sum(p.numel() for p in theirs.parameters())
    assert description.input_size == timm.get_pretrained_cfg(name).input_size
    assert {m.block_size for m in ours.modules() if hasattr(m, "halo_size")} == {8}
    halos = [m.halo_size for m in ours.modules() if hasattr(m, "halo_size")]
    assert halos == [m.halo_size for m in theirs.modules() if hasattr(m, "halo_size")]
    heads = [m.num_heads for m in ours.modules() if hasattr(m, "halo_size")]
    assert heads == [m.num_heads for m in theirs.modules() if hasattr(m, "halo_size")]
    acts = [type(m) for m in ours.modules() if isinstance(m, torch.nn.ReLU | torch.nn.SiLU)]
    assert acts == [type(m) for m in theirs.modules() if isinstance(m, torch.nn.ReLU | torch.nn.SiLU)]


# Table 1 of the paper, in millions; H6 comes out as 43.46.
@pytest.mark.parametrize(
    "name, millions, exact",
    [
        ("h0", 5.5, 5_500_952), ("h1", 8.1, 8_100_056), ("h2", 9.4, 9_404_312), ("h3", 11.8, 11_841_304),
        ("h4", 19.1, 19_101_976), ("h5", 30.7, 30_717_272), ("h6", 43.4, 43_456_792), ("h7", 67.4, 67_433_240),
    ],
)  # fmt: skip
def test_published_parameter_counts(name, millions, exact):
    description = models.describe(f"halonet_{name}")
    assert description.parameters == exact and abs(exact / 1e6 - millions) < 0.06
    block, _, _, _, _, _, pixels = FAMILY[name]
    assert description.input_size == (3, pixels, pixels) and pixels % (32 * block) == 0


@pytest.mark.parametrize("name", KINDS)
def test_logits_and_maps_agree_with_timm(name):
    ours, theirs = small(name)
    for size in (64, (64, 128)):
        model_pairs.assert_logits_agree(ours, theirs, size)
    model_pairs.assert_intermediates_agree(ours, theirs, model_pairs.images(64, 1))


@pytest.mark.parametrize("name", KINDS)
def test_gradients_agree_with_timm(name):
    model_pairs.assert_gradients_agree(*small(name), model_pairs.images(64, 3))


def test_wider_values_are_those_of_timms_attention():
    """H5 to H7 have no peer, but their attention has: timm's, of another output size and head size."""
    peers = pytest.importorskip("timm.layers.halo_attn", reason="timm is the reference of this test")
    ours = models.create_model("halonet_h5", **SMALL | dict(value_ratio=2.5, out_ratio=2.0, final_chs=24))
    model_pairs.randomise(ours.eval())
    theirs = copy.deepcopy(ours)
    for index, (stage, channels) in enumerate(zip(theirs.stages, SMALL["mid_chs"], strict=True)):
        for number, block in enumerate(stage):
            assert block.conv3_1x1.conv.in_channels == int(2.5 * channels)
            peer = peers.HaloAttn(
                channels, int(2.5 * channels), stride=2 if index and not number else 1,
                dim_head=channels // 8, block_size=2, halo_size=1,
            )  # fmt: skip
            peer.load_state_dict(block.self_attn.state_dict())
            block.self_attn = peer
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    torch.testing.assert_close(ours.double().eval()(x), theirs.double().eval()(x), rtol=1e-9, atol=1e-9)
    model_pairs.assert_gradients_agree(ours, theirs, x)


def test_as_a_backbone():
    x = model_pairs.images(64, 2)
    model = models.create_model("halonet_h1", **SMALL | dict(drop_path_rate=0.0))
    model_pairs.assert_checkpointing_changes_nothing(model, x)
    model_pairs.assert_another_head(model, x)
    model_pairs.assert_maps("halonet_h1", 64, **SMALL)
    backbone = models.create_model("halonet_h1", features_only=True, out_indices=(1, 3), **SMALL)
    assert len(backbone.model.stages) == 3 and isinstance(backbone.model.get_classifier(), torch.nn.Identity)
    assert [one.shape[1] for one in backbone(x)] == [16, 32]


def test_decay_spares_relative_positions():
    model = models.create_model("halonet50ts", **SMALL, **KINDS["halonet50ts"])
    names = model.no_weight_decay()
    assert len(names) == 2 * 4 and all(name.endswith(("height_rel", "width_rel")) for name in names)


@pytest.mark.parametrize(
    "shape, message",
    [
        (
            (1, 3, 96, 64),
            r"HaloNet: blocks of tokens do not divide the image: got \(96, 64\); expected multiples of 64",
        ),
        ((1, 1, 64, 64), r"HaloNet: not a batch of images.*expected \(B, 3, height, width\)"),
    ],
)
def test_bad_images(shape, message):
    model = models.create_model("halonet_h1", **SMALL)
    assert model.input_rule == "image 3 x 256 x 256, or multiples of 64"
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(shape))
