"""One process or many: what `torchrun` started, how the model is spread, and whole state dicts from its pieces."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from vitkern.report import BadInput

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True)
class Group:
    """The processes of a run; rank 0 alone writes files."""

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def share(self, which: Tensor) -> tuple[Tensor, float]:
        """This process's samples of a step, and the weight of their mean loss.

        Gradients are averaged over processes, so the weight makes the average that of all samples. A process without a
        sample gets the first one with weight 0: it has to take part.
        """
        own = which[self.rank :: self.size]
        return (own, len(own) * self.size / len(which)) if len(own) else (which[:1], 0.0)

    @contextmanager
    def as_one(self) -> Iterator[None]:
        """What one process finds wrong ends them all: the others would wait for it.

        Raises:
            BadInput: its own, or that another process has one.
        """
        problem = None
        try:
            yield
        except BadInput as error:
            problem = error
        failed = self.sum(torch.tensor(float(problem is not None)))
        if problem is not None:
            raise problem
        if failed > 0:
            raise BadInput("another process of the run has a problem, which it tells.")

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def gather(self, value: Tensor) -> Tensor:
        """Every process's ``value``, stacked in the order of ranks, on the CPU."""
        if self.size == 1:
            return value[None].cpu()
        found = [torch.empty_like(value, device=self.device) for _ in range(self.size)]
        dist.all_gather(found, value.to(self.device))
        return torch.stack(found).cpu()

    def sum(self, value: Tensor) -> Tensor:
        if self.size > 1:
            value = value.to(self.device)
            dist.all_reduce(value)
        return value.cpu()


def _number(name: str, default: int) -> int:
    """A whole number, 0 or more, of the environment."""
    text = os.environ.get(name, str(default))
    if not (text.isascii() and text.isdigit()) or len(text) > 9:
        raise BadInput(f"{name} is {text!r:.40} in the environment; expected a whole number, as torchrun sets it.")
    return int(text)


def device() -> torch.device:
    """This process's GPU, or the CPU without one."""
    local = _number("LOCAL_RANK", 0)
    return torch.device("cuda", local) if torch.cuda.is_available() else torch.device("cpu")


def start() -> Group:
    """Join the group that ``torchrun`` describes in the environment (NCCL on GPUs, else gloo); alone without it.

    Raises:
        BadInput: the environment describes none.
    """
    size, own = _number("WORLD_SIZE", 1), device()
    if size > 1:
        if own.type == "cuda":
            torch.cuda.set_device(own)
        try:
            dist.init_process_group("nccl" if own.type == "cuda" else "gloo")
        except ValueError as error:
            raise BadInput(f"the {size} processes cannot be joined: {error}. Start them with torchrun.") from None
    return Group(dist.get_rank() if size > 1 else 0, size, own)


def stop(group: Group) -> None:
    if group.size > 1:
        dist.destroy_process_group()


def spread(module: nn.Module, group: Group, how: str) -> nn.Module:
    """``module`` for this process: as it is when alone; "ddp": a copy on each; "fsdp": parameters, gradients and
    optimiser state in pieces (FSDP2), gathered for a step, for item tables too large for one device's optimiser."""
    if group.size == 1:
        return module
    if how == "fsdp":
        from torch.distributed.fsdp import fully_shard

        mesh = dist.device_mesh.init_device_mesh(group.device.type, (group.size,))
        return fully_shard(module, mesh=mesh)
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(module, device_ids=[group.device.index] if group.device.type == "cuda" else None)


def whole_model(module: nn.Module) -> dict[str, Tensor]:
    """The state dict on the CPU, without pieces; every process has to call it, the first gets it."""
    return get_model_state_dict(module, options=_WHOLE)


def whole_optimizer(module: nn.Module, optimizer) -> tuple[dict[str, Tensor], list[dict]]:
    """The optimiser's tensors as ``parameter/name``, and its groups as JSON."""
    found = get_optimizer_state_dict(module, optimizer, options=_WHOLE)
    tensors = {f"{name}/{key}": value for name, state in found.get("state", {}).items() for key, value in state.items()}
    return tensors, found.get("param_groups", [])


def load_model(module: nn.Module, state: dict[str, Tensor]) -> None:
    set_model_state_dict(module, state, options=_WHOLE)


def load_optimizer(module: nn.Module, optimizer, tensors: dict[str, Tensor], groups: list[dict]) -> None:
    state: dict[str, dict] = {}
    for name, value in tensors.items():
        parameter, key = name.rsplit("/", 1)
        state.setdefault(parameter, {})[key] = value
    set_optimizer_state_dict(module, optimizer, {"state": state, "param_groups": groups}, options=_WHOLE)
