"""MaxViT's and CoAtNet's attention: against timm's modules, against the definition, and by its properties."""

import copy
import pickle

import pytest
import torch
from torch import nn

from vitkern.nn.partition_attention import PartitionAttention
from vitkern.reference.local_attention import local_attention as local_reference

maxxvit = pytest.importorskip("timm.models.maxxvit", reason="timm's modules are the oracle of this file")


def randomise(module):
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
    return module.double()


def results(module, x, call=None):
    x = x.clone().requires_grad_()
    out = (call or module)(x)
    out.sin().sum().backward()
    gradients = {
        name: p.grad.reshape(p.shape[:2] if p.dim() == 4 else p.shape) for name, p in module.named_parameters()
    }
    return out.detach(), x.grad, gradients


def agree(ours, theirs, x, call):
    randomise(theirs)
    ours.double().load_state_dict(theirs.state_dict(), strict=True)
    (out, dx, gradients), (ideal, ideal_dx, ideal_gradients) = results(ours, x), results(theirs, x, call)
    torch.testing.assert_close(out, ideal, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(dx, ideal_dx, rtol=1e-9, atol=1e-10)
    assert gradients.keys() == ideal_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, ideal_gradients[name], rtol=1e-9, atol=1e-9)


# image, size of a part, heads
IMAGES = {
    "square": ((14, 14), (7, 7), 2),
    "rectangular image": ((8, 20), (4, 4), 1),
    "rectangular parts": ((6, 15), (2, 5), 4),
    "one part": ((7, 5), (7, 5), 2),
    "parts of a token": ((3, 4), (1, 1), 1),
    "odd steps": ((15, 9), (3, 3), 2),
}


@pytest.mark.parametrize("partition", ["window", "grid"])
@pytest.mark.parametrize("head_first", [True, False], ids=["head first", "qkv first"])
@pytest.mark.parametrize("name", IMAGES)
def test_against_timm_channels_last(name, partition, head_first):
    image, size, heads = IMAGES[name]
    config = maxxvit.MaxxVitTransformerCfg(
        window_size=size, grid_size=size, dim_head=32 // heads, head_first=head_first, rel_pos_type="bias"
    )
    block = maxxvit.PartitionAttentionCl(32, "block" if partition == "window" else "grid", config)
    ours = PartitionAttention(32, heads, size, partition, head_first=head_first)
    agree(ours, block.attn, torch.randn(2, *image, 32, dtype=torch.double), block._partition_attn)


@pytest.mark.parametrize("partition", ["window", "grid"])
@pytest.mark.parametrize("rel_pos", ["bias", "bias_tf", None])
def test_against_timm_channels_first(partition, rel_pos):
    config = maxxvit.MaxxVitTransformerCfg(
        window_size=(3, 4), grid_size=(3, 4), dim_head=8, rel_pos_type=rel_pos or "", attn_bias=False
    )
    block = maxxvit.PartitionAttention2d(24, "block" if partition == "window" else "grid", config)
    if rel_pos == "bias_tf":
        block.attn.rel_pos.double()
    ours = PartitionAttention(24, 3, (3, 4), partition, rel_pos=rel_pos, bias=False)
    x = torch.randn(2, 9, 8, 24, dtype=torch.double)
    agree(ours, block.attn, x, lambda x: block._partition_attn(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@pytest.mark.parametrize("dim, out_dim, expand_first", [(16, 32, True), (16, 32, False), (32, 16, True)])
def test_coatnets_attention_over_the_image(dim, out_dim, expand_first):
    rel_pos = maxxvit.partial(maxxvit.RelPosBias, window_size=(5, 6))
    theirs = maxxvit.Attention2d(dim, out_dim, dim_head=8, expand_first=expand_first, rel_pos_cls=rel_pos)
    attn_dim = out_dim if expand_first else dim
    ours = PartitionAttention(dim, attn_dim // 8, (5, 6), attn_dim=attn_dim, out_dim=out_dim)
    x = torch.randn(2, 5, 6, dim, dtype=torch.double)
    agree(ours, theirs, x, lambda x: theirs(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


@pytest.mark.parametrize("partition", ["window", "grid"])
def test_against_the_definition(partition):
    module = randomise(PartitionAttention(12, 3, (2, 4), partition, head_first=False))
    x = torch.randn(2, 6, 8, 12, dtype=torch.double)
    steps = (3, 2) if partition == "grid" else (1, 1)
    table = module.rel_pos.relative_position_bias_table.view(3, 7, 3).permute(2, 0, 1).flip(1, 2)
    ideal = local_reference(module.qkv(x), num_heads=3, block=(2, 4), dilation=steps, table=table)
    torch.testing.assert_close(module(x), module.proj(ideal), rtol=1e-10, atol=1e-11)


def test_a_grid_is_windows_of_the_image_in_another_order():
    grid = randomise(PartitionAttention(8, 2, (2, 3), "grid"))
    windows = copy.deepcopy(grid)
    windows.partition = "window"
    x = torch.randn(1, 8, 9, 8, dtype=torch.double)
    sorted_rows = torch.arange(8).view(2, 4).t().reshape(-1), torch.arange(9).view(3, 3).t().reshape(-1)
    reordered = x[:, sorted_rows[0]][:, :, sorted_rows[1]]
    expected = windows(reordered)
    torch.testing.assert_close(grid(x)[:, sorted_rows[0]][:, :, sorted_rows[1]], expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("partition", ["window", "grid"])
def test_half_precision(partition, dtype):
    module = randomise(PartitionAttention(16, 2, 4, partition)).to(dtype)
    x = torch.randn(2, 8, 12, 16).to(dtype)
    out, exact = module(x), copy.deepcopy(module).double()(x.double())
    assert out.dtype == dtype
    torch.testing.assert_close(out.double(), exact, rtol=0, atol=8 * torch.finfo(dtype).eps * exact.abs().max().item())


@pytest.mark.parametrize("partition", ["window", "grid"])
def test_views_copies_and_hooks(partition):
    module = randomise(PartitionAttention(8, 2, 3, partition))
    wide = torch.randn(2, 6, 9, 20, dtype=torch.double)
    expected = module(wide[..., 5:13].contiguous())
    for other in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        torch.testing.assert_close(other(wide[..., 5:13]), expected)
    seen = []
    module.qkv.register_forward_hook(lambda *call: seen.append(call[-1].shape[-1]))
    torch.testing.assert_close(module(wide[..., 5:13]), expected)
    assert set(seen) == {24}
    assert module(wide[:0, ..., 5:13]).shape == (0, 6, 9, 8)


def test_an_adapted_projection_is_called():
    class Doubled(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2.0

    module = randomise(PartitionAttention(8, 2, 3, "grid"))
    x = torch.randn(2, 6, 9, 8, dtype=torch.double)
    expected = module(x)
    wrapped = Doubled(8, 24).double()
    wrapped.load_state_dict({name: value / 2 for name, value in module.qkv.state_dict().items()})
    module.qkv = wrapped
    torch.testing.assert_close(module(x), expected)


def test_bad_input():
    with pytest.raises(ValueError, match="channels do not split into heads: got attn_dim=10, num_heads=4"):
        PartitionAttention(10, 4, 7)
    for wrong in (dict(partition="block"), dict(rel_pos="mlp"), dict(size=0)):
        with pytest.raises(ValueError, match="PartitionAttention: no such attention"):
            PartitionAttention(**dict(dim=8, num_heads=2, size=7) | wrong)
    with pytest.raises(ValueError, match=r"the parts do not divide the image: got image \(14, 15\).*Resize or pad"):
        PartitionAttention(8, 2, 7, "grid")(torch.zeros(1, 14, 15, 8))
