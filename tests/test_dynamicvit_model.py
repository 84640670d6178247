"""DynamicViT: its predictor, the model in training and at inference, and its losses, against the results
of the authors' code; published sizes, maps, bad input."""

import copy

import pytest
import stored
import torch
import torch.nn.functional as F

import vitkern.models as models
from vitkern.models import FeatureMaps
from vitkern.models.plain.vit import VisionTransformer
from vitkern.models.tokens.dynamic_vit import DynamicVisionTransformer, Predictor, Pruned
from vitkern.models.tokens.pruning_loss import PruningLoss, taught

TINY = dict(img_size=32, patch_size=8, num_classes=5, embed_dim=16, depth=4, num_heads=2)
SMALL = dict(**TINY, pruning_loc=(1, 2), token_ratio=(0.75, 0.5))


def model_of(config):
    names = [name for name in config if name not in ("input", "distill")]
    return DynamicVisionTransformer(**{name: config[name] for name in names})


@stored.each("dynamicvit_predictor")
def test_the_predictor_against_the_authors_code(path):
    config, tensors = stored.read(path)
    tensors = {name: t[..., 0] if name == "input.policy" else t for name, t in tensors.items()}
    tensors["grad.input.policy"] = tensors["grad.input.policy"][..., 0]
    stored.assert_stored(Predictor(config["embed_dim"]), tensors, inputs=("x", "policy"))


@stored.each("dynamicvit_inference")
def test_inference_against_the_authors_code(path):
    """Logits, gradients, and which patches each stage keeps: a row of theirs is of what the one before has kept."""
    config, tensors = stored.read(path)
    model = model_of(config).eval()
    stored.load(model, tensors)
    image = tensors["input.x"].clone().requires_grad_()
    logits = model(image)
    stored.assert_close(logits, tensors["output.y"], "y")
    graded = {name: p for name, p in model.named_parameters() if not name.startswith("score_predictor")}
    grads = torch.autograd.grad(logits, [image, *graded.values()], tensors["cotangent.y"])
    expected = [tensors["grad.input.x"], *[tensors[f"grad.weights.{name}"] for name in graded]]
    for name, grad, wanted in zip(["x", *graded], grads, expected, strict=True):
        stored.assert_close(grad, wanted, name, max(t.abs().max().item() for t in expected))
    places = torch.arange(196).expand(2, -1)
    for stage, found in enumerate(model.forward_intermediates(image, config["pruning_loc"], intermediates_only=True)):
        places = places.gather(1, tensors[f"output.kept_with_cls.{stage}"][:, 1:].long() - 1)
        kept = found.ne(0).any(1).flatten(1)  # (B, N)
        assert torch.equal(kept, torch.zeros_like(kept).scatter(1, places, True)), stage


@stored.each("dynamicvit_train")
def test_training_against_the_authors_code(path, monkeypatch):
    config, tensors = stored.read(path)
    noise = iter(tensors[f"input.gumbel.{stage}"] for stage in range(3))

    def gumbel_softmax(logits, hard):
        soft = (logits + next(noise)).softmax(-1)
        return torch.zeros_like(soft).scatter(-1, soft.argmax(-1, keepdim=True), 1.0) - soft.detach() + soft

    monkeypatch.setattr(F, "gumbel_softmax", gumbel_softmax)
    model = model_of(config).train()
    stored.load(model, tensors)
    image = tensors["input.x"].clone().requires_grad_()
    out = model(image)
    found = {"y": out.logits, "features": out.tokens}
    found |= {f"decision.{stage}": keep for stage, keep in enumerate(out.decisions)}
    for name, result in found.items():
        stored.assert_close(result, tensors[f"output.{name}"], name)
    assert torch.equal(out.mask[..., None], tensors["output.final_decision"]) and not out.mask.requires_grad
    sum((result * tensors[f"cotangent.{name}"]).sum() for name, result in found.items()).backward()
    expected = {name: tensors[f"grad.weights.{name}"] for name, _ in model.named_parameters()}
    largest = max(grad.abs().max().item() for grad in expected.values())
    for name, parameter in model.named_parameters():
        stored.assert_close(parameter.grad, expected[name], name, largest)
    stored.assert_close(image.grad, tensors["grad.input.x"], "x")


@stored.each("dynamicvit_loss_*")
def test_losses_against_the_authors_code(path):
    config, tensors = stored.read(path)
    given = {name.removeprefix("input."): t for name, t in tensors.items() if name.startswith("input.")}
    leaves = {name: t.requires_grad_() for name, t in given.items() if f"grad.input.{name}" in tensors}
    decisions = [given[f"decision_{stage}"] for stage in range(3)]
    out = Pruned(given["pred"], given["token_pred"], decisions[-1].detach(), decisions)
    loss = PruningLoss(
        config["keep_ratio"],
        **{name: config[name] for name in ("ratio_weight", "distill_weight", "clf_weight", "mse_token", "dynamic")},
    )
    teacher = given["teacher_pred"], given["teacher_tokens"]
    terms = loss.terms(out, given["labels"], teacher)
    names = dict(classes="cls_loss", ratio="ratio_loss", logits="cls_kl", tokens="token_loss")
    for own, name in names.items():
        stored.assert_close(terms[own].reshape_as(tensors[f"output.{name}"]), tensors[f"output.{name}"], name)
    whole = loss(out, given["labels"], teacher)
    stored.assert_close(whole.reshape_as(tensors["output.y"]), tensors["output.y"], "y")
    grads = torch.autograd.grad(whole, list(leaves.values()), tensors["cotangent.y"].reshape_as(whole))
    for name, grad in zip(leaves, grads, strict=True):
        stored.assert_close(grad, tensors[f"grad.input.{name}"], name)


@pytest.mark.parametrize("size, count", [("s", 22_774_414), ("b", 89_452_846), ("256", 10_304_942)])
def test_parameters_are_as_many_as_the_authors(size, count):
    description = models.describe(f"dynamicvit_deit_{size}")
    assert (description.parameters, description.input_size, description.num_classes) == (count, (3, 224, 224), 1000)


def without_predictors(model):
    return {key: value for key, value in model.state_dict().items() if not key.startswith("score_predictor")}


def test_a_model_that_keeps_all_is_a_vit():
    """Its tokens are in another order, which a ViT does not see; in training without one stage it is a ViT, too."""
    vit, images = VisionTransformer(**TINY).eval(), torch.randn(2, 3, 32, 32)
    whole = DynamicVisionTransformer(**TINY, pruning_loc=(1, 3), token_ratio=(1.0, 1.0)).eval()
    plain = DynamicVisionTransformer(**TINY, pruning_loc=(), token_ratio=()).train()
    expected = vit(images)
    for model in (whole, plain):
        found = model.load_state_dict(vit.state_dict(), strict=False)
        assert not found.unexpected_keys and without_predictors(model).keys() == vit.state_dict().keys()
    torch.testing.assert_close(whole(images), expected, rtol=1e-5, atol=1e-5)
    out = plain(images)
    torch.testing.assert_close(out.logits, expected, rtol=1e-5, atol=1e-5)
    assert out.mask.eq(1).all() and out.mask.shape == (2, 16) and not out.decisions
    found, (first, *_, last) = whole.forward_intermediates(images)
    _, (own, *_, other) = vit.forward_intermediates(images)
    torch.testing.assert_close(first, own, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(last, other, rtol=1e-5, atol=1e-5)


def test_dropped_tokens_count_for_nothing():
    """What training computes with hard decisions is what inference computes of the tokens that these keep."""
    model, images = DynamicVisionTransformer(**SMALL).double(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn_like(p))
    expected = model.eval()(images)
    maps = [one.ne(0).any(1).flatten(1).double() for one in model.forward_intermediates(images, [1, 2])[1]]
    assert [kept.sum(1).tolist() for kept in maps] == [[12.0] * 3, [8.0] * 3]
    keeps = iter(maps)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "gumbel_softmax", lambda logits, hard: torch.stack([next(keeps)] * 2, -1))
        out = model.train()(images)
    assert torch.equal(out.mask, maps[1])
    torch.testing.assert_close(out.logits, expected, rtol=1e-5, atol=1e-5)  # to the eps of its softmax


def test_a_step_of_training_with_a_teacher():
    """Every parameter has a gradient, blocks that are checkpointed the same one, and the loss falls."""
    teacher, images, labels = VisionTransformer(**TINY).eval(), torch.randn(4, 3, 32, 32), torch.arange(4)
    model, loss, grads = DynamicVisionTransformer(**SMALL).train(), PruningLoss((0.75, 0.5)), []
    values = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        value = loss(model(images), labels, taught(teacher, images))
        value.backward()
        values.append(value.item())
        grads.append([p.grad.clone() for p in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads, strict=True)) and all(grad.any() for grad in grads[0])
    torch.optim.SGD(model.parameters(), 0.05).step()
    torch.manual_seed(0)
    assert loss(model(images), labels, taught(teacher, images)) < values[0] == values[1]
    assert not any(p.grad is not None for p in teacher.parameters())


def test_maps_another_head_and_other_sizes():
    model, images = DynamicVisionTransformer(**SMALL, dynamic_img_size=True).eval(), torch.randn(2, 3, 40, 24)
    maps = model.forward_intermediates(images, intermediates_only=True)
    assert [one.shape for one in maps] == [(2, 16, 5, 3)] * 4
    assert [int(one.ne(0).any(1).sum()) for one in maps] == [30, 22, 14, 14]  # of 15 patches 11, then 7
    backbone = FeatureMaps(copy.deepcopy(model), [0, 2]).eval()
    for own, index in zip(backbone(images), (0, 2), strict=True):
        torch.testing.assert_close(own, maps[index])
    assert backbone.feature_info.channels() == [16, 16] and len(backbone.model.blocks) == 3
    features = model.forward_features(images)
    assert features.shape == (2, 1 + 7, 16)
    model.reset_classifier(3)
    assert model(images).shape == (2, 3) and model.num_classes == 3
    model.reset_classifier(0)
    torch.testing.assert_close(model(images), features[:, 0])
    assert model.no_weight_decay() == {"pos_embed", "cls_token"}


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(global_pool="avg"), r"only a class token is never dropped: got global_pool='avg' and 1 tokens"),
        (dict(reg_tokens=2), r"only a class token is never dropped: got global_pool='token' and 3 tokens"),
        (dict(pruning_loc=(2, 1)), r"stages do not fit each other: got pruning_loc=\(2, 1\)"),
        (dict(pruning_loc=(1, 4)), r"got pruning_loc=\(1, 4\), token_ratio=\(0.75, 0.5\) for 4 blocks"),
        (dict(token_ratio=(0.5,)), r"stages do not fit each other.*token_ratio=\(0.5,\)"),
        (dict(token_ratio=(0.5, 0.7)), r"no shares of the patches: got token_ratio=\(0.5, 0.7\)"),
        (dict(token_ratio=(0.5, 0.0)), r"no shares of the patches: got token_ratio=\(0.5, 0.0\)"),
        (dict(qk_norm=True), "attention with a policy has no such options: got qk_norm=True, attn_drop=0.0"),
    ],
)
def test_arguments_that_do_not_fit(changes, message):
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        DynamicVisionTransformer(**SMALL | changes)


def test_inputs_that_do_not_fit():
    model = DynamicVisionTransformer(**SMALL).train()
    with pytest.raises(ValueError, match=r"the image size differs .* got \(32, 40\); expected \(32, 32\)"):
        model(torch.zeros(1, 3, 32, 40))
    out = model(torch.randn(2, 3, 32, 32))
    with pytest.raises(ValueError, match=r"PruningLoss: stages differ: got 2 decisions for token_ratio=\(0.5,\)"):
        PruningLoss((0.5,))(out, torch.zeros(2, dtype=torch.long))
    nothing = out._replace(mask=torch.zeros_like(out.mask))
    terms = PruningLoss((0.7, 0.5)).terms(nothing, torch.zeros(2, dtype=torch.long), (out.logits, out.tokens))
    assert terms["tokens"] == 0 and terms["logits"] == 0
