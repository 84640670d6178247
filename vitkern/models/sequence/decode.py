"""Sequences from a model that gives the logits of the next token: greedily, by drawing, by beam search."""

from collections.abc import Callable

import torch
from torch import Tensor

Next = Callable[[Tensor], Tensor]  # tokens so far (B, N) -> logits of the next one (B, V)


def draw(
    following: Next,
    tokens: Tensor,
    steps: int,
    *,
    temperature: float = 0.0,
    top_k: int | None = None,
    eos: int | None = None,
    pad: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Appends up to ``steps`` tokens, one at a time.

    Args:
        following: logits of the next token.
        tokens: (B, N), what the sequences begin with.
        temperature: 0 takes the likeliest token; otherwise one is drawn from softmax(logits / temperature).
        top_k: draw among so many of the likeliest.
        eos: a sequence ends with it; ``pad`` follows. None: all are as long.
        generator: of the random numbers.

    Returns:
        (B, N + steps), or fewer columns where all have ended.

    Raises:
        ValueError: ``temperature`` is negative, or ``top_k`` is not above 0.
    """
    if not temperature >= 0.0 or (top_k is not None and top_k < 1):
        raise ValueError(
            f"draw: got temperature={temperature}, top_k={top_k}; expected a temperature of at least 0 and top_k of at "
            "least 1, or None."
        )
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(steps):
        logits = following(tokens)
        if temperature == 0.0:
            token = logits.argmax(-1)
        else:
            logits, ids = logits.topk(min(top_k or logits.shape[-1], logits.shape[-1]))
            weights = torch.softmax(logits.float() / temperature, -1)
            token = ids.gather(1, torch.multinomial(weights, 1, generator=generator))[:, 0]
        if eos is not None:
            token = token.masked_fill(ended, pad)
            ended = ended | (token == eos)
        tokens = torch.cat([tokens, token[:, None]], 1)
        if eos is not None and bool(ended.all()):
            break
    return tokens


def beam_search(
    following: Next,
    select: Callable[[Tensor], None],
    tokens: Tensor,
    steps: int,
    *,
    beams: int,
    eos: int,
    pad: int,
    length_penalty: float = 0.6,
) -> Tensor:
    """The likeliest of ``beams`` sequences that are followed side by side (arXiv 1706.03762, section 6.1).

    Those that ended stay among them. The best has the largest log p / ((5 + length) / 6)^length_penalty (Wu et al.
    2016, arXiv 1609.08144, equation 14).

    Args:
        following: of B * beams sequences. select: told which (B * beams,) of them go on; see `Cache.select`.
        tokens: (B, N), what the sequences begin with.

    Returns:
        (B, N + steps) or fewer columns, ``pad`` after ``eos``.

    Raises:
        ValueError: no beams.
    """
    if beams < 1:
        raise ValueError(f"beam_search: there is nothing to follow: got beams={beams}; expected at least 1.")
    batch, device = len(tokens), tokens.device
    first = torch.arange(batch, device=device)[:, None] * beams  # the first beam of each
    tokens = tokens.repeat_interleave(beams, 0)
    score = torch.full((batch, beams), -torch.inf, device=device)
    score[:, 0] = 0.0  # the beams begin alike: one counts
    ended = torch.zeros(batch, beams, dtype=torch.bool, device=device)
    length = torch.zeros(batch, beams, dtype=torch.int64, device=device)
    for _ in range(steps):
        logp = following(tokens).float().log_softmax(-1).unflatten(0, (batch, beams))  # (B, beams, V)
        as_it_is = torch.full_like(logp[0, 0], -torch.inf)
        as_it_is[pad] = 0.0
        logp = torch.where(ended[..., None], as_it_is, logp)
        score, chosen = (score[..., None] + logp).flatten(1).topk(beams)  # (B, beams)
        beam, token = chosen // logp.shape[-1], chosen % logp.shape[-1]
        ended, length = ended.gather(1, beam), length.gather(1, beam)
        length = length + ~ended
        ended = ended | (token == eos)
        rows = (first + beam).flatten()
        tokens = torch.cat([tokens[rows], token.view(-1, 1)], 1)
        select(rows)
        if bool(ended.all()):
            break
    best = (score / ((5 + length) / 6) ** length_penalty).argmax(1, keepdim=True)
    return tokens[(first + best).flatten()]
