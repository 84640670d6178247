"""Stand-alone self-attention ResNets against the formula, in timm's network of bottlenecks, and the paper's sizes."""

import model_pairs
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from uninitialised import uninitialised

import vitkern.models as models
from vitkern.models.hierarchical.sasa import AttentionStem, SpatialAttention

SMALL = dict(num_classes=5, depths=(1, 2, 1, 1), mid_chs=(16, 16, 32, 32), num_heads=4, kernel_size=3, stem_chs=16)


class Unfolded(nn.Module):
    """softmax(q . (k + r)) v with all windows side by side (arXiv 1906.05909, equations 2, 3); as timm calls it."""

    def __init__(self, dim, stride, num_heads, kernel_size, device=None, dtype=None):
        super().__init__()
        self.heads, self.kernel, self.stride = num_heads, kernel_size, stride
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        half = dim // num_heads // 2
        self.rel_h, self.rel_w = (nn.Parameter(torch.zeros(num_heads, kernel_size, half)) for _ in range(2))

    def forward(self, x):
        batch, channels, height, width = x.shape
        q, k, v = F.conv2d(x, self.qkv.weight[:, :, None, None]).chunk(3, 1)
        windows = [F.unfold(part, self.kernel, padding=self.kernel // 2) for part in (k, v)]
        shape = batch, self.heads, channels // self.heads, self.kernel, self.kernel, height * width
        k, v = (part.reshape(shape) for part in windows)
        rows = self.rel_h.transpose(1, 2)[:, :, :, None].expand(-1, -1, -1, self.kernel)  # (H, D / 2, k, k)
        columns = self.rel_w.transpose(1, 2)[:, :, None].expand(-1, -1, self.kernel, -1)
        k = k + torch.cat((rows, columns), 1)[..., None]
        logits = torch.einsum("bhdn,bhdyxn->bhyxn", q.reshape(*shape[:3], -1), k)
        weights = logits.flatten(2, 3).softmax(2).view_as(logits)
        out = torch.einsum("bhyxn,bhdyxn->bhdn", weights, v).reshape(x.shape)
        return out if self.stride == 1 else F.avg_pool2d(out, 2, ceil_mode=True)


def small():
    """(ours, timm's with `Unfolded`), with the same random weights."""
    timm = pytest.importorskip("timm", reason="timm is the reference of this test")
    from timm.models.byobnet import ByoBlockCfg

    blocks = tuple(
        ByoBlockCfg("self_attn", d=depth, c=4 * channels, s=min(i, 1) + 1, gs=0, br=0.25)
        for i, (depth, channels) in enumerate(zip(SMALL["depths"], SMALL["mid_chs"], strict=True))
    )
    with uninitialised():
        theirs = timm.create_model(
            "halonet_h1", num_classes=5, blocks=blocks, stem_chs=16, drop_path_rate=0.2,
            self_attn_layer=Unfolded, self_attn_kwargs=dict(num_heads=4, kernel_size=3),
        )  # fmt: skip
    with torch.device("meta"):
        ours = models.create_model("sasa_resnet26_conv_stem", drop_path_rate=0.2, **SMALL)
    return model_pairs.same_weights(ours, theirs)


def test_logits_and_maps_agree_with_the_formula():
    ours, theirs = small()
    for size in (64, (45, 70)):
        model_pairs.assert_logits_agree(ours, theirs, size)
    model_pairs.assert_intermediates_agree(ours, theirs, model_pairs.images((64, 40), 1))


def test_gradients_agree_with_the_formula():
    model_pairs.assert_gradients_agree(*small(), model_pairs.images((45, 64), 3))


@pytest.mark.parametrize("size", [(6, 8), (5, 7)])
def test_stride_takes_means(size):
    layer = SpatialAttention(16, 2, 4, 5).double()
    peer = Unfolded(16, 2, 4, 5).double()
    peer.load_state_dict(layer.state_dict())
    x = torch.randn(2, 16, *size, dtype=torch.float64)
    torch.testing.assert_close(layer(x), peer(x), rtol=1e-12, atol=1e-12)


def by_pixel(stem, x):
    """`AttentionStem` before its norm, pixel by pixel and place by place."""
    batch, _, height, width = x.shape
    places = [(a, b) for a in range(4) for b in range(4)]
    out = x.new_zeros(batch, *stem.query.shape[:2], height, width)
    padded = F.pad(x, (1, 2, 1, 2))
    for i in range(height):
        for j in range(width):
            q = torch.einsum("hdc,bc->bhd", stem.query, x[:, :, i, j])
            logits, values = [], []
            for a, b in places:
                pixel = padded[:, :, i + a, j + b]
                position = stem.row_embed[a] + stem.column_embed[b]
                share = torch.stack([position @ nu for nu in stem.mixture_embed]).softmax(0)
                weight = sum(p * w for p, w in zip(share, stem.value, strict=True))
                logits.append((q * torch.einsum("hdc,bc->bhd", stem.key, pixel)).sum(-1))
                values.append(torch.einsum("hdc,bc->bhd", weight, pixel))
            weights = torch.stack(logits).softmax(0)
            out[..., i, j] = (weights[..., None] * torch.stack(values)).sum(0)
    return out.flatten(1, 2)


def test_the_stem_is_the_formula():
    stem = AttentionStem(3, 12, num_heads=2, embed_dim=8).double()
    x = torch.randn(2, 3, 6, 9, dtype=torch.float64, requires_grad=True)
    out, expected = stem(x), stem.pool(stem.norm(by_pixel(stem, x)))
    assert out.shape == (2, 12, 2, 3)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-10)
    inputs = [x, *stem.parameters()]
    found, wanted = (torch.autograd.grad(y.square().sum(), inputs) for y in (out, expected))
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


# Table 1, in millions, with the attention stem; 38 layers come out as 14.18.
@pytest.mark.parametrize(
    "layers, millions, exact", [(26, 10.3, 10_335_144), (38, 14.1, 14_183_144), (50, 18.0, 18_031_144)]
)
def test_published_parameter_counts(layers, millions, exact):
    description = models.describe(f"sasa_resnet{layers}")
    assert description.parameters == exact and abs(exact / 1e6 - millions) < 0.1
    assert models.describe(f"sasa_resnet{layers}_conv_stem").parameters == exact + 7488
    assert (description.input_size, description.num_classes) == ((3, 224, 224), 1000)


@pytest.mark.parametrize("stem", ["attention", "conv"])
def test_as_a_backbone(stem):
    name = "sasa_resnet26" if stem == "attention" else "sasa_resnet26_conv_stem"
    x = model_pairs.images((45, 70), 2)
    model = models.create_model(name, **SMALL)
    model_pairs.assert_checkpointing_changes_nothing(model, x)
    model_pairs.assert_another_head(model, x)
    model_pairs.assert_maps(name, 64, **SMALL)
    tables = {name for name in model.no_weight_decay() if name.endswith(("rel_h", "rel_w"))}
    assert len(tables) == 10 and len(model.no_weight_decay()) == (13 if stem == "attention" else 10)


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(stem="patch"), r"SasaResNet: unknown stem: got stem='patch'; expected 'attention' or 'conv'"),
        (dict(kernel_size=4), "the kernel has no centre"),
        (dict(num_heads=5), "channels do not split into heads"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        models.create_model("sasa_resnet26_conv_stem", **SMALL | changes)
