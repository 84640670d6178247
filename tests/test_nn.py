"""The modules on their own: against timm's, and beyond it hooks, adapters, DropPath, dropout and autocast."""

import copy
import math

import pytest
import torch
import torch.nn as nn

from vitkern import nn as vnn
from vitkern.models.hierarchical.swin import fit_window
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.nn.layers import drop_path_rates

timm = pytest.importorskip("timm", reason="timm is the reference of this file")


def randomise(module):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in module.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1.0 + 0.3 * noise if "norm" in name and name.endswith("weight") else 0.4 * noise)
    return module


def agree(ours, theirs, x, **options):
    randomise(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    for module in (ours, theirs):
        module.double().eval()
        if hasattr(module, "init_non_persistent_buffers"):
            module.init_non_persistent_buffers()
    results = []
    for module in (ours, theirs):
        image = x.double().requires_grad_()
        out = module(image)
        out.square().sum().backward()
        results.append([out.detach(), image.grad, *(p.grad for _, p in sorted(module.named_parameters()))])
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-9 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("options", [{}, dict(qkv_bias=False), dict(qk_norm=True), dict(proj_bias=False)], ids=str)
@pytest.mark.parametrize("dim, heads, tokens", [(24, 3, 5), (40, 2, 17), (8, 8, 1)])
def test_attention(options, dim, heads, tokens):
    norm = dict(norm_layer=nn.LayerNorm) if options.get("qk_norm") else {}
    theirs = timm.layers.Attention(dim, heads, **{"qkv_bias": True, **options}, **norm)
    agree(vnn.Attention(dim, heads, eps=1e-5, **options), theirs, torch.randn(2, tokens, dim))


@pytest.mark.parametrize("build", [vnn.Attention, vnn.ParallelBlock])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("name", ["q_norm", "k_norm"])
def test_hooks_on_queries_and_keys_fire(build, qk_norm, name):
    module, x = randomise(build(24, 3, qk_norm=qk_norm)), torch.randn(2, 5, 24)
    expected = module(x)
    hook = module.get_submodule(name).register_forward_hook(lambda module, inputs, out: -out)
    assert not torch.allclose(module(x), expected)
    hook.remove()
    torch.testing.assert_close(module(x), expected)


CALLED = {
    "Attention": (lambda: vnn.Attention(16, 2, qk_norm=True), ()),
    "ParallelBlock": (lambda: vnn.ParallelBlock(16, 2), ()),
    "ClassAttention": (lambda: vnn.ClassAttention(16, 2), ()),
    "SpatialReductionAttention": (lambda: vnn.SpatialReductionAttention(16, 2, sr_ratio=2), ((4, 6),)),
    "ConvolutionalAttention": (lambda: vnn.ConvolutionalAttention(16, 2), ((4, 6),)),
}


@pytest.mark.parametrize("name", CALLED)
def test_hooks_on_the_dropout_of_weights_fire(name):
    """They are given weights whose rows sum to 1, and what they return counts."""
    build, more = CALLED[name]
    module, x = randomise(build()).double().eval(), torch.randn(2, 24, 16, dtype=torch.float64)
    expected, seen = module(x, *more), []
    module.attn_drop.register_forward_hook(lambda _, args, weights: seen.append(weights))
    torch.testing.assert_close(module(x, *more), expected)
    torch.testing.assert_close(seen[0].sum(-1), torch.ones(seen[0].shape[:-1], dtype=torch.float64))
    assert len(seen) == 1 and seen[0].shape[:2] == (2, 2)
    module.attn_drop.register_forward_hook(lambda _, args, weights: 0.5 * weights)
    assert not torch.allclose(module(x, *more), expected)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 6), (5, 1), (1, 1)], ids=str)
@pytest.mark.parametrize("version", [1, 2])
def test_patch_merging(size, version):
    peers = {1: timm.models.swin_transformer.PatchMerging, 2: timm.models.swin_transformer_v2.PatchMerging}
    agree(vnn.PatchMerging(6, post_norm=version == 2), peers[version](6), torch.randn(2, *size, 6))


@pytest.mark.parametrize("options", [{}, dict(bias=False), dict(norm=True)], ids=str)
def test_patch_embed(options):
    norm = options.pop("norm", False)
    theirs = timm.layers.PatchEmbed(
        (19, 26), 6, 2, 10, norm_layer=nn.LayerNorm if norm else None, output_fmt="NHWC", **options
    )
    ours = vnn.PatchEmbed((19, 26), 6, 2, 10, norm_eps=1e-5 if norm else None, **options)
    agree(ours, theirs, torch.randn(2, 2, 19, 26))
    assert ours.grid_size == theirs.grid_size == (3, 4)


def test_patch_embed_of_other_sizes():
    embed = vnn.PatchEmbed(12, 4, 3, 8, strict_img_size=False)
    assert embed(torch.zeros(1, 3, 8, 20)).shape == (1, 2, 5, 8)
    with pytest.raises(
        ValueError, match=r"patches do not divide the image: got \(8, 21\); expected multiples of \(4, 4\)"
    ):
        embed(torch.zeros(1, 3, 8, 21))


# image, window, shift, heads; one head lays its tokens out without any rearrangement
WINDOWS = [
    ((8, 8), (4, 4), (2, 2), 3),
    ((9, 10), (4, 4), (2, 1), 1),
    ((7, 12), (3, 5), (0, 0), 2),
    ((6, 11), (6, 4), (0, 2), 1),
    ((5, 5), (2, 5), (1, 0), 4),
]


def timm_windows(module, size, window, shift):
    """timm's block without norms and MLP: roll, pad, partition, attend, reverse."""
    peers = timm.models.swin_transformer_v2 if hasattr(module, "cpb_mlp") else timm.models.swin_transformer
    kind = peers.SwinTransformerV2Block if hasattr(module, "cpb_mlp") else peers.SwinTransformerBlock
    block = kind(module.dim, size, module.num_heads, window_size=window, shift_size=shift, always_partition=True)
    block.attn = module

    class Windows(nn.Module):
        def forward(self, x):
            return block.double()._attn(x)

    wrapped = Windows()
    wrapped.attn = module
    return wrapped


class Named(nn.Module):
    def __init__(self, attn):
        super().__init__()
        self.attn = attn

    def forward(self, x):
        return self.attn(x)

    def init_non_persistent_buffers(self):
        if hasattr(self.attn, "init_non_persistent_buffers"):
            self.attn.init_non_persistent_buffers()


@pytest.mark.parametrize("size, window, shift, heads", WINDOWS, ids=str)
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_window_attention(size, window, shift, heads, qkv_bias):
    theirs = timm.models.swin_transformer.WindowAttention(12, heads, window_size=window, qkv_bias=qkv_bias)
    ours = vnn.WindowAttention(12, heads, window, shift, qkv_bias=qkv_bias)
    agree(Named(ours), timm_windows(theirs, size, window, shift), torch.randn(2, *size, 12))


@pytest.mark.parametrize("size, window, shift, heads", WINDOWS, ids=str)
@pytest.mark.parametrize("options", [{}, dict(qkv_bias=False), dict(pretrained_window_size=(6, 3))], ids=str)
def test_window_attention_v2(size, window, shift, heads, options):
    theirs = timm.models.swin_transformer_v2.WindowAttention(12, window, heads, **options)
    ours = vnn.WindowAttentionV2(12, heads, window, shift, **options)
    agree(Named(ours), timm_windows(theirs, size, window, shift), torch.randn(2, *size, 12))


@pytest.mark.parametrize("window", [16, 24])
def test_window_attention_v2_of_large_windows(window):
    """N = 256 and 576, pre-trained with windows of 12, or of 6 in the last stage."""
    for full, size in ((12, (window, window)), (6, (window + 4, window))):
        theirs = timm.models.swin_transformer_v2.WindowAttention(
            8, (window, window), 2, pretrained_window_size=(full, full)
        )
        shift = (window // 2, 0) if size[0] > window else (0, 0)
        ours = vnn.WindowAttentionV2(8, 2, window, shift, pretrained_window_size=full)
        x = torch.randn(1, *size, 8)
        agree(Named(ours), timm_windows(theirs, size, (window, window), shift), x)


@pytest.mark.parametrize("size", [(6, 9), (7, 8), (2, 3)], ids=str)
def test_window_attention_without_a_table(size):
    """Padded tokens hold the bias of the projection and are attended to: Twins after arXiv 2104.13840, and DaViT."""
    lsa = timm.models.twins.LocallyGroupedAttn(12, num_heads=3, ws=4)
    block = timm.models.davit.SpatialBlock(12, num_heads=3, window_size=4).double()
    block.cpe1, block.norm1, block.cpe2, block.mlp = nn.Identity(), nn.Identity(), nn.Identity(), None

    class Twins(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = lsa

        def forward(self, x):
            return self.attn(x.flatten(1, 2), size).view_as(x)

    class Davit(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn = block.attn

        def forward(self, x):
            return block(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) - x

    for theirs in (Twins(), Davit()):
        agree(Named(vnn.WindowAttention(12, 3, 4, rel_pos=False)), theirs, torch.randn(2, *size, 12))


def test_the_logit_scale_is_clamped():
    module = randomise(vnn.WindowAttentionV2(12, 3, 4)).eval()
    x = torch.randn(1, 4, 4, 12)
    with torch.no_grad():
        module.logit_scale.copy_(torch.tensor([math.log(100.0), 9.0, 1.0]).view(3, 1, 1))
    module(x).sum().backward()
    assert module.logit_scale.grad[1] == 0 and module.logit_scale.grad[2] != 0
    with torch.no_grad():
        before = module(x)
        module.logit_scale[1] = 20.0
        assert torch.equal(module(x), before)


def test_an_adapted_projection_is_called():
    """LoRA and the like wrap a linear layer and still have its ``weight``: reading that would pass them over."""

    class Adapter(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2.0

    def adapted(linear):
        wrapped = Adapter(linear.in_features, linear.out_features, bias=linear.bias is not None)
        wrapped.load_state_dict({key: value / 2 for key, value in linear.state_dict().items()})
        return wrapped

    x = torch.randn(2, 6, 6, 12)
    for module in (vnn.WindowAttention(12, 3, 4, 2), vnn.WindowAttentionV2(12, 3, 4, 2)):
        randomise(module).eval()
        expected = module(x)
        module.qkv, module.proj = adapted(module.qkv), adapted(module.proj)
        torch.testing.assert_close(module(x), expected, rtol=1e-5, atol=1e-5)
    norm, mlp, drop = randomise(vnn.LayerNorm(12)), randomise(vnn.Mlp(12, 24)), vnn.DropPath()
    for post_norm in (False, True):
        expected = mlp_residual(x, norm, mlp, drop, post_norm=post_norm)
        other = copy.deepcopy(mlp)
        other.fc1, other.fc2 = adapted(other.fc1), adapted(other.fc2)
        torch.testing.assert_close(
            mlp_residual(x, norm, other, drop, post_norm=post_norm), expected, rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize("post_norm", [False, True])
@pytest.mark.parametrize("where", ["norm", "mlp", "mlp.fc1", "mlp.fc2", "scale", "patched"])
def test_hooks_fire_within_a_fused_branch(where, post_norm):
    parts = nn.ModuleDict(dict(norm=vnn.LayerNorm(12), mlp=vnn.Mlp(12, 24), scale=vnn.LayerScale(12, 0.5)))
    randomise(parts)
    calls = []
    if where == "patched":
        forward = parts["mlp"].fc1.forward
        parts["mlp"].fc1.forward = lambda x: calls.append(1) or forward(x)
    else:
        parts.get_submodule(where).register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 5, 12)
    scale = None if post_norm and where != "scale" else parts["scale"]
    mlp_residual(x, parts["norm"], parts["mlp"], vnn.DropPath(), scale, post_norm=post_norm)
    assert calls == [1]


def test_mlp_residual_is_the_formula():
    norm, mlp, scale = randomise(vnn.LayerNorm(12, 1e-5)), randomise(vnn.Mlp(12, 24)), randomise(vnn.LayerScale(12))
    x = torch.randn(3, 5, 12)
    plain = x + scale(mlp(norm(x)))
    torch.testing.assert_close(mlp_residual(x, norm, mlp, vnn.DropPath(), scale), plain, rtol=1e-5, atol=1e-5)
    drop = vnn.DropPath(0.5).train()
    torch.manual_seed(5)
    factor = drop.row_scale(x)
    assert set(factor.tolist()) <= {0.0, 2.0}
    torch.manual_seed(5)
    actual = mlp_residual(x, norm, mlp, drop, scale)
    torch.testing.assert_close(actual, x + factor.view(-1, 1, 1) * (plain - x), rtol=1e-5, atol=1e-5)
    torch.manual_seed(5)
    actual = mlp_residual(x, norm, mlp, drop, post_norm=True)
    torch.testing.assert_close(actual, x + factor.view(-1, 1, 1) * norm(mlp(x)), rtol=1e-5, atol=1e-5)


def test_any_module_may_stand_in_a_branch():
    """Users replace DropPath by Identity and LayerScale by something of their own; neither may be passed over."""
    norm, mlp, x = randomise(vnn.LayerNorm(12, 1e-5)), randomise(vnn.Mlp(12, 24)), torch.randn(3, 5, 12)
    branch = mlp(norm(x))
    for drop, scale, expected in (
        (nn.Identity(), None, branch),
        (nn.Identity(), nn.Identity(), branch),
        (nn.Tanh(), None, branch.tanh()),
        (vnn.DropPath(), nn.Tanh(), branch.tanh()),
    ):
        torch.testing.assert_close(mlp_residual(x, norm, mlp, drop, scale), x + expected, rtol=1e-5, atol=1e-5)


def test_mlp_dropout_is_drawn_as_in_timm():
    theirs = timm.layers.Mlp(12, 24, drop=0.4)
    ours = vnn.Mlp(12, 24, drop=0.4)
    ours.load_state_dict(theirs.state_dict())
    norm, x = vnn.LayerNorm(12, 1e-5), torch.randn(3, 5, 12)
    torch.manual_seed(9)
    expected = x + theirs(norm(x))
    torch.manual_seed(9)
    torch.testing.assert_close(mlp_residual(x, norm, ours, vnn.DropPath()), expected)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(mlp_residual(x, norm, ours, vnn.DropPath()), x + theirs(norm(x)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_drop_path_draws_as_timm_does(dtype):
    x = torch.randn(64, 3, 2, dtype=dtype)
    ours, theirs = vnn.DropPath(0.3).train(), timm.layers.DropPath(0.3).train()
    torch.manual_seed(11)
    expected = theirs(x)
    torch.manual_seed(11)
    assert torch.equal(ours(x), expected)
    torch.manual_seed(11)
    assert torch.equal(x * ours.row_scale(x).view(-1, 1, 1), expected)
    kept = (expected != 0).any(-1).any(-1).float().mean().item()
    assert 0.4 < kept < 0.95
    for module in (ours.eval(), vnn.DropPath(0.0).train()):
        assert module.row_scale(x) is None and module(x) is x


def test_drop_path_rates_are_those_of_timm():
    for rate, depth in ((0.1, 12), (0.3, 1), (0.0, 4)):
        assert drop_path_rates(rate, depth) == timm.layers.calculate_drop_path_rates(rate, depth)
    with pytest.raises(ValueError, match=r"drop_prob is no probability: got 1\.0"):
        vnn.DropPath(1.0)


@pytest.mark.parametrize(
    "build", [lambda p: vnn.Attention(12, 3, attn_drop=p), lambda p: vnn.WindowAttention(12, 3, 4, 2, attn_drop=p)]
)
def test_attention_dropout_is_unbiased_and_only_in_training(build):
    module = randomise(build(0.3))
    x = torch.randn(1, 6, 6, 12) if isinstance(module, vnn.WindowAttention) else torch.randn(1, 36, 12)
    with torch.no_grad():
        plain = module.eval()(x)
        assert torch.equal(module(x), plain)
        module.train()
        torch.manual_seed(1)
        first = module(x)
        torch.manual_seed(1)
        assert torch.equal(module(x), first) and not torch.allclose(first, plain, atol=1e-3)
        mean = torch.stack([module(x) for _ in range(200)]).mean(0)
    spread = (first - plain).abs().mean()
    assert (mean - plain).abs().mean() < 0.2 * spread


@pytest.mark.parametrize(
    "grid, window, shift, expected",
    [
        ((56, 56), (7, 7), (3, 3), ((7, 7), (3, 3))),
        ((7, 7), (7, 7), (3, 3), ((7, 7), (0, 0))),
        ((5, 20), (7, 7), (3, 3), ((5, 7), (0, 3))),
        ((8, 7), (7, 7), (3, 3), ((7, 7), (3, 0))),
    ],
)
def test_a_window_fits_each_direction_by_itself(grid, window, shift, expected):
    assert fit_window(grid, window, shift) == expected
    block = timm.models.swin_transformer.SwinTransformerBlock(12, grid, 3, window_size=window, shift_size=shift)
    assert (block.window_size, block.shift_size) == expected


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: vnn.Attention(10, 3), "Attention: channels do not split into heads: got dim=10, num_heads=3"),
        (lambda: vnn.WindowAttention(10, 3, 4), "WindowAttention: channels do not split into heads"),
        (
            lambda: vnn.WindowAttentionV2(12, 3, (4, 2), (1, 2)),
            r"WindowAttentionV2: the shift leaves the window.*shift_size=\(1, 2\)",
        ),
        (lambda: vnn.PatchEmbed(8, 16), "the image holds no patch"),
    ],
)
def test_arguments_that_do_not_fit(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_autocast(dtype):
    """A block in half precision, and under autocast with float32 weights: the residual stream stays float32 there."""
    from vitkern.models.hierarchical.swin import SwinTransformerBlock
    from vitkern.models.hierarchical.swin_v2 import SwinTransformerV2Block
    from vitkern.models.plain.vit import Block

    cases = [
        (Block(24, 3, init_values=0.5), torch.randn(2, 9, 24)),
        (SwinTransformerBlock(24, 3, (4, 4), (2, 2)), torch.randn(2, 6, 7, 24)),
        (SwinTransformerV2Block(24, 3, (4, 4), (2, 2)), torch.randn(2, 6, 7, 24)),
    ]
    for block, x in cases:
        randomise(block).eval()
        expected = block(x)
        allowed = 40 * torch.finfo(dtype).eps * expected.abs().max()
        with torch.autocast("cpu", dtype=dtype):
            actual = block(x)
            actual.sum().backward()
        assert actual.dtype == torch.float32 and (actual - expected).abs().max() < allowed, type(block)
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in block.parameters())
        actual = block.to(dtype)(x.to(dtype))
        assert actual.dtype == dtype and (actual.float() - expected).abs().max() < allowed, type(block)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"])
def test_models_trace_without_graph_breaks(name):
    from vitkern.models import create_model

    shape = dict(depth=1, num_heads=2) if name.startswith("vit") else dict(depths=(2,), num_heads=(2,), window_size=3)
    model = randomise(create_model(name, embed_dim=16, img_size=32, num_classes=3, **shape)).eval()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-5)
