"""NAT and DiNAT: blocks, levels and models against the results of their authors' code, published sizes, bad input."""

import copy
import pickle

import pytest
import stored
import torch

import vitkern.models as models
from vitkern.models.hierarchical.nat import Block, Level, NeighborhoodTransformer

TINY = dict(img_size=28, num_classes=3, embed_dim=8, depths=(2, 1), num_heads=(2, 4), kernel_size=3)


@stored.each("nat_layer_*")
def test_block_against_the_authors_code(path):
    config, tensors = stored.read(path)
    del config["input"]
    stored.assert_stored(Block(**config), tensors)


@stored.each("nat_block_*")
def test_level_against_the_authors_code(path):
    config, tensors = stored.read(path)
    names = "dim", "num_heads", "kernel_size", "dilations", "downsample", "mlp_ratio"
    level = Level(**{name: config[name] for name in names}, drop_path=[0.0] * config["depth"], eps=1e-5)
    stored.assert_stored(level, tensors)


@stored.each("nat_model_*")
def test_model_against_the_authors_code(path):
    config, tensors = stored.read(path)
    del config["input"]
    model = NeighborhoodTransformer(**config).eval()
    stored.assert_stored(model, tensors, stored.with_features(model))


@pytest.mark.parametrize(
    "name, count",
    {
        "dinat_mini": 19_984_174,
        "dinat_tiny": 27_901_582,
        "dinat_small": 50_719_681,
        "dinat_base": 89_769_652,
        "dinat_large": 200_943_514,
        "nat_mini": 19_984_174,
        "nat_tiny": 27_901_582,
        "nat_base": 89_769_652,
    }.items(),
)
def test_parameters_are_as_many_as_the_authors(name, count):
    description = models.describe(name)
    assert (description.parameters, description.input_size, description.num_classes) == (count, (3, 224, 224), 1000)


@pytest.mark.parametrize("name", models.list_models("dinat_*"))
def test_dilated_windows_fit_the_image_that_a_model_is_made_for(name):
    with torch.device("meta"):
        model = models.create_model(name)
    size = model.patch_embed.img_size[0] // 4
    for level in model.levels:
        largest = max(block.attn.dilation[0] * block.attn.kernel_size[0] for block in level.blocks)
        assert largest <= size
        assert largest + level.blocks[0].attn.kernel_size[0] > size or "11x11" in name
        size //= 2


def test_layer_scale_is_where_the_authors_have_it():
    scaled = {name for name in models.list_models("*nat_*") if "layer_scale" in models.describe(name).arguments}
    assert scaled == {"nat_small", "nat_base", "dinat_base"}


@pytest.mark.parametrize("size", [(36, 52), (13, 30), (4, 4), (1, 1)])
def test_images_of_any_size(size):
    """Maps that are smaller than the window are padded, so a batch of one image equals that image in a batch."""
    model = NeighborhoodTransformer(**TINY, dilations=((1, 2), (3,))).eval()
    x = torch.randn(3, 3, *size)
    out = model(x)
    assert out.shape == (3, 3) and out.isfinite().all()
    torch.testing.assert_close(model(x[1:2]), out[1:2])
    tokens = model.forward_features(x)
    assert tokens.shape == (3, -(-size[0] // 8), -(-size[1] // 8), 16)


def test_checkpointing_gives_the_same_gradients():
    model = NeighborhoodTransformer(**TINY, drop_path_rate=0.5, layer_scale=0.3).train()
    x, gradients = torch.randn(4, 3, 28, 28), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        torch.manual_seed(0)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(*gradients, strict=True):
        torch.testing.assert_close(again, plain)


def test_stochastic_depth_drops_whole_branches():
    model = NeighborhoodTransformer(**TINY, drop_path_rate=0.999).train()
    block, x = model.levels[1].blocks[0], torch.randn(2, 4, 4, 16)
    assert block.drop_path.drop_prob == pytest.approx(0.999) and model.levels[0].blocks[0].drop_path.drop_prob == 0.0
    torch.manual_seed(1)
    torch.testing.assert_close(block(x), x)


@pytest.mark.parametrize("changes", [{}, dict(layer_scale=0.1, dilations=((1, 2), (2,)), qkv_bias=False)])
def test_copies_heads_and_decay(changes):
    model = NeighborhoodTransformer(**TINY, **changes).eval()
    x = torch.randn(2, 3, 28, 28)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.load_state_dict(model.state_dict(), strict=True)
        torch.testing.assert_close(other(x), expected)
    headless = NeighborhoodTransformer(**TINY | changes | dict(num_classes=0)).eval()
    headless.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head")}, strict=True)
    torch.testing.assert_close(headless(x), model.forward_features(x).mean((1, 2)))
    undecayed = model.no_weight_decay()
    assert undecayed == {f"levels.{level}.blocks.{n}.attn.rpb" for level, n in ((0, 0), (0, 1), (1, 0))}


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(num_heads=(2,)), r"levels do not fit each other: got depths=\(2, 1\), num_heads=\(2,\)"),
        (dict(dilations=((1,), (1,))), r"levels do not fit each other.*dilations=\(\(1,\), \(1,\)\)"),
        (dict(num_heads=(3, 4)), "channels do not split into heads: got dim=8, num_heads=3"),
        (dict(kernel_size=4), r"the kernel has no centre: got kernel_size=\(4, 4\)"),
        (dict(dilations=((1, 0), (1,))), r"the dilation is not usable: got dilation=\(0, 0\)"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        NeighborhoodTransformer(**TINY | changes)
