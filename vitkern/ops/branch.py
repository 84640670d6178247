"""What residual branches of linear layers share: checks of weights and scales, and parts of their PyTorch paths."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.dispatch import autocast_dtype, is_eager
from vitkern.ops import checks
from vitkern.ops.layernorm import check_devices

_CHUNK = 2048  # rows for each thread, whose hidden layer stays in a CPU's cache


def check_linears(
    op: str, x: Tensor, weights: Mapping[str, Tensor | None], biases: Mapping[str, tuple[Tensor | None, int]]
) -> None:
    """Biases have their lengths, and all are where ``x`` is and, but under autocast, of its dtype."""
    present = {name: weight for name, weight in weights.items() if weight is not None}
    for name, (bias, length) in biases.items():
        if bias is not None:
            checks.check_tensor(op, name, bias)
            checks.check_shape(op, name, bias, (length,), f"({length},)")
            present[name] = bias
    if autocast_dtype(x) is not None:
        check_devices(op, x=x, **present)
    else:
        checks.check_same(op, x=x, **present)


def check_scales(op: str, x: Tensor, layer_scale: Tensor | None, row_scale: Tensor | None) -> None:
    """A factor per channel, and one per sample that is a constant."""
    if layer_scale is not None:
        checks.check_tensor(op, "layer_scale", layer_scale)
        checks.check_shape(
            op, "layer_scale", layer_scale, (x.shape[-1],), f"({x.shape[-1]},), one per channel of x {tuple(x.shape)}"
        )
        check_devices(op, x=x, layer_scale=layer_scale)
    if row_scale is not None:
        checks.check_tensor(op, "row_scale", row_scale)
        checks.check_shape(
            op,
            "row_scale",
            row_scale,
            (x.shape[0] if x.dim() > 1 else 1,),
            f"(B,), one per sample of x {tuple(x.shape)}",
        )
        checks.check_no_gradient(op, "row_scale", row_scale)
        check_devices(op, x=x, row_scale=row_scale)


def is_graded(tensors: Iterable[Tensor | None]) -> bool:
    """Whether a gradient of one of them is wanted."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def goes_in_place(x: Tensor, row_scale: Tensor | None, *others: Tensor | None) -> bool:
    """Whether nobody can tell that the branch is computed in parts and in place: on a CPU, without gradients."""
    return (
        x.device.type == "cpu"
        and row_scale is None
        and is_eager(x, *others)
        and not (is_graded((x, *others)) or torch.is_autocast_enabled("cpu"))
    )


def in_chunks(
    x: Tensor,
    hidden_of: Callable[[Tensor], Tensor],
    fc2_weight: Tensor,
    fc2_bias: Tensor | None,
    layer_scale: Tensor | None,
    post_norm: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """``x + layer_scale * post_norm(fc2(hidden_of(x)))``, a few rows at a time through both layers, so that the hidden
    layer never leaves the cache."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = x.reshape(-1, x.shape[-1])
    chunk = torch.get_num_threads() * _CHUNK
    for source, target in zip(rows.split(chunk), out.view(rows.shape).split(chunk), strict=True):
        hidden = hidden_of(source)
        if fc2_bias is None:
            torch.mm(hidden, fc2_weight.t(), out=target)
        else:
            torch.addmm(fc2_bias, hidden, fc2_weight.t(), out=target)
        if post_norm is not None:
            target.copy_(post_norm(target))
        if layer_scale is not None:
            target.mul_(layer_scale)
        target.add_(source)
    return out


def added(x: Tensor, y: Tensor, layer_scale: Tensor | None, row_scale: Tensor | None) -> Tensor:
    """``x + row_scale * layer_scale * y`` in the dtype of ``x``, contiguous."""
    if layer_scale is not None:
        y = y * layer_scale
    if row_scale is not None:
        y = y * row_scale.view(-1, *[1] * (x.dim() - 1))
    return (x + y).to(x.dtype).contiguous()


def as_under_autocast(x: Tensor, weight: Tensor) -> AbstractContextManager:
    """Where the residual stream is wider than the weights, autocast made them so: for what a kernel was to compute."""
    if x.dtype == weight.dtype:
        return nullcontext()
    return torch.autocast(x.device.type, weight.dtype, enabled=True, cache_enabled=False)


def activate(y: Tensor, act: str) -> Tensor:
    """``act``: of the ``ACTIVATIONS`` of `vitkern.ops.layernorm_mlp` or `vitkern.ops.layernorm_glu`."""
    if act == "identity":
        return y
    if act in ("relu", "sigmoid"):
        return getattr(y, act)()
    if act == "silu":
        return F.silu(y)
    if act == "quick_gelu":
        return y * torch.sigmoid(1.702 * y)
    return F.gelu(y, approximate="tanh" if act == "gelu_tanh" else "none")
