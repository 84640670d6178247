"""Attention in shifted windows: Swin (Liu et al., arXiv 2103.14030) and SwinV2 (Liu et al., arXiv 2111.09883).

Both take the image as it lies in memory, (B, img_h, img_w, C); to roll, pad and cut it into windows is the op's work.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.embed import pair
from vitkern.nn.heads import head_dim
from vitkern.ops.bypass import may_bypass
from vitkern.ops.window_attention import projected_window_attention


class _Windowed(nn.Module):
    """What the two versions share: checks, geometry, output projection, dropout."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | tuple[int, int],
        shift_size: int | tuple[int, int],
        wrap: str,
        attn_drop: float,
        proj_drop: float,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        head_dim(name, dim, num_heads)
        self.num_heads = num_heads
        self.window_size, self.shift_size = pair(window_size), pair(shift_size)
        if not all(0 <= shift < window for shift, window in zip(self.shift_size, self.window_size, strict=True)):
            raise ValueError(
                f"{name}: the shift leaves the window: got window_size={self.window_size}, "
                f"shift_size={self.shift_size}; expected 0 <= shift < window in each direction."
            )
        self.wrap = wrap
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def _attend(
        self,
        x: Tensor,
        project: Callable[[Tensor], Tensor],
        table: Tensor | None,
        logit_scale: Tensor | None = None,
    ) -> Tensor:
        out = projected_window_attention(
            x,
            project,
            num_heads=self.num_heads,
            window=self.window_size,
            shift=self.shift_size,
            table=table,
            wrap=self.wrap,
            logit_scale=logit_scale,
            dropout_p=self.attn_drop.p if self.training else 0.0,
        )
        return self.proj_drop(self.proj(out))

    def extra_repr(self) -> str:
        names = ("num_heads", "window_size", "shift_size", "wrap")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


class WindowAttention(_Windowed):
    """softmax(q k^T / sqrt(D) + B) v in each window, B a table of relative positions (arXiv 2103.14030, equation 4).

    Parameters are named as in `timm.models.swin_transformer.WindowAttention`. Padded tokens are zeros before the
    projection, and are attended to.

    Args:
        dim: channels C; ``num_heads`` divides it.
        num_heads: H.
        window_size: tokens, one number or (height, width).
        shift_size: tokens by which the windows are shifted, one number or (height, width).
        rel_pos: learn B; without it this is the attention of Twins (LSA, arXiv 2104.13840, section 3.2) and the window
            attention of DaViT (arXiv 2204.03645, section 3.2).
        qkv_bias: q, k and v projections have a bias.
        wrap: "image" rolls, then pads (timm); "padded" pads, then rolls (transformers, torchvision). Equal where
            windows divide the image.
        attn_drop: dropout of the attention weights, in training. Read, not called: its hooks do not run.
        proj_drop: dropout after the output projection, in training.

    Raises:
        ValueError: heads do not divide the channels, or a shift is not inside its window.
    """

    relative_position_bias_table: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | tuple[int, int] = 7,
        shift_size: int | tuple[int, int] = 0,
        *,
        rel_pos: bool = True,
        qkv_bias: bool = True,
        wrap: str = "image",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, window_size, shift_size, wrap, attn_drop, proj_drop)
        window_h, window_w = self.window_size
        table = nn.Parameter(torch.empty((2 * window_h - 1) * (2 * window_w - 1), num_heads)) if rel_pos else None
        self.register_parameter("relative_position_bias_table", table)
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        if table is not None:
            nn.init.trunc_normal_(table, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> the same shape."""
        return self._attend(x, self.qkv, self.relative_position_bias_table)


class WindowAttentionV2(_Windowed):
    """softmax(tau cos(q, k) + B) v in each window, B a function of log-spaced offsets (arXiv 2111.09883, section 3).

    tau = exp(min(logit_scale, ln 100)) per head; B = 16 sigmoid(mlp(log-spaced offset)). Keys have no bias. Parameters
    are named as in `timm.models.swin_transformer_v2.WindowAttention`. Arguments as in `WindowAttention`, and

    Args:
        pretrained_window_size: window of the pre-training, by which offsets are normalised; 0: this window.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window_size: int | tuple[int, int] = 8,
        shift_size: int | tuple[int, int] = 0,
        *,
        qkv_bias: bool = True,
        pretrained_window_size: int | tuple[int, int] = 0,
        wrap: str = "image",
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(dim, num_heads, window_size, shift_size, wrap, attn_drop, proj_drop)
        self.pretrained_window_size = pair(pretrained_window_size)
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(), nn.Linear(512, num_heads, bias=False))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None

        self.register_buffer("relative_coords_table", self._offsets(), persistent=False)

    def init_non_persistent_buffers(self) -> None:
        """Computes again what no checkpoint holds: call it after `to_empty` on a model from the meta device."""
        self.relative_coords_table = self._offsets()

    def _offsets(self) -> Tensor:
        """Log-spaced offset of each relative position (arXiv 2111.09883, equation 4): ((2 Wh - 1) (2 Ww - 1), 2)."""
        reference = self.pretrained_window_size if self.pretrained_window_size[0] > 0 else self.window_size
        weight = next(self.cpb_mlp.parameters())
        axes = []
        for window, full in zip(self.window_size, reference, strict=True):
            steps = torch.arange(1 - window, window, device=weight.device, dtype=torch.float32) / max(full - 1, 1) * 8.0
            axes.append(steps.sign() * (steps.abs() + 1.0).log2() / 3.0)  # log2(8) = 3
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 1).to(weight.dtype)

    def bias_table(self) -> Tensor:
        """The position bias of each head: ((2 Wh - 1) (2 Ww - 1), H), laid out as Swin's table."""
        return 16.0 * torch.sigmoid(self.cpb_mlp(self.relative_coords_table))

    def _project(self, x: Tensor, bias: Tensor) -> Tensor:
        return self.qkv(x) + bias

    def forward(self, x: Tensor) -> Tensor:
        """(B, img_h, img_w, C) -> the same shape."""
        project: Callable[[Tensor], Tensor] = self.qkv
        if self.q_bias is not None and self.v_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
            if may_bypass(self.qkv, nn.Linear):
                project = partial(F.linear, weight=self.qkv.weight, bias=bias)
            else:
                project = partial(self._project, bias=bias)
        return self._attend(x, project, self.bias_table(), self.logit_scale)
