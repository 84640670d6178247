"""The token-mixing half of a block of MLP-Mixer as a module."""

import torch.nn as nn
from torch import Tensor

from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import Mlp
from vitkern.nn.layers import DropPath
from vitkern.ops.bypass import may_bypass
from vitkern.ops.token_mixing import token_mixing


class TokenMixing(nn.Module):
    """``x + drop_path(mlp_tokens(norm1(x)^T)^T)`` (Tolstikhin et al., arXiv 2105.01601, equation 1); parameters named
    as in `timm.models.mlp_mixer.MixerBlock`, whose other half is `vitkern.nn.layernorm_mlp.mlp_residual`.

    One call of `vitkern.ops.token_mixing`; modules that are adapted, hooked or drop activations are called.

    Args:
        dim: C of x (B, N, C).
        seq_len: N.
        tokens_dim: width between the layers.
        act: "gelu", "gelu_tanh" or "quick_gelu".
        drop: dropout after each layer, in training.
        drop_path: probability that a sample skips the branch, in training.
        eps: of the LayerNorm.
    """

    def __init__(
        self,
        dim: int,
        seq_len: int,
        tokens_dim: int,
        act: str = "gelu",
        drop: float = 0.0,
        drop_path: float = 0.0,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps)
        self.mlp_tokens = Mlp(seq_len, tokens_dim, act, drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        norm, mlp, drop_path = self.norm1, self.mlp_tokens, self.drop_path
        if not (
            may_bypass(norm, LayerNorm)
            and may_bypass(mlp, Mlp)
            and may_bypass(mlp.fc1, nn.Linear)
            and may_bypass(mlp.fc2, nn.Linear)
            and may_bypass(drop_path, DropPath)
            and not (mlp.training and mlp.drop > 0.0)
        ):
            return x + drop_path(mlp(norm(x).transpose(1, 2)).transpose(1, 2))
        linears = (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
        return token_mixing(
            x, norm.weight, norm.bias, *linears, eps=norm.eps, act=mlp.act, row_scale=drop_path.row_scale(x)
        )  # fmt: skip
