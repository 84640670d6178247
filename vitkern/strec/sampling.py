"""From the sampler's scores to what a layer computes: an order of the items, or soft gates of them (Li et al., Sparse
Transformer for Sequential Recommendation, CIKM 2023, section 3.2.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vitkern.strec.form import Form


def sampled_order(seq: Tensor, score: Tensor) -> Tensor:
    """I_1 (equation 7) over all of the sequence: the last item, the others by score, padding at the end.

    Args:
        seq: (B, N) int64, 0 at padding. score: (B, N).

    Returns:
        (B, N) int64, places in ``seq``; without a gradient.
    """
    wanted = score.detach().masked_fill(seq == 0, -torch.inf)
    last = torch.ones_like(wanted[:, :1], dtype=torch.bool)
    wanted = wanted.masked_fill(F.pad(last, (seq.shape[1] - 1, 0)), torch.inf)
    return wanted.argsort(dim=1, descending=True, stable=True)


def gates(form: Form, alphas: tuple[float, ...], score: Tensor, *, log: bool = False) -> list[Tensor]:
    """S_0 .. S_L of pre-training, or their logarithms: (B, N) scores -> L + 1 times (B, N)."""
    if form.force_last:
        score = torch.cat([score[:, :-1], torch.full_like(score[:, -1:], 10.0)], dim=1)
    sigmoid = F.logsigmoid if log else torch.sigmoid
    found = [sigmoid(form.temperature * (score + alpha)) for alpha in alphas]
    if form.open_first:
        found[0] = torch.full_like(score, 0.0 if log else 1.0)
    return found
