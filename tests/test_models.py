"""Every architecture of timm's against timm, with the same random weights: logits, gradients, odd image sizes."""

import re

import pytest
import torch
from model_pairs import assert_logits_agree, pair, randomise
from uninitialised import uninitialised

import vitkern.models as models

timm = pytest.importorskip("timm", reason="timm is the reference of this file")

# All others have files of their own.
HERE = re.compile(r"vit_(tiny|small|base|large|huge)_patch(8|14|16|32)_\d+|(deit|swin|swinv2)_.+")
NAMES = [name for name in models.list_models() if HERE.fullmatch(name) and timm.is_model(name)]
# One block of each kind that a stage has is enough; the full depths are compared on the meta device.
SHALLOW = {
    "vit": dict(depth=2),
    "deit": dict(depth=2),
    "swin": dict(depths=(2, 2, 2, 1)),
    "swinv2": dict(depths=(2, 2, 2, 1)),
}


def shallow(name):
    family = name.split("_")[0]
    return (
        dict(SHALLOW[family])
        if "large" not in name and "huge" not in name
        else {"vit": dict(depth=1)}.get(family, dict(depths=(2, 1, 1, 1)))
    )


def distinct():
    """One name of those that differ in image size or number of classes alone: the test sets both."""
    seen = {}
    for name in NAMES:
        found = models.registry.resolve(name)
        arguments = {key: value for key, value in found.arguments.items() if key not in ("img_size", "num_classes")}
        seen.setdefault((name.split("_")[0], found.build, repr(arguments)), name)
    return list(seen.values())


@pytest.mark.walk(3)
@pytest.mark.parametrize("name", distinct())
def test_logits_agree_with_timm(name):
    patch = int(name.split("patch")[1].split("_")[0]) if "patch" in name else 4
    window = int(name.split("window")[1].split("_")[0].split("to")[-1]) if "window" in name else 0
    size = (3 * patch, 4 * patch) if not window else 2 * window * patch if window <= 8 else window * patch + 8 * patch
    overrides = shallow(name)
    if window > 12:
        overrides["depths"] = (2, 1, 1, 1)
    assert_logits_agree(*pair(name, img_size=size, num_classes=11, **overrides), size, batch=1)


@pytest.mark.walk(3)
@pytest.mark.parametrize("name", NAMES)
def test_parameters_are_those_of_timm(name):
    with uninitialised(), torch.device("meta"):
        ours, theirs = models.create_model(name), timm.create_model(name)
        description = models.describe(name)
    expected = {key: tuple(value.shape) for key, value in theirs.state_dict().items()}
    assert {key: tuple(value.shape) for key, value in ours.state_dict().items()} == expected
    assert description.parameters == sum(p.numel() for p in theirs.parameters())
    assert ours.num_classes == theirs.num_classes
    assert description.input_size == timm.get_pretrained_cfg(name).input_size
    assert {m.eps for m in ours.modules() if hasattr(m, "eps")} == {
        m.eps for m in theirs.modules() if hasattr(m, "eps")
    }


@pytest.mark.parametrize(
    "name, count",
    [
        ("vit_base_patch16_224", 86_567_656),
        ("vit_base_patch32_224", 88_224_232),
        ("vit_large_patch16_224", 304_326_632),
        ("deit_tiny_patch16_224", 5_717_416),
        ("deit_small_distilled_patch16_224", 22_436_432),
        ("deit_base_distilled_patch16_384", 87_630_032),
        ("swin_tiny_patch4_window7_224", 28_288_354),
        ("swin_small_patch4_window7_224", 49_606_258),
        ("swin_base_patch4_window12_384", 87_903_584),
        ("swin_large_patch4_window12_384", 196_735_516),
        ("swinv2_tiny_window8_256", 28_347_154),
        ("swinv2_base_window16_256", 87_918_816),
        ("swinv2_large_window12to16_192to256", 196_739_932),
    ],
)
def test_published_parameter_counts(name, count):
    with uninitialised():
        assert models.describe(name).parameters == count


def test_huge_with_a_head_has_the_published_count():
    with uninitialised(), torch.device("meta"):
        model = models.create_model("vit_huge_patch14_224", num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == 632_045_800


SMALL = dict(embed_dim=32, num_heads=(1, 2, 4, 8), depths=(2, 2, 2, 2), num_classes=7)
# Grids that the window does not divide, that are smaller than it in one direction or both, odd before merging,
# rectangular, one token thin.
SIZES = [(100, 100), (60, 92), (36, 20), (44, 120), (24, 100), (28, 28), (4, 40), (58, 43), (36, 36)]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_swin_at_any_size(name, size):
    assert_logits_agree(*pair(name, img_size=size, **SMALL), size)


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
@pytest.mark.parametrize(
    "options",
    [
        dict(window_size=(3, 5)),
        dict(window_size=[4, (3, 2), 2, 1]),
        dict(window_size=6, always_partition=True),
        dict(global_pool="max", in_chans=2),
        dict(global_pool="avgmax"),
        dict(global_pool=""),
        dict(num_classes=0),
        dict(qkv_bias=False, mlp_ratio=2.0),
    ],
    ids=str,
)
def test_swin_options(name, options):
    overrides = {**SMALL, **options}
    assert_logits_agree(*pair(name, img_size=(44, 68), **overrides), (44, 68), channels=overrides.get("in_chans", 3))


def test_swin_takes_other_sizes_when_asked():
    ours, theirs = pair("swin_tiny_patch4_window7_224", img_size=112, dynamic_img_size=True, **SMALL)
    for size in (112, (140, 60), (36, 200)):
        assert_logits_agree(ours, theirs, size)


def test_swin_v2_normalises_offsets_by_the_pretrained_window():
    options = dict(img_size=64, window_size=8, **SMALL)
    ours, theirs = pair("swinv2_tiny_window8_256", pretrained_window_sizes=(6, 6, 6, 3), **options)
    assert_logits_agree(ours, theirs, 64)
    plain, _ = pair("swinv2_tiny_window8_256", **options)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert (plain(x) - ours(x)).abs().max() > 1e-3


@pytest.mark.parametrize(
    "options",
    [
        dict(global_pool="avg"),
        dict(global_pool="max", fc_norm=False),
        dict(global_pool="avgmax", class_token=False),
        dict(global_pool=""),
        dict(num_classes=0),
        dict(init_values=0.1, qk_norm=True),
        dict(no_embed_class=True, reg_tokens=3),
        dict(qkv_bias=False, mlp_ratio=2.5, in_chans=1),
    ],
    ids=str,
)
def test_vit_options(options):
    overrides = dict(embed_dim=48, num_heads=3, depth=2, img_size=(48, 80), num_classes=7) | options
    assert_logits_agree(*pair("vit_tiny_patch16_224", **overrides), (48, 80), channels=overrides.get("in_chans", 3))


def test_vit_resamples_positions():
    ours, theirs = pair(
        "vit_tiny_patch16_224", embed_dim=48, num_heads=3, depth=1, img_size=64, num_classes=7, dynamic_img_size=True
    )
    for size in (64, (96, 32), (80, 112)):
        assert_logits_agree(ours, theirs, size)


def test_distilled_training_gives_both_heads():
    ours, theirs = pair(
        "deit_tiny_distilled_patch16_224", embed_dim=48, num_heads=3, depth=1, img_size=32, num_classes=5
    )
    for model in (ours, theirs):
        model.train().set_distilled_training(True)
    x = torch.randn(2, 3, 32, 32)
    for actual, expected in zip(ours(x), theirs(x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert ours.set_distilled_training(False) is None and ours(x).shape == (2, 5)


TRAINED = [
    ("vit_tiny_patch16_224", dict(embed_dim=48, num_heads=3, depth=2, img_size=48, num_classes=5, init_values=0.3), 48),
    ("deit_tiny_distilled_patch16_224", dict(embed_dim=48, num_heads=3, depth=2, img_size=48, num_classes=5), 48),
    ("swin_tiny_patch4_window7_224", dict(SMALL, img_size=(60, 76)), (60, 76)),
    ("swinv2_tiny_window8_256", dict(SMALL, img_size=(60, 76)), (60, 76)),
]
# Windows of 256 and 576 tokens, shifted and not, and one that the grid makes smaller: two stages, so that it is quick.
LARGE = dict(embed_dim=16, num_heads=(1, 2), depths=(2, 1), num_classes=5)
WIDE = [
    ("swinv2_tiny_window16_256", dict(LARGE, img_size=96), 96),
    ("swinv2_base_window12to16_192to256", dict(LARGE, img_size=96), 96),
    ("swinv2_base_window12to24_192to384", dict(LARGE, img_size=(112, 100)), (112, 100)),
]


@pytest.mark.parametrize("name, overrides, size", TRAINED + WIDE, ids=[t[0] for t in TRAINED + WIDE])
def test_gradients_agree_with_timm(name, overrides, size):
    """Training in float64 with DropPath: one seed drops the same samples, every parameter gets timm's gradient."""
    ours, theirs = pair(name, drop_path_rate=0.2, **overrides)
    x = torch.randn(4, 3, *((size, size) if isinstance(size, int) else size), dtype=torch.float64)
    results = []
    for model in (ours, theirs):
        model.double().train().zero_grad()
        if hasattr(model, "layers"):
            for module in model.modules():
                if hasattr(module, "init_non_persistent_buffers"):
                    module.init_non_persistent_buffers()
        image = x.clone().requires_grad_()
        torch.manual_seed(7)
        logits = model(image)
        logits.square().sum().backward()
        gradients = {key: p.grad for key, p in model.named_parameters()}
        results.append((logits.detach(), image.grad, gradients))
    (logits, d_image, gradients), (expected, d_expected, peers) = results
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(d_image, d_expected, rtol=1e-7, atol=1e-9 * d_expected.abs().max().item())
    assert gradients.keys() == peers.keys()
    for key, peer in peers.items():
        assert peer.abs().max() > 0, f"no signal in {key}"
        torch.testing.assert_close(
            gradients[key], peer, rtol=1e-7, atol=1e-9 * peer.abs().max().item(), msg=lambda m, key=key: f"{key}: {m}"
        )


@pytest.mark.parametrize("name, overrides, size", TRAINED, ids=[t[0] for t in TRAINED])
def test_gradient_checkpointing_changes_nothing(name, overrides, size):
    model = randomise(models.create_model(name, drop_path_rate=0.3, **overrides)).train()
    x = torch.randn(2, 3, *((size, size) if isinstance(size, int) else size))
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(3)
        model(x).sum().backward()
        found.append([p.grad.clone() for p in model.parameters()])
    for plain, checkpointed in zip(*found, strict=True):
        assert torch.equal(plain, checkpointed)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_initial_weights_follow_timm(name):
    """Deviations of each kind of parameter, and blocks of SwinV2 that start as the identity."""
    shape = dict(depth=1) if name.startswith("vit") else dict(depths=(1, 1, 1, 1))
    ours, theirs = models.create_model(name, **shape), timm.create_model(name, **shape)
    peers = dict(theirs.named_parameters())
    for key, p in ours.named_parameters():
        if p.numel() >= 1000:
            assert abs(p.std() - peers[key].std()) <= 0.1 * peers[key].std() + 1e-3, key
        assert abs(p.mean() - peers[key].mean()) <= 0.05, key
        if (peers[key] == 0).all():
            assert (p == 0).all(), key


@pytest.mark.parametrize("size", [(60, 64), (64, 60), (32, 32)])
def test_a_wrong_image_size_is_refused(size):
    model = models.create_model("swin_tiny_patch4_window7_224", img_size=64, **SMALL)
    with pytest.raises(ValueError, match=r"image size differs.*expected \(64, 64\)"):
        model(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match=r"not a batch of images.*expected \(B, 3, height, width\)"):
        model(torch.zeros(1, 4, 64, 64))


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda: models.create_model("vit_tiny_patch16_224", global_pool="mean"),
            "unknown pooling: got global_pool='mean'",
        ),
        (lambda: models.create_model("vit_tiny_patch16_224", class_token=False), "no token to pool"),
        (
            lambda: models.create_model("vit_tiny_patch16_224", num_heads=5),
            "do not split into heads: got dim=192, num_heads=5",
        ),
        (
            lambda: models.create_model("deit_tiny_distilled_patch16_224", global_pool="avg"),
            "class and the distillation token",
        ),
        (lambda: models.create_model("swin_tiny_patch4_window7_224", depths=(1, 1)), "stages do not fit each other"),
        (lambda: models.create_model("swin_tiny_patch4_window7_224", img_size=3), "holds no patch"),
        (lambda: models.create_model("swin_tiny_patch4_window7_224", window_size=0), "one positive entry per stage"),
        (lambda: models.create_model("swinv2_tiny_window8_256", pretrained_window_sizes=(8,)), "one entry per stage"),
        (lambda: models.create_model("swin_tiny_patch4_window7_224", drop_path_rate=1.0), "no probability"),
    ],
)
def test_arguments_that_do_not_fit(build, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build()
