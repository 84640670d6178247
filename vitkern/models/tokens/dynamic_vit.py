"""DynamicViT (Rao et al. 2021, arXiv 2106.02034): a ViT that drops tokens on its way. Named as in the authors' code."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.backbone import Results
from vitkern.models.head import check_pool
from vitkern.models.plain.vit import SIZES, Block, VisionTransformer
from vitkern.models.registry import register
from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.layernorm_mlp import mlp_residual
from vitkern.nn.policy_attention import PolicyAttention, keep_tokens

PAPER = "DynamicViT: Efficient Vision Transformers with Dynamic Token Sparsification, Rao et al. 2021, arXiv 2106.02034"


class Pruned(NamedTuple):
    """What `DynamicVisionTransformer` gives in training.

    logits: (B, num_classes). tokens: (B, N, C), all patches after the last norm. mask: (B, N), 1 where a patch is kept
    to the end, without gradient. decisions: (B, N) of each stage, 1 or 0, with the gradient of a soft sample.
    """

    logits: Tensor
    tokens: Tensor
    mask: Tensor
    decisions: list[Tensor]


class Predictor(nn.Module):
    """How likely each token is to be kept, from itself and the mean of those that still are (equations 2 to 6); the
    authors' ``PredictorLG``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(LayerNorm(dim, eps=1e-5), nn.Linear(dim, dim), nn.GELU())
        self.out_conv = nn.Sequential(
            nn.Linear(dim, dim // 2),
            nn.GELU(),
            nn.Linear(dim // 2, dim // 4),
            nn.GELU(),
            nn.Linear(dim // 4, 2),
            nn.LogSoftmax(dim=-1),
        )

    def forward(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        """x (B, N, C), policy (B, N), by default ones -> (B, N, 2), the logarithms of keeping and of dropping."""
        local, whole = self.in_conv(x).chunk(2, dim=-1)
        if policy is None:
            mean = whole.mean(1, keepdim=True)
        else:
            mean = torch.einsum("bn,bnc->bc", policy, whole)[:, None] / policy.sum(1)[:, None, None]
        return self.out_conv(torch.cat([local, mean.expand_as(local)], -1))


class PolicyBlock(Block):
    """A ViT's block whose attention takes a policy, but no dropout of its weights and no norms of its own."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, **options: Any) -> None:
        super().__init__(dim, num_heads, mlp_ratio, **options)
        bias, drop = options.get("qkv_bias", True), options.get("proj_drop", 0.0)
        if options.get("qk_norm", False) or options.get("attn_drop", 0.0) > 0.0:
            raise ValueError(
                f"PolicyBlock: attention with a policy has no such options: got qk_norm={options['qk_norm']}, "
                f"attn_drop={options['attn_drop']}; expected False and 0. Leave out qk_norm and attn_drop_rate."
            )
        self.attn = PolicyAttention(dim, num_heads, qkv_bias=bias, proj_drop=drop)  # type: ignore[assignment]

    def forward(self, x: Tensor, policy: Tensor | None = None) -> Tensor:
        """x (B, N, C), policy (B, N) -> (B, N, C)."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), policy)))
        return mlp_residual(x, self.norm2, self.mlp, self.drop_path2, self.ls2)


class DynamicVisionTransformer(VisionTransformer):
    """A ViT that scores its patches before some of its blocks and goes on with the best of them.

    In evaluation those are the same number of every image, and the rest is left out. In training (section 3.3) all
    stay, each is kept or dropped by a hard Gumbel sample, the dropped ones count for nothing as keys, and the result is
    `Pruned`, for `PruningLoss`. The class token is always kept.

    In `forward_intermediates` dropped tokens are 0 before the norm.

    Args:
        pruning_loc: blocks before which tokens are dropped.
        token_ratio: how many of the image's patches are left after each, as a share.
        others: as `VisionTransformer`'s, of which it takes those of DeiT: a class token that is pooled, no registers.

    Raises:
        ValueError: stages that are no blocks or not in order, shares that are none or grow, or arguments of a ViT that
            has no class token to pool.
    """

    def __init__(
        self,
        *args: Any,
        pruning_loc: Sequence[int] = (3, 6, 9),
        token_ratio: Sequence[float] = (0.7, 0.7**2, 0.7**3),
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **{**kwargs, "block_fn": PolicyBlock})
        self.pruning_loc, self.token_ratio = tuple(pruning_loc), tuple(token_ratio)
        self._check()
        self.score_predictor = nn.ModuleList([Predictor(self.embed_dim) for _ in self.pruning_loc])
        self.init_weights()

    def _check(self) -> None:
        if self.global_pool != "token" or self.num_prefix_tokens != 1:
            raise ValueError(
                f"DynamicVisionTransformer: only a class token is never dropped: got global_pool={self.global_pool!r} "
                f"and {self.num_prefix_tokens} tokens before the patches; expected 'token' and 1."
            )
        places, shares, depth = self.pruning_loc, self.token_ratio, len(self.blocks)
        if len(places) != len(shares) or list(places) != sorted(set(places)) or not set(places) <= set(range(depth)):
            raise ValueError(
                f"DynamicVisionTransformer: stages do not fit each other: got pruning_loc={places}, "
                f"token_ratio={shares} for {depth} blocks; expected numbers of blocks in order, and a share for each."
            )
        if list(shares) != sorted(shares, reverse=True) or not all(0.0 < share <= 1.0 for share in shares):
            raise ValueError(
                f"DynamicVisionTransformer: these are no shares of the patches: got token_ratio={shares}; "
                "expected numbers above 0, at most 1, none larger than the one before."
            )

    def set_pool(self, global_pool: str) -> None:
        """There is one: the class token, the only one that is never dropped."""
        check_pool("DynamicVisionTransformer", global_pool, ("token",))

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As of every backbone; maps do not train what chooses tokens."""
        taken = super().prune_intermediate_layers(indices, prune_norm, prune_head)
        self.score_predictor = self.score_predictor[: sum(place <= taken[-1] for place in self.pruning_loc)]
        self.score_predictor.requires_grad_(not prune_head)
        return taken

    def forward(self, x: Tensor) -> Tensor | Pruned:  # type: ignore[override] # in training what the loss needs
        """Image (B, in_chans, height, width) -> logits (B, num_classes); in training `Pruned`."""
        if not self.training:
            return super().forward(x)
        x, policy = self.embed(x), None
        decisions: list[Tensor] = []
        for index, block in enumerate(self.blocks):
            if index in self.pruning_loc:
                predictor = self.score_predictor[len(decisions)]
                scores = predictor(x[:, 1:], decisions[-1] if decisions else None)
                keep = F.gumbel_softmax(scores, hard=True)[:, :, 0]
                decisions.append(keep * decisions[-1] if decisions else keep)
                policy = F.pad(decisions[-1], (1, 0), value=1.0)
            x = self.run(block, x, policy)
        x = self.norm(x)
        mask = decisions[-1].detach() if decisions else x.new_ones(x.shape[0], x.shape[1] - 1)
        return Pruned(self.forward_head(x), x[:, 1:], mask, decisions)

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (tokens left before the last norm, the best first (B, 1 + K, C), those after the blocks numbered in
        ``taken`` at their places (B, 1 + N, C))."""
        stages = iter(zip(self.score_predictor, self.token_ratio, strict=False))
        x, kept = self.embed(x), None
        patches, results = x.shape[1] - 1, Results(taken, stop_early)
        for index, block in enumerate(self.blocks):
            if index in self.pruning_loc:
                predictor, share = next(stages)
                best = predictor(x[:, 1:])[:, :, 0].topk(int(patches * share), dim=1).indices  # (B, K)
                x = torch.cat([x[:, :1], keep_tokens(x[:, 1:], best)], 1)
                kept = best if kept is None else keep_tokens(kept, best)
            x = self.run(block, x)
            if results.take(index, x if kept is None or index not in taken else _placed(x, kept, patches)):
                break
        return x, results.found

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {"pos_embed", "cls_token"}


def _placed(x: Tensor, kept: Tensor, patches: int) -> Tensor:
    """The class token and K patches (B, 1 + K, C), which of all those are (B, K) -> (B, 1 + N, C), the others 0."""
    at = F.pad(kept + 1, (1, 0))[:, :, None].expand_as(x)
    return x.new_zeros(x.shape[0], 1 + patches, x.shape[2]).scatter(1, at, x)


_DEIT_256 = dict(embed_dim=256, depth=12, num_heads=4)
for _name, _size in {"s": SIZES["small"], "b": SIZES["base"], "256": _DEIT_256}.items():
    register(f"dynamicvit_deit_{_name}", DynamicVisionTransformer, PAPER, img_size=224, patch_size=16, **_size)
