"""One layer of attention as it ran: its maps, a few queries at a time, and how a row of tokens goes back through it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vitkern.ops.attention_map import Added, grad_of_weights, weights_of_rows


class Operands(NamedTuple):
    """What an attention function was given: q (G, H, n, D), k (G, Hk, m, D), v (G, Hk, m, Dv), and a ``mask``, bool or
    added to the logits, or None."""

    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    causal: bool
    scale: float


class Call(NamedTuple):
    """One call of an attention function: what it was given, and its output; or, where a module computes weights itself,
    these (G, H, n, m). ``result`` is what a gradient is asked for."""

    result: Tensor
    operands: Operands | None
    shape: tuple[int, int, int]  # groups, queries, keys

    def maps(self, grad: Tensor | None = None) -> Iterator[tuple[slice, Tensor]]:
        """(queries, their weights (G, H, queries, m)); with the gradient of ``result`` max(0, P dP) (Chefer et al.,
        arXiv 2103.15679, equation 5)."""
        if self.operands is None:
            weights = self.result.detach()
            yield slice(0, self.shape[1]), weights if grad is None else (weights * grad).clamp_(min=0)
            return
        q, k, v = (t.detach() for t in self.operands[:3])
        mask = None if self.operands.mask is None else self.operands.mask.detach()
        added = Added(bias=None, mask=mask, key_padding_mask=None, causal=self.operands.causal)
        for rows, weights in weights_of_rows(q, k, added, self.operands.scale):
            if grad is not None:
                weights = weights.mul_(grad_of_weights(grad[:, :, rows], v)).clamp_(min=0)
            yield rows, weights


@dataclass(frozen=True)
class Layer:
    """The calls of one attention module on one image.

    ``grid`` and ``index`` are those of windows: (height, width) in tokens, and the token (G, n) of each row of each
    window, -1 where there is none. None: every token sees every token. ``obstacle``: why the maps are none of tokens.
    """

    calls: tuple[Call, ...]
    grid: tuple[int, int] | None = None
    index: Tensor | None = None
    obstacle: str | None = None

    @property
    def queries(self) -> int:
        return self.calls[0].shape[1] if self.grid is None else self.grid[0] * self.grid[1]

    @property
    def keys(self) -> int:
        return self.calls[0].shape[2] if self.grid is None else self.grid[0] * self.grid[1]

    def read(self, grads: list[Tensor]) -> Tensor:
        """(queries,) bool: whose outputs something depends on, by the gradients of the calls."""
        found = torch.zeros(self.queries + 1, dtype=torch.bool, device=grads[0].device)
        for grad, index in zip(grads, self._places(), strict=True):
            used = grad.ne(0).any(3).any(1)  # (G, n)
            found[index[used]] = True
        return found[:-1]

    def through(self, row: Tensor, grads: list[Tensor] | None = None) -> Tensor:
        """(queries,) times the mean map over heads, or with the gradients of the calls the mean relevance: (keys,).

        Raises:
            NotImplementedError: the maps are none of tokens.
        """
        if self.obstacle is not None:
            raise NotImplementedError(
                f"explain: attention is not between tokens: got {self.obstacle}; expected one map of queries and keys. "
                "Take another model."
            )
        row = torch.cat([row, row.new_zeros(1)])
        found = row.new_zeros(self.keys + 1)
        for i, (call, index) in enumerate(zip(self.calls, self._places(), strict=True)):
            part = row[index]  # (G, n)
            seen = row.new_zeros(call.shape[0], call.shape[2])
            for rows, maps in call.maps(None if grads is None else grads[i]):
                seen += torch.einsum("gn,ghnm->gm", part[:, rows].to(maps), maps).to(row) / maps.shape[1]
            keys = index if self.grid is not None else torch.arange(self.keys, device=row.device)[None]
            found.index_add_(0, keys.reshape(-1), seen.reshape(-1))
        return found[:-1]

    def _places(self) -> Iterator[Tensor]:
        """The token (G, n) of each row of each call; one past the last where there is none."""
        if self.index is None:
            yield torch.arange(self.queries, device=self.calls[0].result.device)[None]
            return
        tokens = torch.where(self.index < 0, self.queries, self.index)
        yield from tokens.split([call.shape[0] for call in self.calls])
