"""A trained run back from its folder, and recommendations from it."""

from pathlib import Path

import torch
import torch.nn as nn

from vitkern.report import BadInput
from vitkern.strec import checkpoint
from vitkern.strec.data import newest
from vitkern.strec.log import Log
from vitkern.strec.settings import Settings, build_model


def load_run(folder: Path, device: str | torch.device = "cpu") -> tuple[nn.Module, Settings, list[str]]:
    """The best model of a run in eval mode, its settings, and its items by code.

    Raises:
        BadInput: the folder holds no run, or a damaged one.
    """
    weights, found, settings = _best(folder)
    items = checkpoint.read_items(folder)
    if found.get("n_items") != len(items):
        count = f"{found.get('n_items')!r:.20}"
        raise BadInput(f"{folder} mixes two runs: {count} items in the weights, {len(items)} in the list.")
    model = build_model(settings, len(items))
    checkpoint.check_tensors(folder / checkpoint.WEIGHTS, weights, model.state_dict())
    model.load_state_dict(weights, strict=True)
    return model.to(device).eval(), settings, items


def _best(folder: Path) -> tuple[dict[str, torch.Tensor], dict, Settings]:
    weights, found = checkpoint.read_tensors(folder / checkpoint.WEIGHTS)
    return weights, found, checkpoint.settings_of(folder / checkpoint.WEIGHTS, found)


def weights_for(settings: Settings, log: Log, folder: Path) -> dict[str, torch.Tensor]:
    """The weights of another run to start one with ``settings`` on ``log`` from, as fine-tuning does.

    Raises:
        BadInput: the folder holds no run, or one with other items or with settings that give weights another meaning.
    """
    weights, _, before = _best(folder)
    if checkpoint.read_items(folder) != log.items:
        raise BadInput(f"the run in {folder} was trained on other items than this log's {len(log.items) - 1}.")
    for name in ("max_len", "d", "layers", "heads", "hidden", "form", "sampler"):
        if getattr(before, name) != getattr(settings, name):
            values = f"{getattr(before, name)}, not {getattr(settings, name)}"
            raise BadInput(f"the run in {folder} has {name} {values}; its weights mean something else here.")
    return weights


@torch.no_grad()
def recommend(model: nn.Module, log: Log, user: int, k: int = 10, *, exclude_seen: bool = True) -> list[dict]:
    """The k best next items of a user after all events of the log: ``[{"item": name, "score": value}, ...]``.

    exclude_seen: no item that the log holds for the user, however long ago.

    Raises:
        BadInput: k is not in 1 .. items, every item was seen, or a score is NaN or infinite.
    """
    if not 1 <= k < len(log.items):
        raise BadInput(f"k is {k}; expected 1 .. {len(log.items) - 1}, the number of items.")
    seq, times = newest(log, user, model.max_len)
    device = next(iter(model.state_dict().values())).device
    scores = (model(seq.to(device), times.to(device)) @ model.item_table().T)[0].float().cpu()
    if not bool(torch.isfinite(scores).all()):
        raise BadInput("the model gives scores that are not finite; it has diverged. Train it anew.")
    scores[0] = -torch.inf
    if exclude_seen:
        scores[torch.from_numpy(log.item[log.starts[user] : log.starts[user + 1]])] = -torch.inf
    best = scores.topk(min(k, int(torch.isfinite(scores).sum())))
    if not len(best.values):
        raise BadInput(f"user {log.users[user]!r} has seen every item; ask with seen items included.")
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [{"item": log.items[code], "score": value} for code, value in pairs]
