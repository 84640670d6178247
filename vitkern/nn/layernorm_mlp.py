"""The two-layer perceptron as a module, and a block's MLP branch, LayerNorm and residual included, in one call."""

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_glu import glu_residual
from vitkern.nn.layers import DropPath, LayerScale
from vitkern.ops.branch import activate
from vitkern.ops.bypass import may_bypass
from vitkern.ops.layernorm_mlp import ACTIVATIONS, layernorm_mlp

UNFUSED = ("silu",)  # activations that the operator does not have


class Mlp(nn.Module):
    """``fc2(act(fc1(x)))``; parameters named as in `timm.layers.Mlp`.

    It has no norm and no residual: a block gives the parameters of this module to
    `vitkern.ops.layernorm_mlp`, which does all at once.

    Args:
        dim: C of x (..., C).
        hidden_dim: width between the layers.
        act: "gelu", "gelu_tanh", "quick_gelu" or "silu".
        drop: dropout after each layer, in training.
        bias: both layers have one.
    """

    def __init__(self, dim: int, hidden_dim: int, act: str = "gelu", drop: float = 0.0, bias: bool = True) -> None:
        super().__init__()
        if act not in (*ACTIVATIONS, *UNFUSED):
            raise ValueError(f"Mlp: unknown act: got {act!r}; expected one of {', '.join((*ACTIVATIONS, *UNFUSED))}.")
        if not 0.0 <= drop < 1.0:
            raise ValueError(f"Mlp: drop is no probability: got {drop}; expected 0 <= drop < 1.")
        self.fc1 = nn.Linear(dim, hidden_dim, bias=bias)
        self.fc2 = nn.Linear(hidden_dim, dim, bias=bias)
        self.act = act
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        x = activate(self.fc1(x), self.act)
        x = self.fc2(F.dropout(x, self.drop, self.training))
        return F.dropout(x, self.drop, self.training)

    def extra_repr(self) -> str:
        return f"act={self.act}, drop={self.drop:g}"


class ReluMlp(Mlp):
    """``fc2(relu(fc1(x)))`` (arXiv 1706.03762, equation 2). Arguments are `Mlp`'s."""

    def __init__(self, dim: int, hidden_dim: int, drop: float = 0.0) -> None:
        super().__init__(dim, hidden_dim, drop=drop)
        self.act = "relu"


def mlp_residual(
    x: Tensor,
    norm: nn.Module,
    mlp: nn.Module,
    drop_path: nn.Module,
    layer_scale: nn.Module | Tensor | None = None,
    *,
    post_norm: bool = False,
) -> Tensor:
    """``x + drop_path(layer_scale(mlp(norm(x))))``, or with ``post_norm`` (SwinV2) ``x + drop_path(norm(mlp(x)))``.

    One call of `vitkern.ops.layernorm_mlp`, or of `vitkern.ops.layernorm_glu`, where that computes the same; modules
    that are adapted, hooked or drop activations are called.

    Args:
        x: (B, ..., C).
        norm: LayerNorm over C, or before a `GluMlp` RMSNorm.
        mlp: `Mlp` C -> hidden -> C, or `GluMlp`.
        drop_path: `DropPath`, or any module in its place.
        layer_scale: `LayerScale`, or any module in its place, or the (C,) factors themselves, or None.
    """
    if isinstance(layer_scale, nn.Module):
        if may_bypass(layer_scale, nn.Identity):
            layer_scale = None
        elif may_bypass(layer_scale, LayerScale):
            layer_scale = layer_scale.gamma
    if may_bypass(drop_path, DropPath) and not isinstance(layer_scale, nn.Module) and not post_norm:
        fused = glu_residual(x, norm, mlp, drop_path, layer_scale)
        if fused is not None:
            return fused
    if not (
        may_bypass(norm, LayerNorm)
        and may_bypass(mlp, Mlp)
        and may_bypass(mlp.fc1, nn.Linear)
        and may_bypass(mlp.fc2, nn.Linear)
        and may_bypass(drop_path, DropPath)
        and not isinstance(layer_scale, nn.Module)
        and not (mlp.training and mlp.drop > 0.0)
        and mlp.act in ACTIVATIONS
    ):
        branch = norm(mlp(x)) if post_norm else mlp(norm(x))
        if layer_scale is not None:
            branch = layer_scale(branch) if isinstance(layer_scale, nn.Module) else branch * layer_scale
        return x + drop_path(branch)
    return layernorm_mlp(
        x,
        norm.weight,
        norm.bias,
        mlp.fc1.weight,
        mlp.fc1.bias,
        mlp.fc2.weight,
        mlp.fc2.bias,
        eps=norm.eps,
        act=mlp.act,
        layer_scale=layer_scale,
        row_scale=drop_path.row_scale(x),
        post_norm=post_norm,
    )
