"""A model with its loss, and its metrics over samples, in one process or many."""

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.strec.data import Samples
from vitkern.strec.distributed import Group
from vitkern.strec.losses import next_item_loss
from vitkern.strec.metrics import Ranking


class Objective(nn.Module):
    """A model with its loss in one forward, so that data-parallel wrappers see all of a step."""

    def __init__(self, model: nn.Module, loss: str):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, seq: Tensor, timestamps: Tensor, target=None, noise=None, negatives=None) -> Tensor:
        """The loss; without a target the scores (B, n_items)."""
        if target is not None and hasattr(self.model, "cloze"):
            state, target = self.model.cloze(seq, target)
        else:
            state = self.model(seq, timestamps, noise)
        table = self.model.item_table()
        if target is None:
            return state @ table.T
        if negatives is not None and negatives.dim() == 2 and len(negatives) != len(target):
            negatives = negatives[0]
        return next_item_loss(self.loss, state, table, target, negatives)


@torch.no_grad()
def evaluate(
    objective: nn.Module, samples: Samples, group: Group, *, exclude_seen: bool = False, batch: int = 512
) -> dict[str, float]:
    """Full-ranking metrics over ``samples``; every process ranks a part."""
    objective.eval()
    ranking = Ranking()
    step = batch * group.size
    for begin in range(0, len(samples), step):
        own, weight = group.share(torch.arange(begin, min(begin + step, len(samples))))
        data = samples.batch(own).to(group.device)
        scores = objective(data.seq, data.timestamps)
        if weight > 0:
            ranking.add(scores.float(), data.target, data.seq if exclude_seen else None)
    ranking.sums = group.sum(ranking.sums)
    return ranking.result()
