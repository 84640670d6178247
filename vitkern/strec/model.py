"""STRec: a transformer for sequential recommendation whose layers compute ever fewer rows, chosen by the age of the
items (Li et al., Sparse Transformer for Sequential Recommendation, CIKM 2023)."""

from collections.abc import Iterator

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.nn.layernorm import LayerNorm
from vitkern.nn.strec import Sampler, SparseTransformerLayer, ages
from vitkern.strec import form as forms
from vitkern.strec.sampling import gates, sampled_order
from vitkern.strec.slices import sequences_at_once

STAGES = ("pretrain", "finetune")
WITH_MLP = ("mlp", "position")
MLP_NAMES = ("dense_1.weight", "dense_1.bias", "dense_2.weight", "dense_2.bias")


class STRec(nn.Module):
    """STRec, for pre-training, fine-tuning and serving with one state dict.

    In the stage "pretrain" every layer computes all rows under a soft mask, so that the sampler learns; in "finetune"
    (and when serving) the items are put in the sampler's order, the last item first, and layer l computes the first k_l
    rows. There the sampler gets no gradient. With every k_l = ``max_len`` nothing is left to choose, and "finetune" is
    the dense backbone: rows in their own order, no sampler.

    Sequences are aligned to the right: the last item is in the last column, padding (item 0) on the left. Padding is
    never attended to and never sampled before a real item. A row shorter than some k_l is fine, and a narrower batch
    equals one padded to ``max_len``.

    Without gradients, in eval mode, `forward` computes a few sequences at a time and keeps no more of them than the
    result; where layer 1 computes every row, its memory would otherwise be the dense backbone's.

    Args:
        n_items: rows of the item table; item 0 is padding.
        max_len: N, the longest sequence.
        d, n_layers, n_heads: channels, layers, heads.
        ks: k_1 .. k_L, not growing, at most ``max_len``; the authors' densities by default.
        alphas: alpha_0 .. alpha_L of pre-training.
        sampler: see `vitkern.nn.strec.Sampler`.
        noise: "normal", "uniform" or None; "form" for the form's own.
        form: "official", "paper" or "log", or a `Form`.
            "official" is the authors' code and loads their checkpoints, with any sampler. "paper" is the published
            equations word for word: attention without projections, one temperature for all, nothing normalised. "log",
            the default, is "official" with two logarithms. It feeds the sampler log(1 + age): raw seconds saturate its
            tanh beyond minutes, and a log of days then has no gradient. And it masks with log S rather than
            (S S' - 1) 1e8, whose gradient is 0 or 1e8 and is lost in float32; where the mask is sharp both drop the
            same keys.
        hidden: width of the feed-forward part, 4 d by default.
        activation: of the sampler's MLP, "tanh" or "relu".
        dropout: of the embedding and of both branches of a layer, in training.
        attention_dropout: of the attention weights, in training; the authors' is 0.5. Above 0 PyTorch computes the
            attention in the kernel's place.
        eval_noise: draw noise in eval mode too, as the authors do; two calls then differ.

    Raises:
        ValueError: an argument that does not fit; the message says which.
    """

    def __init__(
        self,
        n_items: int,
        max_len: int = 50,
        d: int = 128,
        n_layers: int = 8,
        n_heads: int = 4,
        ks: tuple[int, ...] | None = None,
        alphas: tuple[float, ...] | None = None,
        *,
        sampler: str = "mlp",
        noise: str | None = "form",
        form: str | forms.Form = "log",
        hidden: int | None = None,
        activation: str | None = None,
        dropout: float = 0.5,
        attention_dropout: float = 0.0,
        eval_noise: bool = False,
    ):
        super().__init__()
        if n_items < 2 or max_len < 1 or n_layers < 1:
            got = f"n_items={n_items}, max_len={max_len}, n_layers={n_layers}"
            raise ValueError(f"STRec: sizes are not usable: got {got}; expected n_items >= 2 and the others >= 1.")
        self.form, self.noise = forms.check_form(form, noise, sampler)
        self.ks = forms.check_ks(forms.default_ks(max_len, n_layers) if ks is None else ks, max_len, n_layers)
        self.alphas = forms.check_alphas(forms.default_alphas(n_layers) if alphas is None else alphas, n_layers)
        self.n_items, self.max_len, self.eval_noise, self.dropout = n_items, max_len, eval_noise, dropout
        self.item_embedding = nn.Embedding(n_items, d, padding_idx=0)
        self.position_embedding = nn.Embedding(max_len, d)
        self.LayerNorm = LayerNorm(d, 1e-12)
        self.ffn = Sampler(
            sampler,
            activation=activation or forms.ACTIVATION.get(max_len, "tanh"),
            clock=self.form.clock,
            normalise=self.form.normalise,
        )
        self.hidden = hidden or 4 * d
        layer = dict(
            projections=self.form.projections,
            strength=self.form.strength,
            drop=dropout,
            attention_drop=attention_dropout,
        )
        layers = [SparseTransformerLayer(d, n_heads, self.hidden, **layer) for _ in range(n_layers)]
        self.trm_encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})
        for part in self.children():
            # Logarithms of ages are of the size that PyTorch's own initialisation is made for; seconds are not.
            if part is not self.ffn or self.form.clock == "seconds":
                part.apply(_initialise)
        self.stage = "finetune"

    def _load_from_state_dict(self, state_dict, prefix, *rest) -> None:
        """The authors' code makes the MLP for every sampler: what a sampler without one is given of it is left out."""
        if self.ffn.kind not in WITH_MLP:
            for name in [f"{prefix}ffn.{name}" for name in MLP_NAMES]:
                state_dict.pop(name, None)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def set_stage(self, stage: str) -> "STRec":
        """ "pretrain": soft masks, all rows. "finetune": the sampled rows alone."""
        if stage not in STAGES:
            raise ValueError(f"STRec: unknown stage: got {stage!r}; expected pretrain or finetune.")
        self.stage = stage
        return self

    @property
    def dense(self) -> bool:
        """Every layer keeps every row: the dense backbone."""
        return min(self.ks) >= self.max_len

    def embed(self, seq: Tensor, positions: Tensor) -> Tensor:
        x = self.LayerNorm(self.item_embedding(seq) + self.position_embedding(positions))
        return F.dropout(x, self.dropout, self.training)

    def draw_noise(self, shape: tuple[int, int], device, generator: torch.Generator | None = None) -> Tensor | None:
        """R of section 3.2.2 in float32, or None for a model without noise."""
        if self.noise is None:
            return None
        draw = torch.randn if self.noise == "normal" else torch.rand
        return draw(shape, generator=generator, device=device)

    def score(self, seq: Tensor, timestamps: Tensor, noise: Tensor | None = None) -> Tensor:
        """MLP(T) + R, in the sampler's precision also under autocast: (B, N) and (B, N) -> (B, N).

        noise: (B, N); None draws it in training (and in eval mode with ``eval_noise`` or a random sampler), and is its
            mean else.
        """
        real = seq != 0
        noise = self._drawn(seq) if noise is None else noise
        with torch.autocast(seq.device.type, enabled=False):
            score = self.ffn(ages(timestamps, real, self.LayerNorm.weight.dtype), real)
        return score + (forms.MEANS[self.noise] if noise is None else noise.to(score.dtype))

    def _drawn(self, seq: Tensor) -> Tensor | None:
        draws = self.training or self.eval_noise or self.ffn.kind == "random"
        return self.draw_noise(tuple(seq.shape), seq.device) if draws else None

    def hidden_states(
        self, seq: Tensor, timestamps: Tensor, noise: Tensor | None = None, *, whole: bool = True
    ) -> Iterator[Tensor]:
        """The output of each layer in turn: (B, N, C) in pre-training, (B, k_l, C) in sampled order, last item first,
        in fine-tuning. Arguments as `forward`; without ``whole`` pre-training ends with the last row alone, (B, 1, C),
        which is all that a prediction needs."""
        self._check(seq, timestamps, noise)
        length = seq.shape[1]
        positions = torch.arange(self.max_len - length, self.max_len, device=seq.device).expand_as(seq)
        if self.stage == "pretrain" and not self.dense:
            yield from self._soft(seq, positions, self.score(seq, timestamps, noise), whole)
            return
        if not self.dense:
            order = sampled_order(seq, self.score(seq, timestamps, noise))
            seq, positions = seq.gather(1, order), positions.gather(1, order)
        x, real = self.embed(seq, positions), _mask(seq)
        for layer, k in zip(self.trm_encoder["layer"], self.ks, strict=True):
            x = layer(x[:, :k], x, real if real is None else real[:, : x.shape[1]])
            yield x

    def _soft(self, seq: Tensor, positions: Tensor, score: Tensor, whole: bool) -> Iterator[Tensor]:
        log = self.form.relaxation == "log"
        soft = gates(self.form, self.alphas, score, log=log)
        x, real = self.embed(seq, positions), _mask(seq)
        last = self.trm_encoder["layer"][-1]
        for layer, keys, queries in zip(self.trm_encoder["layer"], soft, soft[1:], strict=False):
            rows = slice(None) if whole or layer is not last else slice(-1, None)
            queries = (torch.ones_like(queries) if log else queries)[:, rows]
            x = layer(x[:, rows], x, real, queries, keys)
            yield x

    def forward(self, seq: Tensor, timestamps: Tensor, noise: Tensor | None = None) -> Tensor:
        """The state of the last item, whose product with the item table scores the next.

        Args:
            seq: (B, N) int64, N <= ``max_len``, right-aligned, 0 at padding.
            timestamps: (B, N) seconds, int64 or float64; anything at padding.
            noise: (B, N), or None: see `score`.

        Returns:
            (B, d).

        Raises:
            ValueError: shapes do not fit, or the last column holds padding.
        """
        self._check(seq, timestamps, noise)
        step = len(seq) if self.training else sequences_at_once(seq, self.hidden, self.LayerNorm.weight.dtype)
        if len(seq) <= step:
            return self._state(seq, timestamps, noise)
        noise = self._drawn(seq) if noise is None else noise
        parts = [slice(begin, begin + step) for begin in range(0, len(seq), step)]
        return torch.cat([self._state(seq[p], timestamps[p], None if noise is None else noise[p]) for p in parts])

    def _state(self, seq: Tensor, timestamps: Tensor, noise: Tensor | None) -> Tensor:
        for x in self.hidden_states(seq, timestamps, noise, whole=False):
            last = x
        return last[:, -1] if self.stage == "pretrain" or self.dense else last[:, 0]

    def item_table(self) -> Tensor:
        """(n_items, d)."""
        return self.item_embedding.weight

    @torch.no_grad()
    def topk(self, seq: Tensor, timestamps: Tensor, k: int = 10, exclude_seen: bool = False) -> tuple[Tensor, Tensor]:
        """The k items with the highest scores, best first: items (B, k) int64 and scores (B, k).

        Raises:
            ValueError: as `forward`, ``k`` is not in 1 .. n_items - 1, or a score is NaN.
        """
        if not 1 <= k < self.n_items:
            raise ValueError(f"STRec.topk: k is not usable: got {k}; expected 1 .. {self.n_items - 1}.")
        scores = self(seq, timestamps) @ self.item_table().T
        if not torch.compiler.is_compiling() and seq.device.type == "cpu" and bool(scores.isnan().any()):
            raise ValueError("STRec.topk: scores are not usable: got NaN; expected numbers. Check weights and times.")
        scores.masked_fill_(scores.isnan(), -torch.inf)  # NaN would be the first; a device is not waited for
        scores[:, 0] = -torch.inf
        if exclude_seen:
            scores.scatter_(1, seq, -torch.inf)
        best = scores.topk(k)
        return best.indices, best.values

    def _check(self, seq: Tensor, timestamps: Tensor, noise: Tensor | None) -> None:
        if seq.dim() != 2 or not 1 <= seq.shape[1] <= self.max_len:
            got, expected = tuple(seq.shape), f"(B, N) with N in 1 .. {self.max_len}"
            raise ValueError(f"STRec: seq has the wrong shape: got {got}; expected {expected}.")
        for name, tensor in (("timestamps", timestamps), ("noise", noise)):
            if tensor is not None and tensor.shape != seq.shape:
                got, expected = tuple(tensor.shape), tuple(seq.shape)
                raise ValueError(f"STRec: {name} has the wrong shape: got {got}; expected that of seq, {expected}.")
        if not torch.compiler.is_compiling() and seq.device.type == "cpu" and not bool((seq[:, -1] != 0).all()):
            raise ValueError("STRec: the last column holds padding: got item 0; expected sequences aligned right.")


def _mask(seq: Tensor) -> Tensor | None:
    """True at real items; None where all are, when that can be told without waiting for a device."""
    real = seq != 0
    waits = torch.compiler.is_compiling() or seq.device.type != "cpu"
    return real if waits or not bool(real.all()) else None


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)
        elif module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx].detach())
