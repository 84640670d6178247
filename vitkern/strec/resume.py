"""The state of a run in one file, whole enough that a killed run goes on as if nothing had happened."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitkern.report import BadInput
from vitkern.strec import checkpoint, distributed
from vitkern.strec.distributed import Group
from vitkern.strec.log import Log
from vitkern.strec.settings import Settings


def fingerprint(log: Log) -> str:
    """Of the events, in order."""
    digest = hashlib.sha256()
    for array in (log.starts, log.item, log.time):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def random_state(group: Group) -> dict[str, Tensor]:
    """The generators of every process, one row each."""
    found = {"random/cpu": group.gather(torch.get_rng_state())}
    if group.device.type == "cuda":
        found["random/cuda"] = group.gather(torch.cuda.get_rng_state(group.device))
    return found


def save(path: Path, objective, optimizer, state: dict, settings: Settings, log: Log, group: Group) -> None:
    """Model, optimiser, generators and counters; data order and noise follow from the counters and the seed.

    Before the first step there is no optimiser to save: it is the one that the settings make.
    """
    tensors, groups = _tensors(objective, optimizer if _begun(state) else None)
    tensors |= random_state(group)
    state = state | dict(loss=group.sum(torch.tensor(state["loss"], dtype=torch.float64)).item())
    if group.first:
        found = dict(state=state, settings=settings.json(), log=fingerprint(log), groups=groups, processes=group.size)
        checkpoint.write_tensors(path, tensors, found)


def load(path: Path, objective, optimizer, settings: Settings, log: Log, group: Group) -> dict:
    """Puts all back and returns the counters.

    Raises:
        BadInput: no such file, a damaged one, one that lacks a part or has another, or a run with other settings,
            another log or another number of processes.
    """
    tensors, found = checkpoint.read_tensors(path)
    if missing := {"state", "settings", "log", "groups", "processes"} - found.keys():
        raise BadInput(f"{path} is no checkpoint of a run: it lacks {', '.join(sorted(missing))}.")
    stored = replace(checkpoint.settings_of(path, found), epochs=settings.epochs, patience=settings.patience)
    if stored != settings:
        changed = ", ".join(name for name, value in stored.json().items() if value != settings.json()[name])
        raise BadInput(f"the run in {path.parent} has another {changed}; resume it with the same settings.")
    if found["log"] != fingerprint(log):
        raise BadInput(f"the run in {path.parent} was trained on another log; resume it with the same.")
    if found["processes"] != group.size:
        count = found["processes"]
        raise BadInput(f"the run in {path.parent} had {count} processes, not {group.size}; resume it with as many.")

    state = _counters(path, found["state"])
    whole, groups = _tensors(objective, optimizer if _begun(state) else None)
    whole |= random_state(group)
    with group.as_one():
        if group.first:  # which alone has all
            checkpoint.check_tensors(path, tensors, whole)
            _check_groups(path, found["groups"], groups)

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    distributed.load_model(objective, under("model/"))
    if _begun(state):
        distributed.load_optimizer(objective, optimizer, under("optimizer/"), found["groups"])
    try:
        # torch reads a generator's state from the start of its storage: a row of many has to be a copy.
        torch.set_rng_state(tensors["random/cpu"][group.rank].clone())
        if group.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["random/cuda"][group.rank].clone(), group.device)
    except RuntimeError as error:
        raise BadInput(f"{path} is damaged: {error}") from None
    # The loss so far is a sum over processes: one of them keeps it.
    return state | ({} if group.first else dict(loss=0.0))


def _begun(state: dict) -> bool:
    return bool(state["epoch"] or state["step"])


def _tensors(objective, optimizer) -> tuple[dict[str, Tensor], list[dict]]:
    """Every process has to call it, the first gets them."""
    tensors = {f"model/{name}": value for name, value in distributed.whole_model(objective).items()}
    if optimizer is None:
        return tensors, []
    whole, groups = distributed.whole_optimizer(objective, optimizer)
    return tensors | {f"optimizer/{name}": value for name, value in whole.items()}, groups


def _counters(path: Path, found) -> dict:
    """The counters of a state, each of its kind.

    Raises:
        BadInput: one is missing or of another kind, or the history is not that of so many epochs.
    """
    whole, part = ("epoch", "step", "best_epoch"), ("loss", "best", "seconds")
    if not isinstance(found, dict) or {*whole, *part, "history"} - found.keys():
        raise BadInput(f"{path} is no checkpoint of a run: it lacks its counters.")
    history = found["history"]
    rows = history if isinstance(history, list) and all(isinstance(row, dict) for row in history) else None
    fits = (
        all(isinstance(found[name], int) and found[name] >= 0 for name in whole)
        and all(_is_number(found[name]) for name in part)
        and rows is not None
        and all(row.keys() == rows[0].keys() >= {"epoch", "loss", "ndcg@10"} for row in rows)
        and all(_is_number(value) for row in rows for value in row.values())
        and len(rows) == found["epoch"] >= found["best_epoch"]
    )
    if not fits:
        raise BadInput(f"{path} is damaged: its counters are not those of a run.")
    return {name: found[name] for name in (*whole, *part, "history")}


def _is_number(value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_groups(path: Path, found, own: list[dict]) -> None:
    """What the settings say of the optimiser is there; the learning rate moves, and other versions of PyTorch add."""
    own = json.loads(json.dumps(own))
    fits = isinstance(found, list) and len(found) == len(own) and all(isinstance(group, dict) for group in found)
    for group, mine in zip(found, own, strict=True) if fits else ():
        known = [name for name in mine if name != "lr" and (name in group or name in ("params", "betas", "eps"))]
        fits &= all(group.get(name) == mine[name] for name in known)
        fits &= _is_number(group.get("lr")) and group["lr"] >= 0
    if not fits:
        raise BadInput(f"{path} is no checkpoint of this run: its optimiser is another.")
