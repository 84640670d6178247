"""ViTs behind a few convolutions against torchvision's, whose checkpoints load."""

import pytest
import torch
from model_pairs import (
    assert_another_head,
    assert_checkpointing_changes_nothing,
    assert_logits_agree,
    assert_maps,
    images,
    randomise,
    step,
)
from uninitialised import uninitialised

import vitkern.models as models

torchvision = pytest.importorskip("torchvision", reason="torchvision is the reference of this file")
from torchvision.models.vision_transformer import ConvStemConfig, VisionTransformer  # noqa: E402

NAMES = models.list_models("vit_[cp]_*gf_224")
COUNTS = {
    "vit_c_1gf_224": 4_567_936,
    "vit_c_4gf_224": 17_754_136,
    "vit_c_18gf_224": 81_573_160,
    "vit_c_36gf_224": 167_796_008,
    "vit_p_1gf_224": 4_830_376,
    "vit_p_4gf_224": 18_507_112,
    "vit_p_18gf_224": 86_567_656,
    "vit_p_36gf_224": 178_364_392,
}
SMALL = dict(embed_dim=24, num_heads=2, depth=2, mlp_ratio=3.0, num_classes=5)


def peer_of(arguments):
    """torchvision's model of our arguments."""
    convolutions = zip(arguments.get("channels", ()), arguments.get("strides", ()), strict=True)
    return VisionTransformer(
        image_size=arguments.get("img_size", 224),
        patch_size=16,
        num_layers=arguments["depth"],
        num_heads=arguments["num_heads"],
        hidden_dim=arguments["embed_dim"],
        mlp_dim=int(arguments["embed_dim"] * arguments["mlp_ratio"]),
        num_classes=arguments.get("num_classes", 1000),
        conv_stem_configs=[ConvStemConfig(width, 3, stride) for width, stride in convolutions] or None,
    )


def converted(theirs):
    return models.convert_state_dict(theirs.state_dict(), "torchvision_vit")


def test_there_is_every_size():
    assert set(NAMES) == set(COUNTS)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_torchvision(name):
    found = models.registry.resolve(name)
    wide = dict(channels=(64, 128, 128, 256, 256, 512), strides=(2, 2, 1, 2, 1, 2)) if name.startswith("vit_c") else {}
    with uninitialised(), torch.device("meta"):
        ours, theirs = models.create_model(name), peer_of({**wide, **found.arguments})
    assert models.describe(name).parameters == COUNTS[name] == sum(p.numel() for p in theirs.parameters())
    assert models.tables.detect_family(theirs.state_dict()) == "torchvision_vit"
    shapes = {key: value.shape for key, value in converted(theirs).items()}
    assert shapes == {key: value.shape for key, value in ours.state_dict().items()}


STEMS = pytest.mark.parametrize("stem", [dict(channels=(8, 8, 12, 12), strides=(2, 2, 2, 2)), dict(), None], ids=str)


def built(stem):
    """(ours, torchvision's) with the same random weights; no stem: patches."""
    name = "vit_p_1gf_224" if stem is None else "vit_c_18gf_224"
    wide = dict(channels=(64, 128, 128, 256, 256, 512), strides=(2, 2, 1, 2, 1, 2)) if stem == {} else stem or {}
    ours = models.create_model(name, **SMALL, **(stem or {}), img_size=48)
    theirs = randomise(peer_of({**SMALL, **wide, "img_size": 48})).eval()
    ours.load_state_dict(converted(theirs), strict=True)
    return ours.eval(), theirs


@STEMS
def test_logits_agree_with_torchvision(stem):
    assert_logits_agree(*built(stem), 48)


@STEMS
def test_gradients_agree_with_torchvision(stem):
    (ours, theirs), x = built(stem), images(48)
    (logits, d_image, gradients), (expected, d_expected, peers) = step(ours, x), step(theirs, x)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d_image, d_expected, rtol=1e-7, atol=1e-9 * d_expected.abs().max().item())
    renamed = models.convert_state_dict(peers, "torchvision_vit")
    assert gradients.keys() == renamed.keys()
    largest = max(peer.abs().max().item() for peer in renamed.values())
    for key, peer in renamed.items():
        torch.testing.assert_close(gradients[key], peer, rtol=1e-7, atol=1e-10 * largest, msg=key)


def test_names_go_there_and_back():
    """The table renames one to one, so a checkpoint of ours is one of torchvision's under the names turned round."""
    stem = dict(channels=(8, 8, 12, 12), strides=(2, 2, 2, 2))
    ours, theirs = models.create_model("vit_c_1gf_224", **SMALL, **stem), peer_of({**SMALL, **stem})
    numbers = {key: torch.tensor(index) for index, key in enumerate(theirs.state_dict())}
    back = {name: list(numbers)[index] for name, index in models.convert_state_dict(numbers, "torchvision_vit").items()}
    theirs.load_state_dict({back[name]: value for name, value in randomise(ours).state_dict().items()}, strict=True)
    assert_logits_agree(ours.eval(), theirs.eval(), 224, batch=1)


def test_any_size_and_as_a_backbone():
    options = {**SMALL, "channels": (8, 8, 12, 12), "strides": (2, 2, 2, 2), "depth": 3}
    model = models.create_model("vit_c_1gf_224", **options, img_size=(40, 50), dynamic_img_size=True).eval()
    assert model.patch_embed.grid_size == (3, 4)
    assert model(images((32, 48))).shape == (2, 5)
    assert_maps("vit_c_1gf_224", 48, **options, img_size=48)
    model = models.create_model("vit_c_1gf_224", **options, img_size=(40, 50))
    assert_another_head(model, images((40, 50)))
    assert_checkpointing_changes_nothing(model.train(), images((40, 50)))


def test_bad_input():
    with pytest.raises(ValueError, match=r"convolutions do not fit the patch.*strides=\(2, 2, 2\), patch_size=16"):
        models.create_model("vit_c_1gf_224", strides=(2, 2, 2), channels=(8, 8, 8))
    model = models.create_model("vit_c_1gf_224", **SMALL, img_size=64)
    with pytest.raises(ValueError, match=r"ConvStem: the image size differs.*got \(32, 64\); expected \(64, 64\)"):
        model(torch.zeros(1, 3, 32, 64))
