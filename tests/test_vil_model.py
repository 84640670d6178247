"""ViL as a model: against the results of its authors' code, published sizes, checkpoints of memory, bad input."""

import copy
import pickle

import pytest
import stored
import torch

import vitkern.models as models
from vitkern.models.hierarchical.vil import VisionLongformer

MODES = {1: "exact", 0: "zero", -1: "cyclic"}
TINY = dict(img_size=16, num_classes=3, embed_dims=(8, 12), depths=(1, 2), num_heads=(2, 3), patch_sizes=(2, 2))
TINY |= dict(windows=(3, 0), num_global=(1, 2))


def stages(arch):
    """The authors' description, such as "l1,h1,d8,n1,s1,g1,p4,f3_l2,...", as arguments."""
    defaults = dict(s=1, g=1, p=2, f=7, a=1)
    found = [defaults | {part[0]: int(part[1:]) for part in stage.split(",")} for stage in arch.split("_")]
    names = dict(embed_dims="d", depths="n", num_heads="h", patch_sizes="p", num_global="g")
    arguments = {name: tuple(stage[key] for stage in found) for name, key in names.items()}
    return arguments | dict(windows=tuple(stage["f"] * stage["s"] for stage in found), ape=bool(found[0]["a"]))


@stored.each("vil_model_*")
def test_against_the_authors_code(path):
    config, tensors = stored.read(path)
    model = VisionLongformer(
        config["img_size"], num_classes=config["num_classes"], mode=MODES[config["sw_exact"]],
        global_pool="avg" if config["avg_pool"] else "token", norm_embed=config.get("norm_embed", False),
        share_weights=config["sharew"], **stages(config["arch"]),
    ).eval()  # fmt: skip
    stored.assert_stored(model, tensors, stored.with_features(model))


@pytest.mark.parametrize(
    "size, count",
    {
        "tiny": 6_705_640,
        "small": 24_632_872,
        "medium_deep": 39_718_312,
        "medium_wide": 39_772_776,
        "base_deep": 55_693_480,
        "base_wide": 78_994_024,
    }.items(),
)
def test_parameters_are_as_many_as_the_authors(size, count):
    description = models.describe(f"vil_{size}_window7_224")
    assert (description.parameters, description.input_size, description.num_classes) == (count, (3, 224, 224), 1000)


def test_checkpointing_draws_the_same_neighbour_again():
    model = VisionLongformer(**TINY | dict(num_global=(1, 1)), neighbors="one", drop_path_rate=0.3).train()
    x, gradients = torch.randn(4, 3, 16, 16), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        for seed in range(4):
            torch.manual_seed(seed)
            model.zero_grad()
            model(x).square().sum().backward()
            gradients.append([p.grad.clone() for p in model.parameters()])
    for plain, again in zip(gradients[:4], gradients[4:], strict=True):
        torch.testing.assert_close(again, plain)


@pytest.mark.parametrize(
    "changes", [{}, dict(ape=False), dict(share_weights=False, norm_embed=True, img_size=(16, 24))]
)
def test_copies_and_heads(changes):
    model = VisionLongformer(**TINY | changes).eval()
    x = torch.randn(2, 3, *model.patch_embed.img_size)
    expected = model(x)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other.load_state_dict(model.state_dict(), strict=True)
        torch.testing.assert_close(other(x), expected)
    headless = VisionLongformer(**TINY | changes | dict(num_classes=0, global_pool="token")).eval()
    headless.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("head")}, strict=True)
    torch.testing.assert_close(headless(x), model.forward_features(x)[:, 0])
    undecayed = model.no_weight_decay()
    assert "layer1.0.cls_token" in undecayed and "layer1.1.attn.query.weight" not in undecayed


BAD = {
    "lengths": (dict(depths=(1, 1, 1)), r"stages do not fit each other: got lengths \[2, 3, 2, 2, 2, 2\]"),
    "pool": (dict(global_pool="max"), "unknown pooling"),
    "token": (dict(global_pool="token", num_global=(1, 0)), "no token to pool"),
    "image": (dict(img_size=3), r"the image is smaller than a patch: got \(1, 1\), patch size 2"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=f"VisionLongformer: {message}"):
        VisionLongformer(**TINY | changes)


def test_an_image_of_another_size():
    with pytest.raises(ValueError, match=r"the image has another size: got \(16, 20\); expected \(16, 16\). Resize it"):
        VisionLongformer(**TINY)(torch.zeros(1, 3, 16, 20))


def test_the_model_compiles_whole():
    model, x = VisionLongformer(**TINY).eval(), torch.randn(2, 3, 16, 16)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
