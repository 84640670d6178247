"""Attention of all tokens to all in ViL (Zhang et al., arXiv 2103.15358), and what its two kinds share."""

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.nn.heads import head_dim
from vitkern.ops.attention import attention_qkvpacked
from vitkern.ops.window_attention.windows import relative_index


class GlobalTokens(nn.Module):
    """What both kinds of attention share: checks, and the biases of pairs with a global token."""

    local_relative_position_bias_table: nn.Parameter
    g2l_relative_position_bias: nn.Parameter
    g2g_relative_position_bias: nn.Parameter

    def __init__(self, dim: int, num_heads: int, num_global: int, qk_scale: float | None, rel_pos: bool) -> None:
        super().__init__()
        name = type(self).__name__
        channels = head_dim(name, dim, num_heads)
        if num_global < 0:
            raise ValueError(f"{name}: no number of tokens: got num_global={num_global}; expected 0 or more.")
        self.num_heads, self.num_global, self.rel_pos = num_heads, num_global, rel_pos
        self.scale = channels**-0.5 if qk_scale is None else qk_scale
        self.register_load_state_dict_pre_hook(_drop_index)

    def _make_tables(self, rows: int) -> None:
        """The learnt biases, where there are any; ``rows`` of the local ones."""
        heads, tokens = self.num_heads, self.num_global
        if not self.rel_pos:
            return
        self.local_relative_position_bias_table = nn.Parameter(torch.empty(rows, heads))
        if tokens:
            self.g2l_relative_position_bias = nn.Parameter(torch.empty(2, heads, tokens))  # from global, to global
            self.g2g_relative_position_bias = nn.Parameter(torch.empty(heads, tokens, tokens))
        for table in self.parameters(recurse=False):
            nn.init.trunc_normal_(table, std=0.02)

    def _global_bias(self, local: int) -> Tensor:
        """Bias of global queries with all keys, where biases are learnt: (H, num_global, num_global + local)."""
        to_local = self.g2l_relative_position_bias[0].unsqueeze(-1).expand(-1, -1, local)
        return torch.cat([self.g2g_relative_position_bias, to_local], -1)

    def _check(self, x: Tensor, size: tuple[int, int]) -> None:
        if x.dim() != 3 or x.shape[1] != self.num_global + size[0] * size[1]:
            raise ValueError(
                f"{type(self).__name__}: tokens do not fit the image: got x {tuple(x.shape)}, size {tuple(size)}; "
                f"expected (B, {self.num_global} + img_h * img_w, C). Put the global tokens first."
            )


def _drop_index(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *args: object) -> None:
    """The original stores where each pair of tokens finds its bias; here that is computed."""
    state_dict.pop(f"{prefix}relative_position_index", None)


class ViLDenseAttention(GlobalTokens):
    """Attention of all tokens to all, with ViL's biases: its stages of few tokens.

    Parameters are named as in `Attention` of the ViL repository's `msvit.py`. Arguments as in `ViLAttention`, and

    Args:
        size: (img_h, img_w) of the image that the biases are for.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        size: tuple[int, int],
        *,
        num_global: int = 1,
        rel_pos: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, num_global, qk_scale, rel_pos)
        self.size = (size[0], size[1])
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self._make_tables((2 * size[0] - 1) * (2 * size[1] - 1))

    def bias(self) -> Tensor | None:
        """(H, N, N), added to the scores."""
        if not self.rel_pos:
            return None
        tokens = self.size[0] * self.size[1]
        table = self.local_relative_position_bias_table
        local = table.index_select(0, relative_index(self.size, table.device)).t().unflatten(1, (tokens, tokens))
        if not self.num_global:
            return local
        to_global = self.g2l_relative_position_bias[1].unsqueeze(1).expand(-1, tokens, -1)
        return torch.cat([self._global_bias(tokens), torch.cat([to_global, local], -1)], 1)

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """(B, num_global + img_h * img_w, C) -> the same shape. ``size`` may differ from the module's without biases.

        Raises:
            ValueError: another number of tokens.
        """
        self._check(x, self.size if self.rel_pos or size is None else size)
        qkv = self.qkv(x).unflatten(-1, (3, self.num_heads, -1))
        out = attention_qkvpacked(qkv, bias=self.bias(), scale=self.scale)
        return self.proj_drop(self.proj(out.flatten(2)))
