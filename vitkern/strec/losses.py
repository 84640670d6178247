"""Losses of the next item, given the state of a sequence and the table of items."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

LOSSES = ("full", "sampled", "bpr", "bce")


def full_softmax(state: Tensor, table: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over all items, the padding item among them, as in the authors' code.

    Args:
        state: (B, d). table: (n_items, d). target: (B,) int64.
    """
    return F.cross_entropy((state @ table.T).float() if state.dtype != torch.float64 else state @ table.T, target)


def _scores(state: Tensor, table: Tensor, target: Tensor, negatives: Tensor) -> tuple[Tensor, Tensor]:
    positive = (state * table[target]).sum(-1, keepdim=True)  # (B, 1)
    if negatives.dim() == 1:
        return positive, state @ table[negatives].T  # (B, M), shared by the batch
    return positive, (state[:, None] * table[negatives]).sum(-1)


def sampled_softmax(state: Tensor, table: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
    """Cross-entropy over the target and negatives drawn uniformly from the items 1 .. n_items - 1.

    The negatives stand for all other items: log((n_items - 2) / M) is added to their logits, so that the expected
    normaliser is that of the full softmax. A negative that is the target is left out.

    Args:
        negatives: (M,) shared by the batch, or (B, M).
    """
    positive, others = _scores(state, table, target, negatives)
    others = others + math.log(max(1, table.shape[0] - 2) / negatives.shape[-1])
    others = others.masked_fill(negatives == target[:, None], -math.inf)
    return (torch.logsumexp(torch.cat([positive, others], dim=1), dim=1) - positive[:, 0]).mean()


def bpr(state: Tensor, table: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
    """-log sigmoid(positive - negative), mean over negatives (Rendle et al., arXiv 1205.2618)."""
    positive, others = _scores(state, table, target, negatives)
    kept = (negatives != target[:, None]).to(others.dtype)
    return -(F.logsigmoid(positive - others) * kept).sum() / kept.sum().clamp_min(1)


def bce(state: Tensor, table: Tensor, target: Tensor, negatives: Tensor) -> Tensor:
    """Binary cross-entropy of the target against the mean of that of the negatives, as STRec's paper has it."""
    positive, others = _scores(state, table, target, negatives)
    kept = (negatives != target[:, None]).to(others.dtype)
    wrong = (F.logsigmoid(-others) * kept).sum(1) / kept.sum(1).clamp_min(1)
    return -(F.logsigmoid(positive[:, 0]) + wrong).mean()


def next_item_loss(name: str, state: Tensor, table: Tensor, target: Tensor, negatives: Tensor | None) -> Tensor:
    """The loss called ``name``; ``negatives`` is needed by all but "full"."""
    if name == "full":
        return full_softmax(state, table, target)
    return {"sampled": sampled_softmax, "bpr": bpr, "bce": bce}[name](state, table, target, negatives)
