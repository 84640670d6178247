"""Layer-wise relevance: each rule and a whole ViT against what the authors' code computed, and on models of others."""

import pytest
import torch
from stored import FOLDER, read

import vitkern
from vitkern.explaining import lrp
from vitkern.explaining import lrp_rules as rules

RULES = 1e-5  # of the largest entry
MODEL = 1e-3  # what float32 and float64 differ by: relevance is divided by small numbers


def close(actual, expected, tolerance):
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def test_each_rule():
    _, t = read(FOLDER / "explain_layer_rules.safetensors")
    x, x2, a, v = (t[f"input.{name}"] for name in ("x", "x2", "a", "v"))
    r_x, r_x2 = t["input.r_x"], t["input.r_x2"]
    close(rules.linear(x, t["weights.lin.weight"], t["input.r_linear"]), t["output.linear"], RULES)
    for i, found in enumerate(rules.added(x, x2, r_x)):
        close(found, t[f"output.add.{i}"], RULES)
    close(rules.copied(x, r_x, r_x2), t["output.clone"], RULES)
    for i, found in enumerate(rules.proportional(torch.matmul, (a, v), t["input.r_av"])):
        close(found, t[f"output.einsum.{i}"], RULES)
    (first,) = rules.proportional(lambda x: x[:, :1], (x,), r_x[:, :1])
    close(first, t["output.index_select"], RULES)
    picture = rules.picture(t["input.img"], t["weights.conv.weight"], (2, 2), t["input.r_conv"])
    close(picture, t["output.conv_image_input"], RULES)
    for name, given in (("softmax", "a2"), ("gelu", "r_x"), ("layernorm", "r_x")):  # passed on as they are
        assert torch.equal(t[f"output.{name}"], t[f"input.{given}"])


def stored(name):
    config, tensors = read(FOLDER / f"explain_{name}.safetensors")
    names = ("img_size", "patch_size", "num_classes", "embed_dim", "depth", "num_heads", "mlp_ratio")
    model = vitkern.create_model("vit_tiny_patch16_224", **{name: config[name] for name in names}).eval()
    model.norm.eps = 1e-5
    model.load_state_dict({n.removeprefix("weights."): t for n, t in tensors.items() if n.startswith("weights.")})
    return model, tensors


def test_a_whole_model():
    model, t = stored("lrp_vit_class2")
    found, logits, target = lrp.relevance(model, t["input.x"], 2)
    assert target == 2
    close(logits, t["output.y"], RULES)
    for i in range(3):
        close(found.weights[i], t[f"output.attn.{i}"], RULES)
        close(found.grads[i], t[f"output.attn_grad.{i}"], RULES)
        close(found.of_weights[i], t[f"output.attn_cam.{i}"], MODEL)
        close(found.of_values[i], t[f"output.v_cam.{i}"], MODEL)
    for start, name in ((0, ""), (1, ".start1")):
        close(lrp.attribution(found, start)[None, 1:], t[f"output.relevance.transformer_attribution{name}"], MODEL)
        plain = found._replace(grads=[torch.ones_like(own) for own in found.of_weights])
        close(lrp.attribution(plain, start)[None, 1:], t[f"output.relevance.rollout{name}"], MODEL)
    for number, name in ((2, "last_layer"), (1, "second_layer")):
        own, graded = found.of_weights[number], found.of_weights[number] * found.grads[number]
        close(own[0].clamp(min=0).mean(0)[0, 1:], t[f"output.relevance.{name}"], MODEL)
        close(graded[0].clamp(min=0).mean(0)[0, 1:], t[f"output.relevance.{name}.ablation"], MODEL)
    close(found.weights[-1][0].mean(0)[0, 1:], t["output.relevance.last_layer_attn"], RULES)
    position = model.pos_embed.detach()
    patches, _ = rules.added(found.embedded - position, position, found.tokens)
    patches = patches[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    pixels = rules.picture(t["input.x"], model.patch_embed.proj.weight.detach(), (6, 6), patches)
    close(pixels.sum(1), t["output.relevance.full"], MODEL)


def test_the_heat_map_is_the_attribution():
    model, t = stored("lrp_vit_class2")
    found = vitkern.explain(model, t["input.x"], "lrp", target=2)
    close(found.heat.flatten(1), t["output.relevance.transformer_attribution"], MODEL)
    close(vitkern.explain(model.double(), t["input.x"].double(), "lrp", target=2).heat, found.heat, MODEL)


@pytest.mark.parametrize("name, options", [
    ("deit_tiny_distilled_patch16_224", dict()),
    ("vit_tiny_patch16_224", dict(global_pool="avg", reg_tokens=1, qk_norm=True, init_values=0.1)),
])  # fmt: skip
def test_a_model_keeps_what_it_is_given(name, options):
    """All relevance arrives at the tokens: that of two heads, of a mean, past norms and factors of channels."""
    torch.manual_seed(0)
    sizes = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5)
    model = vitkern.create_model(name, **sizes, **options).double()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    found, logits, target = lrp.relevance(model, torch.randn(1, 3, 32, 32, dtype=torch.float64), None)
    assert target == logits.argmax() and found.tokens.sum().item() == pytest.approx(1.0, abs=1e-4)
    assert found.start.sum() == 1 and found.start.ne(0).sum() == (2 if "distilled" in name else 16)


def test_relevance_is_kept_in_its_way():
    """The parts of a sum share what it has; a linear layer without negative contributions keeps all of it."""
    torch.manual_seed(0)
    a, b, r = (torch.rand(1, 5, 8, dtype=torch.float64) + 0.1 for _ in range(3))
    ra, rb = rules.added(a, -b / 2, r)
    torch.testing.assert_close(ra.sum() + rb.sum(), r.sum())
    weight = torch.rand(8, 6, dtype=torch.float64)
    torch.testing.assert_close(rules.linear(torch.rand(5, 6).double(), weight, r[0]).sum(), r.sum())
    assert rules.divided(torch.ones(3), torch.tensor([0.0, -1e-9, 2.0])).tolist() == pytest.approx([0.0, 1e9, 0.5])
