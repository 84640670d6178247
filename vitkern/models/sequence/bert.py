"""The encoder of BERT (Devlin et al. 2018, arXiv 1810.04805)."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Checkpointed
from vitkern.models.registry import register
from vitkern.models.sequence.block import Stack
from vitkern.models.sequence.embeddings import check_tokens
from vitkern.models.sequence.keys import convert
from vitkern.models.sequence.tables import BERT
from vitkern.nn.layernorm import LayerNorm

PAPER = "BERT: Pre-training of Deep Bidirectional Transformers, Devlin et al. 2018, arXiv 1810.04805"
# Ids of the published vocabularies, uncased and cased.
SPECIAL_TOKENS = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}


def join(first: Sequence[int], second: Sequence[int] | None = None, *, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """[CLS] first [SEP], or [CLS] first [SEP] second [SEP], as the model is given it (section 3), padded with [PAD].

    Args:
        first, second: ids of the tokens of either sentence.
        length: N.

    Returns:
        tokens (1, N) int64, token types (1, N) int64: 1 in the second sentence and its [SEP], mask (1, N) bool: False
        at padding.

    Raises:
        ValueError: they are longer than ``length``.
    """
    cls, sep, pad = (SPECIAL_TOKENS[name] for name in ("[CLS]", "[SEP]", "[PAD]"))
    head, tail = [cls, *first, sep], [] if second is None else [*second, sep]
    used = len(head) + len(tail)
    if used > length:
        raise ValueError(f"join: they do not fit: got {used} tokens with [CLS] and [SEP]; expected at most {length}.")
    tokens = torch.tensor([head + tail + [pad] * (length - used)])
    place = torch.arange(length)[None]
    return tokens, ((place >= len(head)) & (place < used)).long(), place < used


class Bert(Checkpointed):
    """Embeddings of tokens, positions and sentences, blocks with norms after their branches, a pooler.

    Args:
        vocab_size: V. dim: channels C. num_heads: H. hidden_dim: width of the MLPs. depth: blocks.
        max_len: positions there are. token_types: sentences that are told apart.
        num_classes: logits of a classifier on the pooled token; 0: there is none, and that is the result.
        act: see `vitkern.nn.Mlp`.
        pad_id: its embedding starts as 0 and gets no gradient.
        drop_rate: dropout of embeddings, branches and before the classifier, in training. attn_drop_rate: of the
            attention weights.
        eps: of every norm.

    Raises:
        ValueError: channels that do not split into heads, or an unknown activation.
    """

    hub_ids: ClassVar = {f"bert_{size}": f"google-bert/bert-{size}-uncased" for size in ("base", "large")}

    def __init__(
        self,
        vocab_size: int = 30522,
        dim: int = 768,
        num_heads: int = 12,
        hidden_dim: int = 3072,
        depth: int = 12,
        *,
        max_len: int = 512,
        token_types: int = 2,
        num_classes: int = 0,
        act: str = "gelu",
        pad_id: int = SPECIAL_TOKENS["[PAD]"],
        drop_rate: float = 0.0,
        attn_drop_rate: float = 0.0,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.max_len, self.pad_id = num_classes, dim, max_len, pad_id
        self.embed = nn.Embedding(vocab_size, dim, padding_idx=pad_id)
        self.pos_embed = nn.Parameter(torch.zeros(max_len, dim))
        self.type_embed = nn.Embedding(token_types, dim)
        self.norm = LayerNorm(dim, eps=eps)
        self.drop = nn.Dropout(drop_rate)
        self.blocks = Stack(
            depth, dim, num_heads, hidden_dim, act=act, eps=eps, drop=drop_rate, attn_drop=attn_drop_rate
        )
        self.pooler = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, num_classes) if num_classes > 0 else nn.Identity()
        self.init_weights()

    def init_weights(self) -> None:
        """Random weights: truncated normal of deviation 0.02; biases and the embedding of padding are 0."""
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                nn.init.trunc_normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
        with torch.no_grad():
            self.embed.weight[self.pad_id].zero_()

    @property
    def input_rule(self) -> str:
        """What `forward` takes, on one line."""
        return f"tokens (B, N), ids below {self.embed.num_embeddings}, N <= {self.max_len}"

    def example_inputs(self, batch: int = 1, tokens: int = 6) -> tuple[Tensor]:
        """So many tokens a sequence, on the model's device."""
        ids = torch.arange(batch * tokens, device=self.embed.weight.device).view(batch, tokens)
        return (ids % self.embed.num_embeddings,)

    def longest_inputs(self) -> tuple[Tensor]:
        """One sequence of as many tokens as there are positions: 512 as it is published (appendix A.2)."""
        return self.example_inputs(tokens=self.max_len)

    def reset_classifier(self, num_classes: int) -> None:
        """A new classifier of ``num_classes`` logits, with random weights; 0: none."""
        like = self.pooler.weight
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes > 0 else nn.Identity()
        self.head.to(like.device, like.dtype)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training: norms and biases."""
        return {name for name, parameter in self.named_parameters() if parameter.dim() == 1}

    def embedded(self, tokens: Tensor, token_types: Tensor | None = None) -> Tensor:
        """Tokens (B, N), their sentences (B, N), 0 by default -> (B, N, C), what the first block is given."""
        check_tokens(self, "tokens", tokens, self.max_len)
        kinds = self.type_embed.weight[0] if token_types is None else self.type_embed(token_types)
        return self.drop(self.norm(self.embed(tokens) + kinds + self.pos_embed[: tokens.shape[1]]))

    def forward_features(self, tokens: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """All tokens after the last block (B, N, C); arguments as those of `forward`."""
        return self.blocks(self.embedded(tokens, token_types), None if mask is None else mask.bool())

    def forward_intermediates(
        self, tokens: Tensor, indices: Sequence[int], token_types: Tensor | None = None, mask: Tensor | None = None
    ) -> list[Tensor]:
        """All tokens after each block of ``indices``, the last of which is -1: (B, N, C) each."""
        states = list(self.blocks.states(self.embedded(tokens, token_types), None if mask is None else mask.bool()))
        return [states[index] for index in indices]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """All tokens (B, N, C) -> logits (B, num_classes); with ``pre_logits``, or without a classifier, the pooled
        [CLS] token (B, C).

        Raises:
            ValueError: there are no tokens.
        """
        if x.shape[1] == 0:
            raise ValueError(
                f"Bert: there is no token to pool: got {tuple(x.shape)}; expected [CLS] before all others."
            )
        pooled = torch.tanh(self.pooler(x[:, 0]))
        return pooled if pre_logits or not self.num_classes else self.head(self.drop(pooled))

    def forward(self, tokens: Tensor, token_types: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Logits, or the pooled token.

        Args:
            tokens: (B, N) int64 or int32, the first of each "[CLS]".
            token_types: (B, N), which sentence each is of; None: the first.
            mask: (B, N) bool, or 1 and 0; True is no padding. None: there is none.

        Returns:
            (B, num_classes), or without a classifier (B, C).

        Raises:
            TypeError: ids of another dtype. ValueError: no (B, N), or more than ``max_len`` tokens.
        """
        return self.forward_head(self.forward_features(tokens, token_types, mask))

    def convert_state_dict(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A state dict of transformers' BertModel, or of a class with a head on it, under our names; see
        `vitkern.models.sequence.keys.convert`."""
        return convert((BERT,), state)


_SIZES: dict[str, dict[str, Any]] = {
    "base": dict(dim=768, num_heads=12, hidden_dim=3072, depth=12),
    "large": dict(dim=1024, num_heads=16, hidden_dim=4096, depth=24),
}
for _name, _size in _SIZES.items():
    register(f"bert_{_name}", Bert, PAPER, drop_rate=0.1, attn_drop_rate=0.1, **_size)
