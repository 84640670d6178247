"""Published weights: out of a cache that the test fills, strictly; without it one line says what could not be had."""

import pytest
import torch
from test_models import randomise

import vitkern.models as models

safetensors = pytest.importorskip("safetensors.torch", reason="published weights are such files")
constants = pytest.importorskip("huggingface_hub.constants", reason="it keeps what it fetched")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """``cache(hub id, state dict)`` keeps a file as huggingface_hub does; there is no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def fill(name, state):
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        (folder / "snapshots" / ("0" * 40)).mkdir(parents=True)
        safetensors.save_file(state, folder / "snapshots" / ("0" * 40) / "model.safetensors")

    return fill


def test_timm_publishes_by_name(cache):
    timm = pytest.importorskip("timm", reason="it fetches these")
    theirs = randomise(timm.create_model("vit_tiny_patch16_224"))
    cache(timm.get_pretrained_cfg("vit_tiny_patch16_224").hf_hub_id, theirs.state_dict())
    for name in ("vit_tiny_patch16_224", "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"):
        ours = models.create_model(name, pretrained=True)
        assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    smaller = models.create_model("vit_tiny_patch16_224", pretrained=True, img_size=64, num_classes=3)
    assert smaller.pos_embed.shape == (1, 17, 192) and smaller.head.weight.shape == (3, 192)
    assert torch.equal(smaller.blocks[3].mlp.fc1.weight, theirs.blocks[3].mlp.fc1.weight)
    with pytest.raises(
        ValueError, match=r"do not fit: got blocks.2.*as 'vit_tiny_patch16_224' names it. Leave out dep"
    ):
        models.create_model("vit_tiny_patch16_224", pretrained=True, depth=2)
    maps = models.create_model("vit_tiny_patch16_224", pretrained=True, features_only=True, out_indices=[1])
    assert torch.equal(maps.model.blocks[1].norm1.weight, theirs.blocks[1].norm1.weight)


def test_transformers_publishes_by_hub_id(cache):
    transformers = pytest.importorskip("transformers", reason="its names are converted")
    name = "facebook/deit-tiny-patch16-224"
    config = transformers.AutoConfig.for_model(**models.hub.config(name))
    theirs = randomise(transformers.ViTForImageClassification(config)).eval()
    cache(name, theirs.state_dict())
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        ours = models.create_model(name, pretrained=True).eval()(image)
        torch.testing.assert_close(ours, theirs(image).logits, rtol=1e-5, atol=1e-5)


def test_models_of_tokens_are_published_under_names_of_the_hub(cache):
    transformers = pytest.importorskip("transformers", reason="its names are converted")
    config = transformers.BertConfig(vocab_size=9, hidden_size=8, num_attention_heads=1, num_hidden_layers=1)
    theirs = transformers.BertForPreTraining(config).eval()
    whole = theirs.state_dict().items()
    state = {key: value.clone() for key, value in whole if not key.startswith("cls.predictions.d")}
    cache("google-bert/bert-base-uncased", state)
    shape = dict(vocab_size=9, dim=8, num_heads=1, depth=1)
    ours, tokens = models.create_model("bert_base", pretrained=True, **shape).eval(), torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs.bert(tokens).pooler_output, rtol=1e-5, atol=1e-5)
    with pytest.raises(OSError, match=r"could not be fetched: .*Download model.safetensors of openai/imagegpt-small"):
        models.create_model("igpt_small", pretrained=True, depth=1)


PYRAMIDS = {
    "pvt_tiny": (
        "Zetatech/pvt-tiny-224",
        "Pvt",
        dict(hidden_sizes=[8] * 4, depths=[1] * 4, num_attention_heads=[1] * 4, mlp_ratios=[2] * 4, num_labels=1000),
        dict(embed_dims=(8,) * 4, depths=(1,) * 4, num_heads=(1,) * 4, mlp_ratios=(2,) * 4, embed_eps=1e-6),
    ),
    "cvt_w24_384": (
        "microsoft/cvt-w24-384-22k",
        "Cvt",
        dict(embed_dim=[8] * 3, depth=[1, 2, 3], num_heads=[1] * 3, mlp_ratio=[2.0] * 3, num_labels=1000),
        dict(embed_dims=(8,) * 3, depths=(1, 2, 3), num_heads=(1,) * 3, mlp_ratios=(2.0,) * 3),
    ),
}


@pytest.mark.parametrize("name", PYRAMIDS)
def test_pyramids_are_published_by_transformers(cache, name):
    transformers = pytest.importorskip("transformers", reason="its names are converted")
    hub_id, kind, config, shape = PYRAMIDS[name]
    theirs = getattr(transformers, f"{kind}ForImageClassification")(getattr(transformers, f"{kind}Config")(**config))
    cache(hub_id, randomise(theirs.eval()).state_dict())
    image = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        for asked in (name, hub_id):
            ours = models.create_model(asked, pretrained=True, **shape).eval()(image)
            torch.testing.assert_close(ours, theirs(image).logits, rtol=1e-4, atol=1e-4)


def test_detectors_have_an_address(cache):
    small = dict(embed_dim=32, hidden_dim=8, depths=(1, 1), backbone_depths=(1, 1, 1, 1), backbone_width=8)
    for name in models.list_models("deformable_detr*"):
        hub_id = f"SenseTime/{name.replace('_', '-')}"
        with pytest.raises(OSError, match=rf"could not be fetched: .*Download model.safetensors of {hub_id}, and"):
            models.create_model(name, pretrained=True, **small)


@pytest.mark.parametrize("name", ["facebook/deit-tiny-patch16-224", "vit_tiny_patch16_224"])
def test_what_cannot_be_fetched_is_said_in_one_line(cache, name):
    pytest.importorskip("timm", reason="it fetches one of these")
    with pytest.raises(
        OSError, match=rf"the weights of '{name}' could not be fetched: .*Download .*weights=<path>"
    ) as at:
        models.create_model(name, pretrained=True)
    assert "\n" not in str(at.value)


@pytest.mark.parametrize(
    "name, said",
    [
        ("nat_mini", "no library publishes weights under this name: got 'nat_mini'"),
        ("vit_tiny_patch16_224.no_such_tag", "no library publishes weights under this name"),
        ("vit_large_patch14_224", r"timm has this model without weights: got 'vit_large_patch14_224'.*list_pretrained"),
    ],
)
def test_what_nobody_publishes_is_refused(name, said):
    pytest.importorskip("timm", reason="its list is asked")
    with pytest.raises(ValueError, match=said):
        models.create_model(name, pretrained=True, depth=1) if "vit_l" in name else models.create_model(
            name, pretrained=True
        )


def test_one_source_of_weights(tmp_path):
    with pytest.raises(ValueError, match="two sources of weights: got pretrained=True and weights="):
        models.create_model("vit_tiny_patch16_224", pretrained=True, weights=tmp_path / "w.pth")
