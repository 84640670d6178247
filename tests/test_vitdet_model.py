"""ViTDet against transformers' and against its stored results; its pyramids against what they are made of."""

import pytest
import stored
import torch
import torch.nn.functional as F
from model_pairs import (
    assert_checkpointing_changes_nothing,
    assert_maps,
    images,
    randomise,
    step,
)
from uninitialised import uninitialised

import vitkern.models as models
from vitkern.models.plain.vitdet import ViTDet, quarters
from vitkern.models.plain.vitdet_pyramid import FeaturePyramid, SimpleFeaturePyramid

SMALL = dict(embed_dim=32, num_heads=2, depth=4, img_size=128, window_size=3, pretrain_img_size=64)


def converted(tensors):
    return models.convert_state_dict(tensors, "transformers_vitdet")


@stored.each("vitdet_backbone")
def test_backbone_against_transformers_stored(path):
    config, tensors = stored.read(path)
    model = ViTDet(
        img_size=config["image_size"],
        pretrain_img_size=config["pretrain_image_size"],
        patch_size=config["patch_size"],
        embed_dim=config["hidden_size"],
        depth=config["num_hidden_layers"],
        num_heads=config["num_attention_heads"],
        mlp_ratio=config["mlp_ratio"],
        window_size=config["window_size"],
        global_blocks=[1],
    )
    renamed = {name: value for name, value in tensors.items() if not name.startswith(("weights.", "grad.weights."))}
    for kind in ("weights.", "grad.weights."):
        found = {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        renamed |= {kind + name: value for name, value in converted(found).items()}
    stored.assert_stored(model.eval(), renamed)


def peer_of(**options):
    """transformers' model of `SMALL`."""
    transformers = pytest.importorskip("transformers", reason="transformers is the reference of this test")
    config = transformers.VitDetConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=128,
        pretrain_image_size=64,
        window_size=3,
        window_block_indices=[index for index in range(4) if index not in (1, 3)],
        use_relative_position_embeddings=True,
        **options,
    )
    return transformers.VitDetBackbone(config)


def built():
    theirs = randomise(peer_of()).eval()
    ours = ViTDet(**SMALL, global_blocks=(1, 3)).eval()
    ours.load_state_dict(converted(theirs.state_dict()), strict=True)
    return ours, theirs


@pytest.mark.parametrize("size", [(128, 128), (80, 176), (16, 48)], ids=str)
def test_maps_in_place_of_logits_agree_with_transformers(size):
    ours, theirs = built()
    x = images(size)
    with torch.no_grad():
        expected, actual = theirs(x).feature_maps[-1], ours(x)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_gradients_agree_with_transformers():
    ours, theirs = built()

    class Map(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = theirs

        def forward(self, x):
            return self.inner(x).feature_maps[-1]

    x = images((80, 112))
    (y, d_image, gradients), (expected, d_expected, peers) = step(ours, x), step(Map(), x)
    torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
    torch.testing.assert_close(d_image, d_expected, rtol=1e-7, atol=1e-9 * d_expected.abs().max().item())
    renamed = converted({key.removeprefix("inner."): value for key, value in peers.items()})
    assert gradients.keys() == renamed.keys()
    largest = max(peer.abs().max().item() for peer in renamed.values())
    for key, peer in renamed.items():
        torch.testing.assert_close(gradients[key], peer, rtol=1e-7, atol=1e-10 * largest, msg=key)


def test_names_go_there_and_back():
    ours, theirs = ViTDet(**SMALL, global_blocks=(1, 3)), peer_of()
    numbers = {key: torch.tensor(index) for index, key in enumerate(theirs.state_dict())}
    assert models.tables.detect_family(numbers) == "transformers_vitdet"
    back = {name: list(numbers)[index] for name, index in converted(numbers).items()}
    theirs.load_state_dict({back[name]: value for name, value in ours.state_dict().items()}, strict=True)


@pytest.mark.parametrize(
    "name, count", [("vitdet_base", 85_889_024), ("vitdet_large", 303_432_704), ("vitdet_huge", 631_116_800)]
)
def test_parameters_are_those_of_transformers(name, count):
    found = models.describe(name)
    assert (found.parameters, found.input_size, found.num_classes) == (count, (3, 1024, 1024), 0)
    with uninitialised(), torch.device("meta"):
        model = models.create_model(name)
    whole = [index for index, block in enumerate(model.blocks) if block.attn.window_size is None]
    assert tuple(whole) == {12: (2, 5, 8, 11), 24: (5, 11, 17, 23), 32: (7, 15, 23, 31)}[len(model.blocks)]
    if name == "vitdet_base":
        transformers = pytest.importorskip("transformers", reason="transformers is the reference of this test")
        others = [index for index in range(12) if index not in whole]
        config = transformers.VitDetConfig(
            image_size=1024, window_size=14, window_block_indices=others, use_relative_position_embeddings=True
        )
        with torch.device("meta"):
            peer = transformers.VitDetBackbone(config)
        shapes = {key: value.shape for key, value in converted(peer.state_dict()).items()}
        assert shapes == {key: value.shape for key, value in model.state_dict().items()}


PYRAMIDS = {"vitdet_base_simple_pyramid": SimpleFeaturePyramid, "vitdet_base_fpn": FeaturePyramid}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramids_have_maps_of_five_strides(name):
    options = dict(SMALL, out_channels=8)
    model, x = models.create_model(name, **options).eval(), images((96, 64), 1)
    assert type(model) is PYRAMIDS[name] and model.input_size == (3, 128, 128)
    assert [tuple(one.shape) for one in model(x)] == [(1, 8, -(-96 // s), -(-64 // s)) for s in (4, 8, 16, 32, 64)]
    assert_maps(name, (96, 64), **options)
    assert_checkpointing_changes_nothing(model, x)
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.parameters())


def channel_norm(x, norm):
    """The formula, over the channels of a map."""
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, unbiased=False) + norm.eps).sqrt()
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def test_maps_in_place_of_logits_of_the_simple_pyramid_are_the_papers():
    """Names and steps of detectron2's `SimpleFeaturePyramid` of scales 4, 2, 1 and 1/2."""
    model = randomise(SimpleFeaturePyramid(**SMALL, out_channels=8)).eval()
    parts, x = dict(model.named_modules()), images(64, 1)
    last = model.net(x)

    def out(name, x, first):
        for index, padding in ((first, 0), (first + 1, 1)):
            conv = parts[f"{name}.{index}"]
            x = channel_norm(F.conv2d(x, conv.weight, padding=padding), conv.norm)
        return x

    up = [parts[f"simfp_2.{index}"] for index in (0, 1, 3)]
    finest = F.gelu(channel_norm(F.conv_transpose2d(last, up[0].weight, up[0].bias, 2), up[1]))
    up8 = parts["simfp_3.0"]
    expected = [
        out("simfp_2", F.conv_transpose2d(finest, up[2].weight, up[2].bias, 2), 4),
        out("simfp_3", F.conv_transpose2d(last, up8.weight, up8.bias, 2), 1),
        out("simfp_4", last, 0),
        out("simfp_5", F.max_pool2d(last, 2, 2), 1),
    ]
    expected.append(expected[-1][:, :, ::2, ::2])
    for one, other in zip(model(x), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def test_maps_in_place_of_logits_of_the_other_pyramid_are_torchvisions():
    """Four blocks, brought to four scales, through torchvision's FPN with the same weights."""
    torchvision = pytest.importorskip("torchvision", reason="torchvision is the reference of this test")
    model = randomise(FeaturePyramid(**SMALL, out_channels=8)).eval()
    peer = torchvision.ops.FeaturePyramidNetwork(
        [32] * 4, 8, torchvision.ops.feature_pyramid_network.LastLevelMaxPool()
    )
    own = {key: value for key, value in model.state_dict().items() if key.startswith(("inner_", "layer_"))}
    peer.load_state_dict(own, strict=True)
    x = images((64, 96), 1)
    blocks = model.net.forward_intermediates(x, quarters(4), intermediates_only=True)
    scaled = {str(index): scale(block) for index, (scale, block) in enumerate(zip(model.scaling, blocks, strict=True))}
    assert [one.shape[-1] for one in scaled.values()] == [24, 12, 6, 3]
    for one, other in zip(model(x), peer(scaled).values(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_as_a_backbone():
    assert_maps("vitdet_base", (96, 64), **SMALL)
    model = ViTDet(**SMALL, num_classes=3)
    assert model(images((32, 48))).shape == (2, 3)
    model.reset_classifier(4)
    assert model(images((32, 48))).shape == (2, 4)
    model.reset_classifier(0)
    assert model(images((32, 48))).shape == (2, 32, 2, 3)
    assert_checkpointing_changes_nothing(model, images((48, 64)))


def test_sizes_that_are_no_patches_are_refused():
    with pytest.raises(ValueError, match=r"patches do not divide the image: got \(72, 64\); expected multiples of"):
        ViTDet(**SMALL)(torch.zeros(1, 3, 72, 64))
