"""Attention of ViL, the multi-scale Vision Longformer (Zhang et al., arXiv 2103.15358): chunks and global tokens."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.vil_dense_attention import GlobalTokens
from vitkern.ops.attention import attention
from vitkern.ops.bypass import may_bypass
from vitkern.ops.local_attention import Arguments, local_attention
from vitkern.ops.window_attention.windows import padded_size

MODES = ("exact", "zero", "cyclic")
NEIGHBORS = ("all", "one", "none")
AROUND = tuple((dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0))


class ViLAttention(GlobalTokens):
    """Tokens of an image attend to the chunks around them and to global tokens, global tokens to all (section 3.2).

    Parameters are named as in `Long2DSCSelfAttention` of the ViL repository; shared weights appear under both names.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H.
        window: side w of a chunk.
        num_global: tokens that see and are seen by all; they come first.
        mode: "exact": a query sees the keys at most w rows and columns away; "zero": the w x w chunk it lies in and the
            eight around it; "cyclic": these, with the chunks of the other end beyond a border. Where w does not divide
            the image, the last chunk is filled up with keys and values of zero, which only cyclic neighbours see.
        neighbors: which of the eight: "all"; "one", drawn for each call in training, and all else; "none".
        share_weights: global tokens are projected by the weights of the others.
        only_global: the tokens of the image attend to global tokens alone, without a bias.
        rel_pos: learn biases of relative positions and of pairs with a global token.
        qkv_bias: q, k and v projections have a bias.
        qk_scale: factor of the scores; (C / H) ** -0.5 by default.
        proj_drop: dropout after the output projection, in training.

    Raises:
        ValueError: arguments that do not fit one another.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: int = 7,
        *,
        num_global: int = 1,
        mode: str = "zero",
        neighbors: str = "all",
        share_weights: bool = True,
        only_global: bool = False,
        rel_pos: bool = True,
        qkv_bias: bool = True,
        qk_scale: float | None = None,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, num_global, qk_scale, rel_pos)
        _check_pattern(window, num_global, mode, neighbors, only_global)
        self.window, self.mode, self.neighbors, self.only_global = window, mode, neighbors, only_global
        self.query = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)
        if num_global:
            self.query_global = self.query if share_weights else nn.Linear(dim, dim, bias=qkv_bias)
            self.kv_global = self.kv if share_weights else nn.Linear(dim, 2 * dim, bias=qkv_bias)
            self.proj_global = self.proj if share_weights else nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        self._make_tables((4 * window - 1) ** 2)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, num_global + img_h * img_w, C), with ``size`` (img_h, img_w) -> the same shape.

        Raises:
            ValueError: another number of tokens.
        """
        self._check(x, size)
        qkv = self._project(x)
        out = self.proj(self._local(qkv, size))
        if self.num_global:
            out = torch.cat([self.proj_global(self._global(x, qkv)), out], 1)
        return self.proj_drop(out)

    def draw_neighbor(self) -> tuple[int, int] | None:
        """(dy, dx) of the one chunk that is seen beside a query's own; None: all eight are."""
        if self.neighbors != "one" or not self.training:
            return None
        return AROUND[int(torch.randint(len(AROUND), (), device="cpu"))]

    def _project(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, 3 * C), in one product where the weights may be read."""
        biases: list[Tensor] = [linear.bias for linear in (self.query, self.kv) if linear.bias is not None]
        if not (may_bypass(self.query, nn.Linear) and may_bypass(self.kv, nn.Linear)) or len(biases) == 1:
            return torch.cat([self.query(x), self.kv(x)], -1)
        bias = torch.cat(biases) if biases else None
        return F.linear(x, torch.cat([self.query.weight, self.kv.weight]), bias)

    def _global(self, x: Tensor, qkv: Tensor) -> Tensor:
        """Global queries over all keys: (B, num_global, C)."""
        tokens, heads = self.num_global, (self.num_heads, -1)
        if self.query_global is self.query:
            q, kv = qkv[:, :tokens, : x.shape[-1]], qkv[..., x.shape[-1] :]
        else:
            q, kv = self.query_global(x[:, :tokens]), self.kv_global(x)
        q, (k, v) = q.unflatten(-1, heads), kv.unflatten(-1, (2, *heads)).unbind(2)  # (B, N, H, D)
        bias = self._global_bias(x.shape[1] - tokens) if self.rel_pos else None
        out = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), bias=bias, scale=self.scale)
        return out.transpose(1, 2).flatten(2)

    def _local(self, qkv: Tensor, size: tuple[int, int]) -> Tensor:
        """Queries of the image over their chunks and the global tokens: (B, img_h * img_w, C)."""
        if not self.num_global:
            return self._chunks(qkv, size)[0].flatten(1, 2)
        dtype = torch.promote_types(qkv.dtype, torch.float32)
        rows = qkv.unflatten(-1, (3, self.num_heads, -1))  # (B, N, 3, H, D)
        q, (k, v) = rows[:, self.num_global :, 0], rows[:, : self.num_global, 1:].unbind(2)
        with torch.autocast("cpu" if qkv.is_meta else qkv.device.type, enabled=False):
            scores = torch.einsum("bnhd,bghd->bnhg", q.to(dtype), k.to(dtype)) * self.scale
            if self.only_global:
                return torch.einsum("bnhg,bghd->bnhd", scores.softmax(-1), v.to(dtype)).flatten(2).to(qkv.dtype)
            if self.rel_pos:
                scores = scores + self.g2l_relative_position_bias[1]
            chunks, lse = self._chunks(qkv, size)
            # The chunks are one more key: their result is its value, their log-sum-exp its score.
            scores = torch.cat([lse.flatten(2).transpose(1, 2).unsqueeze(-1), scores], -1)
            own, weights = scores.softmax(-1).split([1, self.num_global], -1)
            out = own * chunks.view(q.shape).to(dtype) + torch.einsum("bnhg,bghd->bnhd", weights, v.to(dtype))
        return out.flatten(2).to(qkv.dtype)

    def _chunks(self, qkv: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Queries over their chunks: (B, img_h, img_w, C), and the log-sum-exp (B, H, img_h, img_w)."""
        qkv, w = qkv[:, self.num_global :].unflatten(1, size), self.window
        # A literal: torch.compile calls no TypedDict.
        near: Arguments = {"num_heads": self.num_heads, "block": (w, w), "border": "exclude", "scale": self.scale}
        if self.rel_pos:
            table = self.local_relative_position_bias_table.view(4 * w - 1, 4 * w - 1, -1)
            near["table"] = table.flip(0, 1).permute(2, 0, 1)  # ours is by the key's offset, theirs the query's
        if self.mode == "exact":
            near["block"] = (1, 1)
        if self.neighbors != "none":
            near["halo"], near["neighbor"] = (w, w), self.draw_neighbor()
        if self.mode != "cyclic" or self.neighbors == "none":
            return local_attention(qkv, return_lse=True, **near)
        near["border"] = "wrap"
        padded = [padded_size(n, w) for n in size]
        if padded == list(size):
            return local_attention(qkv, return_lse=True, **near)
        qkv = F.pad(qkv, (0, 0, 0, padded[1] - size[1], 0, padded[0] - size[0]))
        near["rel_h"], near["rel_w"] = _hide_padding(qkv, size, w, self.num_heads)
        out, lse = local_attention(qkv, return_lse=True, **near)
        return out[:, : size[0], : size[1]].contiguous(), lse[:, :, : size[0], : size[1]]

    def extra_repr(self) -> str:
        names = ("num_heads", "window", "num_global", "mode", "neighbors", "only_global")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def _hide_padding(qkv: Tensor, size: tuple[int, int], window: int, heads: int) -> list[Tensor]:
    """What takes the padding of the last chunks from all but their cyclic neighbours: (B, img_h, img_w, H, 3 w) each.

    ``qkv`` (B, img_h, img_w, 3 * C) is padded from ``size`` on.
    """
    terms = []
    for axis, length in enumerate(size):
        query = torch.arange(qkv.shape[1 + axis], device=qkv.device)[:, None]
        key = query // window * window - window + torch.arange(3 * window, device=qkv.device)  # not wrapped
        hidden = (key >= length) & (key < qkv.shape[1 + axis])
        term = qkv.new_zeros(hidden.shape).masked_fill(hidden, -math.inf)
        term = term[:, None, None] if axis == 0 else term[:, None]
        terms.append(term.expand(*qkv.shape[:3], heads, 3 * window))
    return terms


def _check_pattern(window: int, num_global: int, mode: str, neighbors: str, only_global: bool) -> None:
    if window < 1:
        raise ValueError(f"ViLAttention: a chunk has no tokens: got window={window}; expected 1 or more.")
    if mode not in MODES or neighbors not in NEIGHBORS:
        raise ValueError(
            f"ViLAttention: unknown pattern: got mode={mode!r}, neighbors={neighbors!r}; expected one of {MODES} and "
            f"one of {NEIGHBORS}."
        )
    if mode == "exact" and neighbors != "all":
        raise ValueError(
            f'ViLAttention: the exact window is no set of chunks: got neighbors={neighbors!r}; expected "all". Take '
            'mode "zero" or "cyclic".'
        )
    if only_global and not num_global:
        raise ValueError("ViLAttention: nothing to attend to: got only_global=True, num_global=0; expected a token.")
