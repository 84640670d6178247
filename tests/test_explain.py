"""`vitkern.explain`: the definitions on whole maps, models of three libraries, windows, what is left behind, errors."""

import itertools
import re

import numpy as np
import pytest
import torch
from stored import FOLDER
from test_explain_lrp import close, stored
from torch import nn

import vitkern
from vitkern.explaining import capture, rollout
from vitkern.explaining.layer import Call, Layer
from vitkern.explaining.methods import METHODS
from vitkern.explaining.windows import Windows
from vitkern.ops import attention_map

TINY = dict(img_size=32, patch_size=8, embed_dim=24, depth=3, num_heads=3, num_classes=5)


def whole_maps(weights, grads, method):
    """(N, N): the definitions, as products of the maps of all tokens. ``weights``, ``grads``: (1, H, N, N) of each."""
    found = eye = torch.eye(weights[0].shape[-1], dtype=weights[0].dtype)
    for own, grad in zip(weights, grads, strict=True):
        if method == "rollout":
            mixed = own[0].mean(0) + eye
            found = mixed / mixed.sum(-1, keepdim=True) @ found
        else:
            found = found + (own * grad)[0].clamp(min=0).mean(0) @ found
    return found


@pytest.mark.parametrize("name, method", [*itertools.product(("rollout_baseline", "lrp_vit_class2"), METHODS[:2])])
def test_rows_are_those_of_whole_maps(name, method):
    model, t = stored(name)
    weights, grads = ([t[f"output.{which}.{i}"] for i in range(3)] for which in ("attn", "attn_grad"))
    expected = whole_maps(weights, grads, method)[0, 1:]
    found = vitkern.explain(model, t["input.x"], method, target=2)
    assert found.target.tolist() == [2] and found.heat.shape == (1, 4, 4) and found.heat.dtype == torch.float32
    close(found.heat.flatten(), expected, 1e-5)
    close(found.logits, t["output.y"], 1e-5)


def test_rollout_is_the_stored_one():
    model, t = stored("rollout_baseline")
    close(vitkern.explain(model, t["input.x"], "rollout").heat.flatten(1), t["output.rollout.start0"], 1e-5)
    model.blocks = model.blocks[1:]  # whose input is then another, so that only the maps' product can be looked at
    _, layers = capture.capture(stored("rollout_baseline")[0], t["input.x"])
    start = torch.zeros(17)
    start[0] = 1.0
    close(rollout.rollout(layers[1:], start).row[None, 1:], t["output.rollout.start1"], 1e-5)


def test_attention_is_that_of_the_last_layer():
    model, t = stored("rollout_baseline")
    found = vitkern.explain(model, t["input.x"], "attention").heat
    close(found.flatten(), t["output.attn.2"][0].mean(0)[0, 1:], 1e-5)


def of_timm(name, **options):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    return timm.create_model(name, **options)


def of_transformers(kind, implementation="sdpa", **options):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(num_labels=5, **options)
    config._attn_implementation = implementation
    return getattr(transformers, f"{kind}ForImageClassification")(config)


HF = dict(image_size=32, patch_size=8, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=48)
SWIN = dict(img_size=56, patch_size=4, embed_dim=24, depths=(2, 2), num_heads=(2, 2), window_size=4, num_classes=5)
HF_SWIN = dict(image_size=56, patch_size=4, embed_dim=24, depths=[2, 2], num_heads=[2, 2], window_size=4)
MODELS = {
    "vitkern ViT": lambda: vitkern.create_model("vit_tiny_patch16_224", **TINY),
    "vitkern ViT, pooled": lambda: vitkern.create_model(
        "vit_tiny_patch16_224", **TINY, global_pool="avg", reg_tokens=2
    ),
    "vitkern DeiT": lambda: vitkern.create_model("deit_tiny_distilled_patch16_224", **TINY),
    "timm ViT": lambda: of_timm("vit_tiny_patch16_224", **TINY),
    "timm DeiT": lambda: of_timm("deit_tiny_distilled_patch16_224", **TINY),
    "timm DeiT 3": lambda: of_timm("deit3_small_patch16_224", **TINY, init_values=0.5),
    "timm ViT, pooled by attention": lambda: of_timm(
        "vit_tiny_patch16_224", **TINY, class_token=False, global_pool="map"
    ),
    "transformers ViT": lambda: of_transformers("ViT", **HF),
    "transformers ViT, eager": lambda: of_transformers("ViT", "eager", **HF),
    "transformers DeiT": lambda: of_transformers("DeiT", **HF),
    "vitkern Swin": lambda: vitkern.create_model("swin_tiny_patch4_window7_224", **SWIN),
    "vitkern SwinV2": lambda: vitkern.create_model("swinv2_tiny_window8_256", **SWIN, pretrained_window_sizes=(0, 0)),
    "timm Swin": lambda: of_timm("swin_tiny_patch4_window7_224", **SWIN),
    "timm SwinV2": lambda: of_timm("swinv2_tiny_window8_256", **SWIN),
    "transformers Swin": lambda: of_transformers("Swin", **HF_SWIN),
    "transformers SwinV2": lambda: of_transformers("Swinv2", "eager", **HF_SWIN),
}


def filled(model):
    """Random parameters throughout: zeros and ones hide what they meet."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = p.shape[-1] ** -0.5 if p.dim() > 1 else 0.2
            p.copy_(torch.randn(p.shape, generator=generator) * scale + ("norm" in name and name.endswith("weight")))
            if name.endswith("logit_scale"):
                p.fill_(1.0)
    return model


def image_of(model):
    generator = torch.Generator().manual_seed(2)
    size = 56 if "Swin" in type(model).__name__ else 32
    return torch.randn(2, 3, size, size, generator=generator)


@pytest.mark.parametrize("name", MODELS)
def test_models(name):
    """What is found is finite, belongs to the class, and is the same once the model is accelerated."""
    model = filled(MODELS[name]())
    image, swin = image_of(model), "Swin" in name
    methods = METHODS if not swin and "pooled by" not in name else ("relevance", "rollout", "attention")
    grid = (14, 14) if swin else (4, 4)
    found = {method: vitkern.explain(model, image, method, target=[1, 3]) for method in methods}
    for method, one in found.items():
        assert one.heat.shape == (2, *((7, 7) if swin and method == "attention" else grid))
        assert one.heat.isfinite().all() and one.heat.min() >= 0 and one.heat.flatten(1).std(1).min() > 0
        result = model.eval()(image)
        close(one.logits, getattr(result, "logits", result).detach(), 1e-4)
    other = vitkern.explain(model, image, target=2).heat
    assert not torch.allclose(other, found["relevance"].heat, rtol=1e-2)
    torch.testing.assert_close(vitkern.explain(model, image, "rollout", target=2).heat, found["rollout"].heat)
    vitkern.accelerate(model)
    for method, one in found.items():
        close(vitkern.explain(model, image, method, target=[1, 3]).heat, one.heat, 1e-3)


def test_weights_that_are_cast():
    """In half precision transformers' eager attention casts them between softmax and product."""
    model = filled(MODELS["transformers ViT, eager"]())
    image, expected = image_of(model), vitkern.explain(model, image_of(model), target=1).heat
    found = vitkern.explain(model.bfloat16(), image.bfloat16(), target=1).heat
    assert nn.functional.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.95


def test_classes_are_numbers_of_any_kind():
    model = MODELS["vitkern ViT"]()
    for target in (2, np.int64(2), [2, np.int32(2)], torch.tensor([2, 2]), torch.tensor(2)):
        assert vitkern.explain(model, image_of(model), target=target).target.tolist() == [2, 2]


def test_layer_wise_relevance_is_not_of_half_precision():
    model = filled(MODELS["timm ViT"]())
    image = image_of(model)
    expected = vitkern.explain(model, image, "lrp", target=1).heat
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vitkern.explain(model, image, "lrp", target=1).heat, expected)
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(NotImplementedError, match=f'^explain: method="lrp" is not defined in {dtype}: got a model'):
            vitkern.explain(model.to(dtype), image.to(dtype), "lrp")


def test_an_image_that_is_padded_to_whole_patches():
    model = filled(of_timm("vit_tiny_patch16_224", **TINY, dynamic_img_size=True, dynamic_img_pad=True))
    image = torch.randn(1, 3, 36, 44)
    whole = vitkern.explain(model, nn.functional.pad(image, (0, 4, 0, 4)))
    found = vitkern.explain(model, image)
    assert found.heat.shape == (1, 5, 6) and torch.equal(found.heat, whole.heat)


def test_one_model_under_three_names_gives_one_map():
    """Weights of vitkern's Swin in timm's: windows come in another order, and lie in the same places."""
    for ours, other in (("vitkern Swin", "timm Swin"), ("vitkern SwinV2", "timm SwinV2"), ("vitkern ViT", "timm ViT")):
        model, peer = filled(MODELS[ours]()), MODELS[other]()
        peer.load_state_dict(model.state_dict(), strict=False)
        image = image_of(model)
        for method in ("relevance", "rollout", "attention"):
            expected = vitkern.explain(peer, image, method, target=0).heat
            close(vitkern.explain(model, image, method, target=0).heat, expected, 1e-4)


class Seen(nn.Module):
    """Swin's attention on an image, in place of a block: (B, h, w, C) -> the same."""

    def __init__(self, attend):
        super().__init__()
        self.attend = attend

    def forward(self, x):
        return self.attend(x)


@pytest.mark.parametrize("shift", [0, 2])
@pytest.mark.parametrize("library", ["vitkern", "vitkern, padded first", "timm"])
def test_windows_lie_where_tokens_see_each_other(library, shift):
    torch.manual_seed(0)
    grid, image = (6, 9), torch.randn(1, 6, 9, 16, dtype=torch.float64, requires_grad=True)
    wrap = "padded" if "padded" in library else "image"
    windows = Windows(grid, (4, 4), (shift, shift), wrap, library != "timm")
    if library == "timm":
        block = pytest.importorskip("timm.models.swin_transformer").SwinTransformerBlock(
            16, grid, num_heads=2, window_size=4, shift_size=shift
        ).double()  # fmt: skip
        out = block._attn(image)
    else:
        module = vitkern.nn.WindowAttention(16, 2, 4, shift, wrap=wrap).double()
        with torch.no_grad():
            module.relative_position_bias_table.zero_()
        out = module(image)
    index = windows.tokens(image.device)
    together = torch.zeros(55, 55, dtype=torch.bool)
    for tokens in index:
        together[tokens[:, None], tokens] = True  # -1 is the last
    for token in range(54):
        (grad,) = torch.autograd.grad(out.view(54, 16)[token].sum(), image, retain_graph=True)
        seen = grad.view(54, 16).abs().sum(1) > 1e-12
        assert not (seen & ~together[token, :54]).any() and seen[token]
    assert sorted(index[index >= 0].tolist()) == list(range(54))


def drawn(groups, queries, keys):
    """A call of two heads whose weights (G, 2, n, m) are drawn, and gradients of them."""
    weights = torch.rand(groups, 2, queries, keys, dtype=torch.float64).softmax(-1)
    return Call(weights, None, (groups, queries, keys)), torch.randn_like(weights)


@pytest.mark.parametrize("ordered", [False, True])
def test_rows_through_windows_merged_tokens_and_a_pooling_query(ordered):
    """Against matrices of all tokens: of windows, shifted and padded; of the merging; of a query of its own."""
    torch.manual_seed(0)
    windows = Windows((5, 7), (2, 4), (1, 2), "image", ordered)
    index = windows.tokens(torch.device("cpu"))
    (one, grad_one), (two, grad_two) = (drawn(groups, 8, 8) for groups in (len(index) - 2, 2))
    (merged, grad_merged), (pooled, grad_pooled) = drawn(1, 12, 12), drawn(1, 1, 12)
    whole = torch.arange(12)[None]
    layers = [Layer((one, two), (5, 7), index), Layer((merged,), (3, 4), whole), Layer((pooled,))]
    grads = [[grad_one, grad_two], [grad_merged], [grad_pooled]]

    def matrix(calls, slopes, index, tokens):
        found = torch.zeros(tokens + 1, tokens + 1, dtype=torch.float64)
        maps = torch.cat([call.result if slopes is None else (call.result * slope).clamp(min=0)
                          for call, slope in zip(calls, slopes or calls, strict=True)])  # fmt: skip
        for tokens_of, own in zip(index, maps.mean(1), strict=True):
            for i, j in itertools.product(range(len(tokens_of)), repeat=2):
                found[tokens_of[i], tokens_of[j]] += own[i, j]  # -1 is the last
        return found[:-1, :-1]

    merging = torch.zeros(12, 35, dtype=torch.float64)
    for y, x in itertools.product(range(5), range(7)):
        merging[y // 2 * 4 + x // 2, y * 7 + x] = 0.25
    start, eye = torch.ones(1, dtype=torch.float64), [torch.eye(n, dtype=torch.float64) for n in (12, 35)]
    last, second, first = pooled.result[0].mean(0)[0], merged.result[0].mean(0), matrix((one, two), None, index, 35)
    expected = last @ (second + eye[0]) / 2 @ merging @ (first + eye[1]) / 2
    reached = rollout.rollout(layers, start)
    torch.testing.assert_close(reached.row, expected)
    assert reached.grid == (5, 7)
    last, second = (
        (call.result * grad).clamp(min=0)[0].mean(0) for call, grad in ((pooled, grad_pooled), (merged, grad_merged))
    )
    expected = last[0] @ (second + eye[0]) @ merging @ (matrix((one, two), grads[0], index, 35) + eye[1])
    torch.testing.assert_close(rollout.relevance(layers, start, grads).row, expected)


def test_nothing_is_left_behind():
    model = filled(MODELS["timm ViT"]())
    vitkern.accelerate(model)
    model.train()
    model.blocks[1].eval()
    model.head.weight.requires_grad_(False)
    model.cls_token.grad = torch.ones_like(model.cls_token)
    modes = [module.training for module in model.modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    image = image_of(model).requires_grad_()

    def unchanged():
        assert [module.training for module in model.modules()] == modes
        assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        grads = {name for name, p in model.named_parameters() if p.grad is not None}
        assert grads == {"cls_token"} and model.cls_token.grad.eq(1).all() and image.grad is None
        assert (
            model.grad_checkpointing
            and not model.head.weight.requires_grad
            and vitkern.dispatch.current_backend() == "auto"
        )

    model.set_grad_checkpointing(True)  # in timm it holds in eval mode too
    random = torch.random.get_rng_state()
    for method in METHODS:
        with vitkern.use_backend("triton"):  # which has no kernel here
            vitkern.explain(model, image, method)
        with torch.no_grad():
            vitkern.explain(model, image, method)
        with torch.inference_mode():
            vitkern.explain(model, image.clone(), method)
        unchanged()
        with pytest.raises(ValueError, match="no such class"):
            vitkern.explain(model, image, method, target=5)
        unchanged()
        handle = model.norm.register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vitkern.explain(model, image, method)
        handle.remove()
        unchanged()
    assert torch.equal(random, torch.random.get_rng_state())


def test_a_compiled_model():
    model = filled(MODELS["vitkern ViT"]())
    image, graphs = image_of(model), []
    expected = vitkern.explain(model, image).heat
    close(vitkern.explain(torch.compile(model, backend="eager"), image).heat, expected, 1e-6)
    for block in model.blocks:
        block.compile(backend=lambda graph, inputs: graphs.append(graph) or graph)
    close(vitkern.explain(model, image).heat, expected, 1e-6)
    assert not graphs


def test_memory_is_that_of_rows(monkeypatch):
    """1,025 tokens of 8 heads: a map of each would be 34 MB a layer."""
    from vitkern.commands.timing import peak_memory

    monkeypatch.setattr(attention_map, "_SCORES", 1 << 18)
    model = vitkern.create_model(
        "vit_tiny_patch16_224", **TINY | dict(patch_size=2, img_size=64, embed_dim=16, num_heads=8, depth=2)
    )
    image = torch.randn(1, 3, 64, 64)
    for method in ("relevance", "rollout"):
        assert peak_memory(lambda method=method: vitkern.explain(model, image, method), image.device) < 20e6


def test_heat_lands_on_the_object():
    """A ViT learns in a second which of two colours a square on noise has: heat lies on the square."""
    torch.manual_seed(0)
    model = vitkern.create_model(
        "vit_tiny_patch16_224", **TINY | dict(img_size=32, depth=2, patch_size=4, num_classes=2)
    )
    colours = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]]) * 2

    def draw(count):
        """Images, classes and the patches (count, 8, 8) of the square."""
        label, (y, x) = torch.randint(2, (count,)), torch.randint(7, (2, count))
        rows, cols = ((torch.arange(8) - start[:, None]).div(2, rounding_mode="floor") == 0 for start in (y, x))
        square = rows[:, :, None] & cols[:, None]
        pixels = square.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, None]
        return torch.randn(count, 3, 32, 32) * 0.7 + pixels * colours[label][:, :, None, None], label, square

    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(40):
        images, label, _ = draw(32)
        loss = nn.functional.cross_entropy(model(images), label)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    images, label, square = draw(32)
    right = model.eval()(images).argmax(1) == label
    assert right.float().mean() > 0.9
    for method in ("relevance", "lrp"):
        heat = vitkern.explain(model, images[right], method).heat
        share = (heat * square[right]).sum((1, 2)) / heat.sum((1, 2))
        assert share.median() > 0.25, method  # where four patches of 64 have 0.06


def test_the_page_runs():
    page = (FOLDER.parents[1] / "docs" / "explain.md").read_text()
    q, k, v, grad = torch.randn(4, 2, 6, 20, 8)
    names = dict(model=MODELS["vitkern ViT"](), images=torch.randn(2, 3, 32, 32), q=q, k=k, v=v, grad=grad)
    blocks = re.findall(r"^```python\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    for block in blocks:
        exec(block, names)
    assert len(blocks) == 2 and names["found"].heat.shape == (2, 4, 4)


class TwoMaps(nn.Module):
    def forward(self, image):
        return image


class Frozen(nn.Module):
    """A classifier on tokens that are computed without gradients."""

    def __init__(self):
        super().__init__()
        self.model = MODELS["vitkern ViT"]()
        self.head = nn.Linear(5, 5)

    def forward(self, image):
        with torch.no_grad():
            found = self.model(image)
        return self.head(found)


@pytest.mark.parametrize(
    "changes, error, message",
    [
        (dict(method="saliency"), ValueError, "unknown method: got 'saliency'; expected one of relevance, rollout"),
        (dict(target=5), ValueError, "there is no such class: got target=5; expected 0 to 4"),
        (dict(target=-1), ValueError, "there is no such class: got target=-1"),
        (dict(target=[1]), ValueError, "targets do not match images: got 1 for 2"),
        (dict(target=1.5), TypeError, "target is no class: got 1.5"),
        (dict(target="cat"), TypeError, "target is no class: got 'cat'"),
        (dict(image=torch.zeros(32, 32)), ValueError, r"not a batch of images: got shape \(32, 32\)"),
        (
            dict(image=torch.zeros(2, 3, 32, 32, dtype=torch.uint8)),
            TypeError,
            "image is no floating-point tensor: got torch",
        ),
        (dict(image="cat.png"), TypeError, "image is no floating-point tensor: got str"),
        (dict(model="vit"), TypeError, "model is no module: got str"),
        (dict(model=Frozen()), NotImplementedError, "gradients do not reach attention: got a Frozen"),
        (dict(model=TwoMaps()), NotImplementedError, "attention cannot be read: got a model that calls none"),
    ],
)
def test_errors_name_the_remedy(changes, error, message):
    given = dict(model=MODELS["vitkern ViT"](), image=torch.zeros(2, 3, 32, 32)) | changes
    with pytest.raises(error, match=f"^explain: {message}"):
        vitkern.explain(**given)


@pytest.mark.parametrize(
    "build, method, message",
    [
        (MODELS["vitkern Swin"], "lrp", 'method="lrp" is not defined for this model: got SwinTransformer'),
        (
            lambda: of_timm("vit_tiny_patch16_224", **TINY, block_fn=_parallel()), "lrp",
            'method="lrp" is not defined for this model',
        ),
        (lambda: vitkern.create_model("vit_tiny_patch16_224", **TINY | dict(num_classes=0), global_pool=""), "rollout",
         r"the model gives no logits: got \(1, 17, 24\)"),
        (lambda: of_timm("cait_xxs24_224", img_size=32, patch_size=8, depth=1), "relevance",
         "attention cannot be read: got blocks.0.attn, a TalkingHeadAttn"),
        (lambda: of_timm("vit_relpos_small_patch16_224", **TINY, rel_pos_type="mlp"), "lrp", 'method="lrp" is not'),
        (lambda: of_timm("vit_tiny_patch16_224", **TINY, attn_layer="diff"), "relevance",
         "attention is not between tokens: got blocks.2.attn, a DiffAttention, with 2 maps"),
        (lambda: of_timm("xcit_nano_12_p16_224", depth=1, cls_attn_layers=0, embed_dim=32, num_heads=2, img_size=32),
         "attention", r"attention is not between tokens: got blocks.0.attn, a XCA, with a map of 16 x 16 for 4 tokens"),
    ],
)  # fmt: skip
def test_what_a_method_is_not_defined_for(build, method, message):
    with pytest.raises(NotImplementedError, match=f"^explain: {message}"):
        model = filled(build())
        vitkern.explain(model, image_of(model)[:1], method)


def _parallel():
    from timm.models.vision_transformer import ParallelScalingBlock

    return ParallelScalingBlock
