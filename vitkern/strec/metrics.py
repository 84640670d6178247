"""Hit, NDCG and MRR of full rankings, with ties shared fairly."""

import torch
from torch import Tensor

from vitkern.report import BadInput


class Ranking:
    """Sums of the metrics over all that was ranked, in float64.

    One target a ranking, so NDCG@k is 1 / log2(1 + rank) and MRR@k is 1 / rank, both 0 beyond rank k. Items with the
    target's score are in random order with it, and each metric is its mean over these orders: a model that scores all
    items alike gets what chance gives, not the best rank and not the worst.
    """

    def __init__(self, k: int = 10):
        self.k = k
        self.sums = torch.zeros(4, dtype=torch.float64)  # hit, ndcg, mrr, count

    def add(self, scores: Tensor, target: Tensor, excluded: Tensor | None = None) -> None:
        """
        Args:
            scores: (B, n_items); item 0 is padding and is not ranked.
            target: (B,) int64, not 0.
            excluded: (B, M) int64 items that are not ranked; the target always is.

        Raises:
            BadInput: a score is NaN or infinite.
        """
        if not bool(torch.isfinite(scores).all()):
            raise BadInput("the model gives scores that are not finite; it has diverged. Lower the learning rate.")
        own = scores.gather(1, target[:, None])
        ranked = torch.ones_like(scores, dtype=torch.bool)
        if excluded is not None:
            ranked.scatter_(1, excluded, False)
        ranked[:, 0] = False
        ranked.scatter_(1, target[:, None], True)
        above = ((scores > own) & ranked).sum(1)
        tied = ((scores == own) & ranked).sum(1)  # with the target itself
        self.sums += torch.stack([*self._means(above.cpu(), tied.cpu()), torch.tensor(float(len(target)))]).double()

    def _means(self, above: Tensor, tied: Tensor):
        """Sums over the batch of the mean gains of the ranks above + 1 .. above + tied."""
        rank = torch.arange(1, self.k + 1, dtype=torch.float64)
        for gain in (torch.ones_like(rank), 1 / torch.log2(1 + rank), 1 / rank):
            total = torch.cat([gain.new_zeros(1), gain.cumsum(0)])
            yield ((total[(above + tied).clamp(max=self.k)] - total[above.clamp(max=self.k)]) / tied).sum()

    def result(self) -> dict[str, float]:
        """``{"hit@10": ..., "ndcg@10": ..., "mrr@10": ..., "count": ...}``."""
        *sums, count = self.sums.tolist()
        values = {f"{name}@{self.k}": value / count for name, value in zip(("hit", "ndcg", "mrr"), sums, strict=True)}
        return values | {"count": int(count)}
