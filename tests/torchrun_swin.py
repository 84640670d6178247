"""One of several processes that train an accelerated model together; run by tests/test_torchrun.py under ``torchrun``.

    torchrun --standalone --nproc-per-node 2 tests/torchrun_swin.py

Each takes its share of a batch through DistributedDataParallel, and through `fully_shard`. After one step the weights
have to be those of the unchanged model in one process after the whole batch, and state dicts fit both.
"""

import copy

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torchvision.models import SwinTransformer

import vitkern

SIZES = dict(patch_size=[4, 4], embed_dim=16, depths=[2], num_heads=[2], window_size=[4, 4], stochastic_depth_prob=0.0)


def step(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    nn.functional.cross_entropy(model(images), labels).backward()
    optimiser.step()


def whole(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in state.items()}


def replicated(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return DistributedDataParallel(model), model


def sharded(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for block in model.features[1]:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh), model


def main() -> None:
    dist.init_process_group("gloo")
    rank, count = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(0)
    plain = SwinTransformer(**SIZES, num_classes=5).double()
    begun = copy.deepcopy(plain)
    images, labels = torch.randn(2 * count, 3, 28, 28).double(), torch.arange(2 * count) % 5
    step(plain, images, labels)
    for wrap in (replicated, sharded):
        model = copy.deepcopy(begun)
        report = vitkern.accelerate(model)
        assert [entry.by for entry in report.attention] == [entry.name for entry in report.attention] != [], str(report)
        wrapped, inner = wrap(model)
        step(wrapped, images[rank::count], labels[rank::count])
        trained = whole(inner.state_dict())
        assert list(trained) == list(plain.state_dict())
        for name, expected in plain.state_dict().items():
            assert torch.allclose(trained[name], expected, rtol=1e-9, atol=1e-11), f"{wrap.__name__}: {name}"
        assert not torch.equal(trained["head.weight"], begun.state_dict()["head.weight"])
        copy.deepcopy(begun).load_state_dict(trained)
        report.restore() if wrap is replicated else None
    print(f"rank {rank} of {count}: the same weights")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
