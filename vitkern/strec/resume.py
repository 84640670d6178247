"""The state of a run in one file, whole enough that a killed run goes on as if nothing had happened."""

import hashlib
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
    """Model, optimiser, generators and counters; data order and noise follow from the counters and the seed."""
    tensors = {f"model/{name}": value for name, value in distributed.whole_model(objective).items()}
    whole, groups = distributed.whole_optimizer(objective, optimizer)
    tensors |= {f"optimizer/{name}": value for name, value in whole.items()} | random_state(group)
    state = state | dict(loss=group.sum(torch.tensor(state["loss"], dtype=torch.float64)).item())
    if group.first:
        found = dict(state=state, settings=settings.json(), log=fingerprint(log), groups=groups, processes=group.size)
        checkpoint.write_tensors(path, tensors, found)


def load(path: Path, objective, optimizer, settings: Settings, log: Log, group: Group) -> dict:
    """Puts all back and returns the counters.

    Raises:
        BadInput: no such file, a damaged one, or a run with other settings, another log or another number of processes.
    """
    tensors, found = checkpoint.read_tensors(path)
    if missing := {"state", "settings", "log", "groups", "processes"} - found.keys():
        raise BadInput(f"{path} is no checkpoint of a run: it lacks {', '.join(sorted(missing))}.")
    stored = replace(Settings.from_json(found["settings"]), epochs=settings.epochs, patience=settings.patience)
    if stored != settings:
        changed = ", ".join(name for name, value in stored.json().items() if value != settings.json()[name])
        raise BadInput(f"the run in {path.parent} has another {changed}; resume it with the same settings.")
    if found["log"] != fingerprint(log):
        raise BadInput(f"the run in {path.parent} was trained on another log; resume it with the same.")
    if found["processes"] != group.size:
        count = found["processes"]
        raise BadInput(f"the run in {path.parent} had {count} processes, not {group.size}; resume it with as many.")

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    distributed.load_model(objective, under("model/"))
    distributed.load_optimizer(objective, optimizer, under("optimizer/"), found["groups"])
    # torch reads a generator's state from the start of its storage: a row of many has to be a copy.
    torch.set_rng_state(tensors["random/cpu"][group.rank].clone())
    if group.device.type == "cuda":
        torch.cuda.set_rng_state(tensors["random/cuda"][group.rank].clone(), group.device)
    # The loss so far is a sum over processes: one of them keeps it.
    return found["state"] | ({} if group.first else dict(loss=0.0))
