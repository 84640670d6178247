"""The Transformer (Vaswani et al. 2017, arXiv 1706.03762): encoder, decoder, and decoding with a cache."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.backbone import Checkpointed
from vitkern.models.registry import register
from vitkern.models.sequence.block import Stack
from vitkern.models.sequence.cache import Cache
from vitkern.models.sequence.decode import beam_search, draw
from vitkern.models.sequence.embeddings import SinusoidalPositions, check_tokens
from vitkern.models.sequence.keys import convert
from vitkern.models.sequence.tables import MARIAN, TORCH
from vitkern.nn.layernorm import LayerNorm

PAPER = "Attention Is All You Need, Vaswani et al. 2017, arXiv 1706.03762"
PAD, BOS, EOS = 0, 1, 2
EXTRA = 50  # a translation is at most so many tokens longer than its source (section 6.1)


class Transformer(Checkpointed):
    """An encoder of source tokens and a decoder of target tokens; one matrix embeds both and gives the logits.

    Args:
        vocab_size: V. dim: channels C. num_heads: H. hidden_dim: width of the MLPs.
        depth: blocks of the encoder. decoder_depth: of the decoder, as many by default.
        pre_norm: norms before the branches (Xiong et al. 2020, arXiv 2002.04745); the paper has them after.
        final_norm: a norm after the last block of either, as `torch.nn.Transformer` has; by default where ``pre_norm``.
        act: "relu", or one that `vitkern.nn.Mlp` knows.
        positions: "interleaved" sines and cosines as in the paper, or "halves" as in Marian.
        max_len: positions there are.
        pad_id, bos_id, eos_id: tokens of padding (its embedding gets no gradient as an input), begin and end; ids below
            ``vocab_size``.
        drop_rate: dropout of embeddings and branches, in training. attn_drop_rate: of the attention weights.
        eps: of every norm.

    Raises:
        ValueError: channels that do not split into heads, an unknown activation or layout, or a special token that is
            not among ``vocab_size``.
    """

    def __init__(
        self,
        vocab_size: int = 37000,
        dim: int = 512,
        num_heads: int = 8,
        hidden_dim: int = 2048,
        depth: int = 6,
        decoder_depth: int | None = None,
        *,
        pre_norm: bool = False,
        final_norm: bool | None = None,
        act: str = "relu",
        positions: str = "interleaved",
        max_len: int = 1024,
        pad_id: int = PAD,
        bos_id: int = BOS,
        eos_id: int = EOS,
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if not all(0 <= token < vocab_size for token in (pad_id, bos_id, eos_id)):
            raise ValueError(
                f"Transformer: a special token is none of the vocabulary: got pad_id={pad_id}, bos_id={bos_id}, "
                f"eos_id={eos_id}; expected ids from 0 to {vocab_size - 1}."
            )
        self.num_classes, self.num_features, self.max_len = vocab_size, dim, max_len
        self.pad_id, self.bos_id, self.eos_id = pad_id, bos_id, eos_id
        self.embed = nn.Embedding(vocab_size, dim, padding_idx=pad_id)
        self.positions = SinusoidalPositions(max_len, dim, positions)
        self.drop = nn.Dropout(drop_rate)
        shared: dict[str, Any] = dict(pre_norm=pre_norm, act=act, eps=eps, drop=drop_rate, attn_drop=attn_drop_rate)
        decoder_depth = depth if decoder_depth is None else decoder_depth
        self.encoder = Stack(depth, dim, num_heads, hidden_dim, **shared)
        self.decoder = Stack(decoder_depth, dim, num_heads, hidden_dim, causal=True, cross=True, **shared)
        final_norm = pre_norm if final_norm is None else final_norm
        self.encoder_norm = LayerNorm(dim, eps=eps) if final_norm else nn.Identity()
        self.decoder_norm = LayerNorm(dim, eps=eps) if final_norm else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Random weights: Glorot's for linear layers, embeddings of deviation C^-1/2, padding's of 0."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.embed.weight, std=self.num_features**-0.5)
        with torch.no_grad():
            self.embed.weight[self.pad_id].zero_()

    @property
    def input_rule(self) -> str:
        """What `forward` takes, on one line."""
        return f"source (B, S) and target (B, T), ids below {self.num_classes}, S and T <= {self.max_len}"

    def example_inputs(self, batch: int = 1, tokens: int = 6) -> tuple[Tensor, Tensor]:
        """A source of so many tokens and a target of one less, on the model's device."""
        ids = torch.arange(batch * tokens, device=self.embed.weight.device).view(batch, tokens) % self.num_classes
        return ids, ids[:, :-1]

    def longest_inputs(self) -> tuple[Tensor, Tensor]:
        """A source and a target of as many tokens as there are positions. The paper names no length."""
        source, _ = self.example_inputs(tokens=self.max_len)
        return source, source

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return {"embed.weight"}

    def _embedded(self, name: str, tokens: Tensor, start: int = 0) -> Tensor:
        """(B, N) -> (B, N, C)."""
        check_tokens(self, name, tokens, self.max_len, start)
        x = self.embed(tokens) * math.sqrt(self.num_features) + self.positions(start, tokens.shape[1])
        return self.drop(x)

    def encode(self, source: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Source (B, S), its mask (B, S) bool, True is no padding -> (B, S, C)."""
        return self.encoder_norm(self.encoder(self._embedded("source tokens", source), source_mask))

    def decode(
        self,
        target: Tensor,
        memory: Tensor,
        source_mask: Tensor | None = None,
        target_mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Target (B, T) after ``cache.length`` tokens, what `encode` gave -> (B, T, C) before `logits`. ``target_mask``
        is of all tokens so far; without one each token sees all before it."""
        x = self._embedded("target tokens", target, 0 if cache is None else cache.length)
        return self.decoder_norm(self.decoder(x, target_mask, memory, source_mask, cache))

    def logits(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, V), by the embeddings (section 3.4)."""
        return F.linear(x, self.embed.weight)

    def forward(
        self, source: Tensor, target: Tensor, source_mask: Tensor | None = None, target_mask: Tensor | None = None
    ) -> Tensor:
        """Logits of the token that follows each of ``target``.

        Args:
            source: (B, S) int64 or int32. target: (B, T), which begins with ``bos_id``.
            source_mask, target_mask: (B, S) and (B, T) bool, True is no padding; None: there is none. Padding behind
                a target needs no mask: nothing before it sees it.

        Returns:
            (B, T, V).

        Raises:
            TypeError: ids of another dtype. ValueError: no (B, N), or more than ``max_len`` tokens.
        """
        return self.logits(self.decode(target, self.encode(source, source_mask), source_mask, target_mask))

    @torch.no_grad()
    def generate(
        self,
        source: Tensor,
        source_mask: Tensor | None = None,
        *,
        steps: int | None = None,
        beams: int = 1,
        length_penalty: float = 0.6,
        use_cache: bool = True,
    ) -> Tensor:
        """Translates, in evaluation mode: the likeliest token at each step, or with ``beams`` beam search.

        Args:
            source, source_mask: as in `forward`.
            steps: at most so many tokens; S + 50 by default, as in the paper, and never above ``max_len``.
            length_penalty: see `vitkern.models.sequence.decode.beam_search`.
            use_cache: keep keys and values of earlier tokens; the result is the same without.

        Returns:
            (B, T) ids behind ``bos_id``; ``eos_id`` ends each, ``pad_id`` follows.
        """
        steps = min(source.shape[1] + EXTRA if steps is None else steps, self.max_len)
        memory = self.encode(source, source_mask).repeat_interleave(beams, 0)
        mask = None if source_mask is None else source_mask.repeat_interleave(beams, 0)
        cache = Cache(len(self.decoder)) if use_cache else None

        def following(tokens: Tensor) -> Tensor:
            new = tokens if cache is None else tokens[:, cache.length :]
            return self.logits(self.decode(new, memory, mask, cache=cache)[:, -1])

        begin = source.new_full((len(source), 1), self.bos_id)
        if beams == 1:
            found = draw(following, begin, steps, eos=self.eos_id, pad=self.pad_id)
        else:
            found = beam_search(
                following, (lambda rows: None) if cache is None else cache.select, begin, steps,
                beams=beams, eos=self.eos_id, pad=self.pad_id, length_penalty=length_penalty,
            )  # fmt: skip
        return found[:, 1:]

    def convert_state_dict(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state dict of `torch.nn.Transformer` (which has no embeddings) or of transformers' MarianMTModel under our
        names; see `vitkern.models.sequence.keys.convert`."""
        return convert((TORCH, MARIAN), state)


for _name, _arguments in {
    "transformer_base": dict(drop_rate=0.1),
    "transformer_big": dict(dim=1024, num_heads=16, hidden_dim=4096, drop_rate=0.3),
}.items():
    register(_name, Transformer, PAPER, **_arguments)
