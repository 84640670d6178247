"""Talking-heads attention on its kernels, in the interpreter: what it reduces to, what is exact, what does not fit."""

import pytest
import torch

import vitkern
from vitkern import dispatch
from vitkern.kernels.machine.architecture import forced_arch
from vitkern.kernels.talking.blocks import talking_takes
from vitkern.ops.talking_heads_attention import talking_heads_attention

pytestmark = pytest.mark.interpreter


def on_kernel(*arguments, **options):
    with dispatch.use_backend("interpreter"):
        return talking_heads_attention(*arguments, **options)


@pytest.mark.parametrize("heads", [3, 16])
def test_heads_that_do_not_talk_attend_as_ever(heads):
    qkv, same, nothing = torch.randn(2, 37, 3, heads, 12), torch.eye(heads), torch.zeros(heads)
    with dispatch.use_backend("torch"):
        expected = vitkern.attention_qkvpacked(qkv)
    torch.testing.assert_close(on_kernel(qkv, same, same, nothing, nothing), expected, rtol=1e-5, atol=2e-6)


def test_mixing_is_as_accurate_as_float32_in_half_precision():
    """Logits that are differences of large products: rounded to bfloat16 before they are mixed, they would be noise."""
    qkv = torch.randn(1, 20, 3, 2, 16).bfloat16()
    qkv[:, :, :2, 1] = qkv[:, :, :2, 0]
    qkv[:, :, 0] *= 64
    before, after = torch.tensor([[1.0, -0.96875], [0.96875, -1.0]]), torch.eye(2)
    found = on_kernel(qkv, before, after).double()
    expected = vitkern.talking_heads_attention(qkv.double(), before.double(), after.double())
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=2e-2)


def test_two_runs_are_equal_and_a_bias_of_logits_has_no_gradient():
    tensors = [torch.randn(s, requires_grad=True) for s in ((2, 35, 3, 5, 8), (5, 5), (5, 5), (5,), (5,))]
    runs = []
    for _ in range(2):
        out = on_kernel(*tensors)
        runs.append((out, *torch.autograd.grad(out.square().sum(), tensors)))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert torch.equal(runs[0][4], torch.zeros(5))


@pytest.mark.parametrize(
    ("heads", "dim", "arch", "options", "reason"),
    [
        (17, 8, 0, {}, "17 heads of 8 channels in torch.float32 do not fit the tile that mixes them"),
        (2, 72, 0, {}, "2 heads of 72 channels"),
        (2, 48, 90, {}, "2 heads of 48 channels in torch.float32"),
        (2, 48, 120, {}, "2 heads of 48 channels"),
        (2, 8, 0, dict(dropout_p=0.5), "the kernels do not drop weights"),
    ],
)
def test_what_does_not_fit_runs_in_pytorch(heads, dim, arch, options, reason):
    qkv, same = torch.randn(1, 4, 3, heads, dim), torch.eye(heads)
    with forced_arch(arch):
        with pytest.raises(NotImplementedError, match=reason):
            on_kernel(qkv, same, same, **options)
        assert talking_heads_attention(qkv, same, same, **options).shape == (1, 4, heads, dim)


def test_what_gpus_take():
    takes = {
        arch: [d for d in (16, 32, 48, 64) if talking_takes(16, d, 2, arch)] for arch in (80, 89, 90, 100, 120, 942)
    }
    wide = [16, 32, 48, 64]
    assert takes == {80: wide[:3], 89: wide[:1], 90: wide, 100: wide, 120: wide[:1], 942: wide}
