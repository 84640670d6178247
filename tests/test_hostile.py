"""What a caller may have around an operator, or instead of tensors and projections: empty batches, default devices,
function modes, tensor subclasses, projections that are no linear layer."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

import vitkern
from vitkern.ops.decomposed_attention import decomposed_attention, projected_decomposed_attention
from vitkern.ops.halo_attention import halo_attention_qkvpacked
from vitkern.ops.local_attention import local_attention
from vitkern.ops.neighborhood_attention import neighborhood_attention
from vitkern.ops.sparse_attention import sparse_attention
from vitkern.ops.standalone_attention import standalone_attention


def leaf(*shape):
    return torch.randn(shape, requires_grad=True)


EMPTY = {
    "neighborhood": (lambda qkv, t: neighborhood_attention(qkv, num_heads=2, kernel=(3, 3), table=t), [(2, 5, 5)]),
    "local": (
        lambda qkv, h, w: local_attention(qkv, num_heads=2, block=(2, 2), rel_h=h, rel_w=w),
        [(0, 4, 4, 2, 2), (0, 4, 4, 2, 2)],
    ),
    "local, lse": (lambda qkv: local_attention(qkv, num_heads=2, block=(2, 2), return_lse=True), []),
    "decomposed": (lambda qkv, h, w: decomposed_attention(qkv, h, w, num_heads=2), [(7, 4), (7, 4)]),
    "halo": (
        lambda qkv, h, w: halo_attention_qkvpacked(qkv, h, w, num_heads=2, block=2, halo=1),
        [(7, 4), (7, 4)],
    ),
    "standalone": (
        lambda qkv, h, w: standalone_attention(qkv, h, w, num_heads=2, kernel=(3, 3)),
        [(2, 3, 2), (2, 3, 2)],
    ),
    "windows": (lambda qkv, t: vitkern.window_attention(qkv, num_heads=2, window=(2, 2), table=t), [(9, 2)]),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_batch_has_gradients_of_zero(name):
    function, shapes = EMPTY[name]
    tensors = [leaf(0, 4, 4, 24), *(leaf(*shape) for shape in shapes)]
    out = function(*tensors)
    outs = out if isinstance(out, tuple) else (out,)
    assert outs[0].shape == (0, 4, 4, 8)
    sum(one.sum() for one in outs).backward()
    for tensor in tensors:
        assert tensor.grad is not None and tensor.grad.shape == tensor.shape and not tensor.grad.any()


@pytest.mark.parametrize("needs_grad", [False, True])
@pytest.mark.parametrize("window", [(2, 2), (11, 11)], ids=["small", "large"])
def test_a_default_device_does_not_reach_inside(needs_grad, window):
    qkv = torch.randn(1, *window, 24, requires_grad=needs_grad)
    expected = vitkern.window_attention(qkv, num_heads=2, window=window)
    with torch.device("meta"):  # stands for torch.set_default_device("cuda") with a model on the CPU
        out = vitkern.window_attention(qkv, num_heads=2, window=window)
        grads = torch.autograd.grad(out.sum(), qkv) if needs_grad else ()
    assert out.device.type == "cpu" and all(grad.device.type == "cpu" for grad in grads)
    torch.testing.assert_close(out, expected)


class Doubled(torch.Tensor):
    """A weight that makes products twice as large, as a quantised one may keep its scale beside it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            return 2 * F.linear(*(a.as_subclass(torch.Tensor) if isinstance(a, torch.Tensor) else a for a in args))
        return super().__torch_function__(func, types, args, kwargs or {})


class Doubles(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return 2 * out if func is F.linear else out


def mlp(x, fc1, fc2):
    return vitkern.layernorm_mlp(x, None, None, fc1, None, fc2, None, eps=1e-5)


def test_subclasses_and_modes_see_the_products_of_an_mlp():
    x, fc1, fc2 = torch.randn(2, 3, 8), torch.randn(16, 8), torch.randn(8, 16)
    expected = x + F.linear(F.gelu(2 * F.linear(F.layer_norm(x, (8,)), fc1)), fc2) * 2
    with torch.no_grad():
        torch.testing.assert_close(mlp(x, *(w.as_subclass(Doubled) for w in (fc1, fc2))), expected)
        with Doubles():
            torch.testing.assert_close(mlp(x, fc1, fc2), expected)


class Watchful(nn.Module):
    """A projection that takes batches of rows only, and looks at all of them, as dynamic quantisation does."""

    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(8, width)
        self.shapes = []

    def forward(self, x):
        assert x.dim() >= 2, "a single row"
        self.shapes.append(tuple(x.shape))
        return self.linear(x) * x.abs().amax()


@pytest.mark.parametrize("needs_grad", [False, True])
def test_a_projection_that_looks_at_all_rows_is_called_once_with_them(needs_grad):
    project, x = Watchful(24), torch.randn(2, 5, 5, 8)
    options = dict(num_heads=2, window=(4, 4))
    with torch.set_grad_enabled(needs_grad):
        out = vitkern.projected_window_attention(x, project, **options)
        assert len(project.shapes) == 1
        rows = project.linear(torch.cat([x.flatten(0, 2), torch.zeros(1, 8)])) * x.abs().amax()
        expected = vitkern.window_attention(rows[:-1].view(2, 5, 5, 24), padding=rows[-1], **options)
    torch.testing.assert_close(out, expected)


def test_decomposed_attention_calls_it_once_too():
    project, x, tables = Watchful(24), torch.randn(1, 5, 5, 8), [torch.randn(7, 4) for _ in range(2)]
    out = projected_decomposed_attention(x, project, *tables, num_heads=2, window=(4, 4))
    assert project.shapes == [(26, 8)]
    rows = project.linear(torch.cat([x.flatten(0, 2), torch.zeros(1, 8)])) * x.abs().amax()
    options = dict(num_heads=2, window=(4, 4), padding=rows[-1])
    torch.testing.assert_close(out, decomposed_attention(rows[:-1].view(1, 5, 5, 24), *tables, **options))


@pytest.mark.parametrize("drop", ["image", "channels", "dimension"])
def test_a_projection_that_loses_something_is_refused(drop):
    cut = {"image": lambda y: y[:1], "channels": lambda y: y[..., :-1], "dimension": lambda y: y.flatten()}[drop]
    linear = nn.Linear(8, 24)
    with pytest.raises((ValueError, TypeError), match="project"):
        vitkern.projected_window_attention(
            torch.randn(2, 4, 4, 8), lambda x: cut(linear(x)), num_heads=2, window=(2, 2)
        )
    with pytest.raises((ValueError, TypeError), match="project"):
        tables = [torch.randn(7, 4) for _ in range(2)]
        projected_decomposed_attention(torch.randn(2, 4, 4, 8), lambda x: cut(linear(x)), *tables, num_heads=2)


def test_vmap_over_the_index_of_sampled_queries():
    q, k, v = (torch.randn(1, 2, 6, 4) for _ in range(3))
    index = torch.stack([torch.randperm(6)[:3] for _ in range(5)])[:, None]
    mapped = torch.vmap(lambda i: sparse_attention(q, k, v, index=i))(index)
    for i, one in enumerate(mapped):
        torch.testing.assert_close(one, sparse_attention(q, k, v, index=index[i]))
