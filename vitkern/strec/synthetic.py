"""A log in which the next item follows from recent ones alone: what STRec's sampler must find out."""

from pathlib import Path

import numpy as np
import torch

from vitkern.strec.checkpoint import write_bytes


def planted_log(
    *,
    users: int = 2000,
    items: int = 200,
    events: int = 24,
    memory: float = 600.0,
    noise: float = 0.1,
    seed: int = 0,
) -> list[tuple[str, str, int]]:
    """(user, item, timestamp) in the order of users and time.

    Each item has one successor. The next item is the successor of an earlier one of the user, drawn with probability
    proportional to exp(-age / ``memory``), or (with probability ``noise``) any item. Gaps between events are mostly
    shorter than ``memory`` and sometimes hours, so neither the position nor the last item alone tells what counts.

    Args:
        memory: seconds after which an item's influence has fallen to 1 / e.
    """
    rng = np.random.default_rng(seed)
    successor = np.roll(rng.permutation(items), 1)
    popularity = rng.dirichlet(np.full(items, 2.0))
    rows = []
    for user in range(users):
        now = int(rng.integers(1_600_000_000, 1_700_000_000))
        history, when = [int(rng.choice(items, p=popularity))], [now]
        for _ in range(int(rng.integers(events // 2, events * 3 // 2)) - 1):
            now += (
                int(rng.exponential(memory / 4)) + 1 if rng.random() < 0.75 else int(rng.exponential(50 * memory)) + 1
            )
            age = now - np.array(when, dtype=np.float64)
            weight = np.exp((age.min() - age) / memory)  # the newest counts 1: far gaps do not underflow
            if rng.random() < noise:
                item = int(rng.choice(items, p=popularity))
            else:
                item = int(successor[history[int(rng.choice(len(history), p=weight / weight.sum()))]])
            history.append(item)
            when.append(now)
        rows += [(f"u{user}", f"i{item}", time) for item, time in zip(history, when, strict=True)]
    return rows


def write_planted_log(path: str | Path, **arguments) -> int:
    """Write `planted_log` as CSV; returns the number of events."""
    rows = planted_log(**arguments)
    text = "".join(f"{user},{item},{time}\n" for user, item, time in rows)
    write_bytes(Path(path), f"user,item,timestamp\n{text}".encode())
    return len(rows)


@torch.no_grad()
def recency(model, memory: float = 600.0) -> float:
    """How much higher the sampler of an `vitkern.strec.model.STRec` scores items younger than ``memory`` seconds than
    items ten times as old and older; in deviations of a sequence with ages from a second to a day."""
    ages = -torch.logspace(0, np.log10(86400), 40, dtype=torch.float64).flip(0)[None]
    ages = torch.cat([ages, torch.zeros(1, 1, dtype=torch.float64)], dim=1).to(next(model.parameters()).device)
    score = model.score(torch.ones_like(ages, dtype=torch.int64), ages, torch.zeros_like(ages)).double()
    return (score[ages > -memory].mean() - score[ages < -10 * memory].mean()).item() / score.std().item()


@torch.no_grad()
def turn_to_old(model) -> None:
    """Make an untrained sampler prefer old items, so that a preference for recent ones has to be learned."""
    if recency(model) > 0:
        model.ffn.dense_2.weight.neg_()
