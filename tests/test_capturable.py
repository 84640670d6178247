"""A CUDA graph can hold every operator: no call waits for the device, brings anything from the host, or makes there
what the device could make. So a warm call neither synchronises nor copies from memory that is not pinned.

Operands are on the meta device. Nothing can be read from it, and what is on the CPU stands out. Operators run as their
fakes there; then their launchers are called with what the operators were given, and launch nothing.
"""

import sys
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import vitkern
from vitkern import dispatch
from vitkern.lab.specimens import gathered
from vitkern.models import list_models
from vitkern.ops.window_attention import windows

pytest.importorskip("triton", reason="no Triton: there are no launchers")
from vitkern.kernels.machine import launch
from vitkern.kernels.machine.architecture import forced_arch

PROBLEMS = {str(problem): problem for problem in gathered("check")}
WAITS = {  # operators of PyTorch whose result, or its size, the host has to know
    "aten::_local_scalar_dense", "aten::is_nonzero", "aten::equal", "aten::nonzero", "aten::nonzero_numpy",
    "aten::masked_select", "aten::_unique2", "aten::unique_dim", "aten::unique_consecutive", "aten::bincount",
    "aten::repeat_interleave", "aten::lift_fresh",
}  # fmt: skip


class HostWork(AssertionError):
    """What a captured call may not do."""


def from_host(*args, **kwargs):
    raise HostWork("torch.tensor or torch.as_tensor is on the CPU")


class OnDevice(TorchDispatchMode):
    """Within it nothing happens on the host. ``calls``: (operator, arguments) of each operator of vitkern."""

    __module__ = "torch.utils"  # as one of PyTorch's own modes, for which accelerated modules do not step aside

    def __init__(self):
        super().__init__()
        self.calls = []
        self.makers = mock.patch.multiple(torch, tensor=from_host, as_tensor=from_host)  # on meta they copy nothing

    def __enter__(self):
        self.makers.start()
        return super().__enter__()

    def __exit__(self, *exception):
        self.makers.stop()
        return super().__exit__(*exception)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function._schema.name, kwargs or {}
        if name.startswith("vitkern::"):
            self.calls.append((name.removeprefix("vitkern::"), args))
        if name in WAITS and not (name == "aten::repeat_interleave" and isinstance(args[-1], int)):
            raise HostWork(f"{name} needs the host")
        if name.startswith("aten::index") and name != "aten::index_select" and any(map(is_mask, tree_leaves(args[1]))):
            raise HostWork(f"{name} counts a mask")
        result = function(*args, **kwargs)
        if any(isinstance(x, torch.Tensor) and x.device.type == "cpu" for x in tree_leaves((args, kwargs, result))):
            raise HostWork(f"{name} has a tensor on the CPU")
        return result


def is_mask(x):
    return isinstance(x, torch.Tensor) and x.dtype == torch.bool


def launchers():
    """Operator -> launcher."""
    found = {}
    for module in [m for name, m in sys.modules.items() if name.startswith("vitkern.kernels.")]:
        for name, value in vars(module).items():
            if callable(value) and getattr(value, "__module__", "") == module.__name__:
                found.setdefault(name.removesuffix("_forward"), value)
    return found


def operands(problem):
    def placed(name, value):
        if value is None:
            return None
        value = value.to("meta", torch.bfloat16 if value.is_floating_point() else value.dtype)
        return value.requires_grad_(name in problem.gradients)

    return {name: placed(name, value) for name, value in problem.inputs(torch.Generator().manual_seed(0)).items()}


def forward_and_backward(function, operands, options):
    out = function(**operands, **options)
    out = out[0] if isinstance(out, tuple) else out
    if out.requires_grad:
        out.backward(torch.empty_like(out))


@pytest.fixture(autouse=True)
def _launching_nothing():
    with ExitStack() as within:
        within.enter_context(dispatch.any_device())
        within.enter_context(forced_arch(90))
        within.enter_context(launch.redirected(lambda *args: None))
        yield


@pytest.mark.walk(3)
@pytest.mark.parametrize("backend", ("triton", "torch"))
@pytest.mark.parametrize("name", PROBLEMS)
def test_an_operator_stays_on_the_device(name, backend):
    problem = PROBLEMS[name]
    with dispatch.use_backend(backend):
        forward_and_backward(problem.run, operands(problem), problem.options)  # warm: caches may be filled on the host
        given = operands(problem)
        with OnDevice() as watch:
            forward_and_backward(problem.run, given, problem.options)
    assert bool(watch.calls) == (backend == "triton")


@pytest.mark.walk(3)
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_launcher_stays_on_the_device(name):
    problem, known = PROBLEMS[name], launchers()
    given = operands(problem)
    with dispatch.use_backend("triton"), OnDevice() as watch:
        forward_and_backward(problem.run, given, problem.options)
    assert watch.calls
    for operator, arguments in watch.calls:
        known[operator](*arguments)
        with OnDevice():
            known[operator](*arguments)


SINS = {
    "an index made on the host": lambda x: x[torch.arange(2).to(x.device)],
    "a number read": lambda x: x * x.sum().item(),
    "a branch on a value": lambda x: x if x.any() else -x,
    "a list": lambda x: x * x.tolist()[0],
    "a copy to the host": lambda x: x.cpu(),
    "a constant brought along": lambda x: x * torch.tensor([1.0, 2.0, 3.0], device=x.device),
    "a count of values": lambda x: x.nonzero(),
    "a mask as index": lambda x: x[x > 0],
    "a mask as index to write to": lambda x: x.index_put_((x > 0,), x.sum()),
    "lengths that are values": lambda x: x.repeat_interleave(x.long()),
}


@pytest.mark.parametrize("name", SINS)
def test_what_a_graph_cannot_hold_is_found(name):
    with OnDevice(), pytest.raises((HostWork, RuntimeError), match=r"aten|on the CPU|of meta|on meta|out of meta"):
        SINS[name](torch.empty(3, device="meta"))


def forward_on_device(model, *inputs):
    with torch.no_grad(), dispatch.use_backend("triton"):
        model(*inputs)
        with OnDevice() as watch:
            model(*inputs)
    return watch.calls


SMALLEST = "xxs", "mini", "tiny", "small", "_h0"


def families():
    """A small one of each kind of model."""
    ranked = sorted(list_models(), key=lambda name: [size not in name for size in SMALLEST], reverse=True)
    return list({name.split("_")[0]: name for name in ranked}.values())


@pytest.mark.walk(3)
@pytest.mark.parametrize("name", families())
def test_a_model_stays_on_the_device(name):
    dtype = torch.bfloat16 if name.startswith("cait") else torch.float32  # the tile that mixes heads holds no more
    with torch.device("meta"):
        model = vitkern.create_model(name).to(dtype).eval()
        inputs = model.example_inputs(2)
    assert forward_on_device(model, *inputs)


ACCELERATED = "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "halonet26t"


@pytest.mark.parametrize("name", ACCELERATED)
def test_an_accelerated_model_stays_on_the_device(name):
    timm = pytest.importorskip("timm", reason="timm is not installed")
    with torch.device("meta"):
        model = timm.create_model(name).eval()
        images = torch.empty(2, *model.pretrained_cfg["input_size"])
    vitkern.accelerate(model)
    assert forward_on_device(model, images)


def test_what_is_made_during_a_capture_is_not_kept(monkeypatch):
    """It lies in the graph's own memory, which is filled by a replay alone; and a graph must not read from a cache,
    which may drop what it reads."""
    windows._cached.cache_clear()
    arguments = 1, 8, 8, (4, 4), (0, 0), "image", torch.device("cpu")
    monkeypatch.setattr(dispatch, "is_captured", lambda: True)
    first = windows.windows_of(*arguments)
    assert first.gather is not windows.windows_of(*arguments).gather
    monkeypatch.undo()
    assert windows.windows_of(*arguments).gather is windows.windows_of(*arguments).gather
