"""The end of a classifier: pooling, dropout, a linear layer; and how weights start."""

import math

import torch.nn as nn
from torch import Tensor


def pool(tokens: Tensor, kind: str) -> Tensor:
    """(B, N, C) -> (B, C) by ``kind`` "avg", "max" or "avgmax" (the mean of both)."""
    if kind == "avg":
        return tokens.mean(1)
    if kind == "max":
        return tokens.amax(1)
    return 0.5 * (tokens.amax(1) + tokens.mean(1))


def check_pool(model: str, kind: str, allowed: tuple[str, ...]) -> None:
    if kind not in allowed:
        raise ValueError(
            f"{model}: unknown pooling: got global_pool={kind!r}; expected one of {', '.join(map(repr, allowed))}."
        )


class ClassifierHead(nn.Module):
    """Pools an image of tokens and projects it to logits; ``num_classes`` 0 gives the pooled features. ``norm`` follows
    the pooling."""

    POOLS = ("avg", "max", "avgmax", "")

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        pool_type: str = "avg",
        drop_rate: float = 0.0,
        norm: nn.Module | None = None,
    ) -> None:
        super().__init__()
        check_pool("ClassifierHead", pool_type, self.POOLS)
        self.pool_type = pool_type
        self.norm = nn.Identity() if norm is None else norm
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Linear(in_features, num_classes) if num_classes > 0 else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, img_h, img_w, C) -> (B, num_classes), or without pooling (B, img_h, img_w, num_classes)."""
        if self.pool_type:
            x = pool(x.flatten(1, 2), self.pool_type)
        x = self.drop(self.norm(x))
        return x if pre_logits else self.fc(x)


def init_linear(module: nn.Module) -> None:
    """Truncated normal weights of deviation 0.02 and zero biases for every linear layer; for `nn.Module.apply`."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_conv(module: nn.Module) -> None:
    """Normal weights of variance 2 / fan-out (He et al., arXiv 1502.01852) and zero biases for every convolution."""
    if isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
