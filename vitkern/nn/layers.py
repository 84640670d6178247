"""Between a block's branches and the residual stream: LayerScale and DropPath."""

import torch
import torch.nn as nn
from torch import Tensor


class LayerScale(nn.Module):
    """A learnable factor per channel (CaiT, arXiv 2103.17239, equation 8), named ``gamma`` as in timm."""

    def __init__(self, dim: int, init_values: float = 1e-5) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init_values)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class DropPath(nn.Module):
    """Drops a residual branch for whole samples in training and divides the rest by 1 - p (arXiv 1603.09382).

    Draws from torch's generator exactly as `timm.layers.DropPath` does: one seed drops the same samples in both.
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        super().__init__()
        if not 0.0 <= drop_prob < 1.0:
            raise ValueError(f"DropPath: drop_prob is no probability: got {drop_prob}; expected 0 <= drop_prob < 1.")
        self.drop_prob = drop_prob

    def row_scale(self, x: Tensor) -> Tensor | None:
        """(B,): 0 for a dropped sample, else 1 / (1 - p); None where nothing is dropped."""
        if not self.training or self.drop_prob == 0.0:
            return None
        keep = 1.0 - self.drop_prob
        return x.new_empty(x.shape[0]).bernoulli_(keep).div_(keep)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.row_scale(x)
        return x if scale is None else x * scale.view(-1, *[1] * (x.dim() - 1))

    def extra_repr(self) -> str:
        return f"drop_prob={self.drop_prob:g}"


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """Rates that grow linearly from 0 in the first block to ``rate`` in the last."""
    return torch.linspace(0.0, rate, depth, device="cpu").tolist()
