"""DynamicViT: its predictor, its softmax, the model in training and at inference, and its losses, against the results of
the authors' code; published sizes, maps, bad input."""

import pytest
import stored
import torch
import torch.nn.functional as F

import vitkern.models as models
from vitkern.models.plain.vit import VisionTransformer
from vitkern.models.tokens import policy
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


@stored.each("dynamicvit_policy_softmax_*")
def test_the_softmax_against_the_authors_code(path):
    """Its scores are what is stored where keys are rows of the unit matrix, and so are its weights of values."""
    _, tensors = stored.read(path)
    scores = tensors["input.attn"].requires_grad_()  # (B, H, N, N)
    kept = tensors["input.policy"].requires_grad_()
    unit = torch.eye(scores.shape[-1]).expand_as(scores)
    qkv = torch.stack([scores, unit, unit]).permute(1, 3, 0, 2, 4)
    found = policy.policy_attention(qkv, kept[..., 0], scale=1.0).transpose(1, 2)
    stored.assert_close(found, tensors["output.y"], "y")
    grads = torch.autograd.grad(found, [scores, kept], tensors["cotangent.y"])
    for name, grad in zip(("attn", "policy"), grads, strict=True):
        stored.assert_close(grad, tensors[f"grad.input.{name}"], name)


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
