"""`vitkern.accelerate` itself: what it swaps and keeps, what it reports, and what of a model survives."""

import copy
import io
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from swapping import assert_near, assert_same_gradients, logits, randomise
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor

import vitkern
from vitkern.interop import accelerate as module_of_accelerate
from vitkern.interop.adapter import ADAPTERS, adapter_of
from vitkern.interop.fusion import obstacle
from vitkern.interop.timm import mlp_of

ROOT = Path(__file__).resolve().parent.parent
FULL = """\
swapped 4 of 4 modules
  2  timm.models.vision_transformer.Block  ->  layernorm_mlp
  2  timm.layers.attention.Attention       ->  attention
attention is computed by 2 modules: 2 on vitkern's PyTorch path
runs in PyTorch here (cpu, float32): tensors are on cpu, and TRITON_INTERPRET=1 was not in the environment \
before vitkern was imported
images side by side in inference on a CPU: 0 calls of the model shared out over threads"""


def vit(**changes):
    arguments = dict(depth=2, embed_dim=32, num_heads=2, img_size=16, patch_size=8, num_classes=5)
    return randomise(timm.create_model("vit_tiny_patch16_224", **{**arguments, **changes})).eval()


def swin(**changes):
    arguments = dict(depths=(2,), embed_dim=16, num_heads=(2,), img_size=(24, 40), window_size=4, num_classes=5)
    return randomise(timm.create_model("swin_tiny_patch4_window7_224", **{**arguments, **changes})).eval()


def images_for(model):
    return torch.randn(2, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(1))


def classes(model):
    return [type(module) for module in model.modules()]


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


# What the report says


def test_report_of_a_full_swap():
    report = vitkern.accelerate(vit())
    assert str(report) == FULL
    assert len(report) == 4
    assert [(entry.name, entry.original, entry.ops) for entry in report][:2] == [
        ("blocks.0", Block, ("layernorm_mlp",)),
        ("blocks.0.attn", Attention, ("attention",)),
    ]


def test_report_names_what_was_kept_and_why():
    model = vit(act_layer="silu")
    model.blocks[0].attn.__class__ = type("Mine", (Attention,), {})
    text = str(vitkern.accelerate(model))
    assert text.startswith("swapped 1 of 4 modules\n")
    assert re.search(r"^kept\n", text, re.M)
    assert re.search(
        r"^  2  timm\.models\.vision_transformer\.Block +MLP not fused: its activation is a SiLU$", text, re.M
    )
    assert re.search(
        r"^  1  \S+\.Mine +a subclass of timm\.layers\.attention\.Attention, which may differ from it$", text, re.M
    )


def test_report_when_nothing_is_swapped():
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    report = vitkern.accelerate(model)
    lines = str(report).splitlines()
    assert lines[0] == "swapped nothing: no module here is of a class that vitkern knows, and all are as they were"
    assert len(lines) == 2 and lines[1].startswith("images side by side")
    assert len(report) == 0 and list(report) == []
    text = str(vitkern.accelerate(vit(), only="nowhere"))
    assert text.startswith("swapped nothing: 4 modules were looked at, and all are as they were\nkept\n")
    assert "left out by only" in text


def test_report_mentions_attention_without_an_adapter():
    report = vitkern.accelerate(nn.Sequential(nn.MultiheadAttention(8, 2)))
    assert [(kept.name, kept.reason) for kept in report.kept] == [("0", "no adapter for this class")]


def test_report_follows_the_model_and_the_backend():
    report = vitkern.accelerate(vit())
    report.model.half()
    assert "(cpu, float16)" in str(report)
    with vitkern.use_backend("torch"):
        assert "runs in PyTorch here (cpu, float16): the backend is set to torch\n" in str(report)
    report.model.double()
    assert "float64 is not one of float16, bfloat16, float32" in str(report)


# Undoing


def test_restore():
    model = swin()
    before = classes(model)
    report = vitkern.accelerate(model)
    assert classes(model) != before
    report.restore()
    assert classes(model) == before
    report.restore()
    assert classes(model) == before


def test_context_manager_restores_also_after_an_error():
    model = vit()
    before = classes(model)
    with pytest.raises(KeyError), vitkern.accelerate(model) as report:
        assert len(report) == 4
        raise KeyError
    assert classes(model) == before


def test_twice_is_harmless():
    model = vit()
    before = classes(model)
    first = vitkern.accelerate(model)
    swapped = classes(model)
    second = vitkern.accelerate(model)
    assert classes(model) == swapped and len(second) == 0
    assert {kept.reason for kept in second.kept} == {"already swapped"}
    second.restore()
    assert classes(model) == swapped
    first.restore()
    assert classes(model) == before


def test_restore_after_the_class_changed_again():
    model = vit()
    report = vitkern.accelerate(model)
    block = model.blocks[0]
    block.__class__ = type("Sharded", (type(block),), {})
    with pytest.raises(RuntimeError, match=r"1 modules stay as they are: blocks\.0 is a .*Sharded now"):
        report.restore()
    assert type(model.blocks[1]) is Block and type(model.blocks[0].attn) is Attention


@pytest.mark.parametrize("culprit", ["only", "adapter", "assignment"])
def test_a_failure_half_way_leaves_the_model_as_it_was(culprit, monkeypatch):
    model = swin(depths=(2, 2), num_heads=(2, 4))
    before = classes(model)
    seen = []

    def fail_at_the_third(*args):
        seen.append(args)
        if len(seen) == 3:
            raise ZeroDivisionError("half way")
        return True

    only = None
    if culprit == "only":
        only = fail_at_the_third
    elif culprit == "adapter":
        adapter = adapter_of(type(model.layers[0].blocks[0]))
        fit = adapter.fit
        monkeypatch.setattr(adapter, "fit", staticmethod(lambda module: fail_at_the_third() and fit(module)))
    else:
        slots = type("Slots", (), {"__slots__": ("x",)})
        monkeypatch.setattr(module_of_accelerate, "adapter_of", lambda kind: _odd(adapter_of(kind), slots, seen))
    with pytest.raises((ZeroDivisionError, TypeError)):
        vitkern.accelerate(model, only)
    assert len(seen) == 3
    assert classes(model) == before


def _odd(adapter, slots, seen):
    """The adapter; the third time something that no module's class can be set to."""
    if adapter is None:
        return None
    seen.append(adapter)
    return adapter if len(seen) < 3 else type("Odd", (adapter, slots), {})


# Which modules


def test_only():
    assert [entry.name for entry in vitkern.accelerate(vit(), only=lambda module, name: "blocks.1" in name)] == [
        "blocks.1",
        "blocks.1.attn",
    ]
    assert [entry.name for entry in vitkern.accelerate(vit(), only="*.attn")] == ["blocks.0.attn", "blocks.1.attn"]
    assert [entry.name for entry in vitkern.accelerate(vit(), only=["blocks.0", "blocks.1.*"])] == [
        "blocks.0",
        "blocks.1.attn",
    ]
    assert len(vitkern.accelerate(vit(), only=lambda module, name: isinstance(module, Attention))) == 2


@pytest.mark.parametrize("only", [3, [3], [None]])
def test_only_of_a_wrong_type(only):
    model = vit()
    before = classes(model)
    with pytest.raises(TypeError, match=r"accelerate: only is not usable: got .*; expected a predicate"):
        vitkern.accelerate(model, only=only)
    assert classes(model) == before


def test_no_module():
    with pytest.raises(TypeError, match="accelerate: model is no module: got str"):
        vitkern.accelerate("vit")


def test_a_forward_of_its_own_is_kept():
    model = vit()
    model.blocks[0].attn.forward = lambda x, attn_mask=None, is_causal=False: x
    expected = logits(model, images_for(model))
    report = vitkern.accelerate(model)
    assert [(kept.name, kept.reason) for kept in report.kept] == [
        ("blocks.0.attn", "its forward is overridden on the instance")
    ]
    assert_near(logits(model, images_for(model)), expected, 2e-5, "logits")


def test_parametrised_modules():
    model = vit()
    torch.nn.utils.parametrizations.weight_norm(model.blocks[0].mlp.fc1)
    torch.nn.utils.parametrizations.weight_norm(model.blocks[1].attn.qkv)
    expected = logits(model, images_for(model))
    report = vitkern.accelerate(model)
    assert [(kept.name, kept.reason) for kept in report.kept] == [
        ("blocks.0", "MLP not fused: its linear is a ParametrizedLinear")
    ]
    assert_near(logits(model, images_for(model)), expected, 2e-5, "logits")


def test_every_adapter_exists_and_overrides_nothing_that_holds_state():
    pytest.importorskip("torchvision")
    pytest.importorskip("transformers")
    import importlib

    for path in ADAPTERS:
        module, name = path.rsplit(".", 1)
        original = getattr(importlib.import_module(module), name)
        adapter = adapter_of(original)
        assert adapter.__mro__[-1] is object and issubclass(adapter, original) and adapter.__name__ == name
        assert not {"__init__", "__call__", "state_dict", "__getattr__", "__setattr__"} & set(vars(adapter))


# What survives


def test_parameters_keys_and_kinds_survive():
    model = swin()
    parameters, keys = list(model.parameters()), list(model.state_dict())
    vitkern.accelerate(model)
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    assert list(model.state_dict()) == keys
    assert isinstance(model.layers[0].blocks[0], timm.models.swin_transformer.SwinTransformerBlock)
    stock = swin()
    stock.load_state_dict(randomise(model, 7).state_dict(), strict=True)
    assert_near(logits(model, images_for(model)), logits(stock, images_for(model)), 2e-5, "reloaded")


def test_print_shows_the_swap():
    model = vit()
    vitkern.accelerate(model)
    assert "VitkernBlock(" in repr(model) and "VitkernAttention(" in repr(model)
    assert type(model.blocks[0]).__name__ == "Block"  # wrapping policies find layers by this name


@pytest.mark.parametrize("build", [vit, swin])
def test_deepcopy_and_pickle(build):
    model = build()
    vitkern.accelerate(model)
    expected = logits(model, images_for(model))
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert classes(other) == classes(model)
        assert_near(logits(other, images_for(model)), expected, 1e-6, "copy")


def test_a_pickled_model_loads_in_another_process(tmp_path):
    model = vit()
    vitkern.accelerate(model)
    torch.save(model, tmp_path / "model.pt")
    torch.save(logits(model, images_for(model)), tmp_path / "logits.pt")
    code = f"""
import torch
model = torch.load({str(tmp_path / "model.pt")!r}, weights_only=False)
images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
assert torch.allclose(model(images), torch.load({str(tmp_path / "logits.pt")!r}), atol=1e-5)
print(type(model.blocks[0]).__module__)
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "vitkern.interop.timm"


def test_hooks_on_swapped_modules_fire():
    model = vit()
    calls = []
    model.blocks[0].register_forward_hook(lambda module, args, out: calls.append("block"))
    vitkern.accelerate(model)
    model.blocks[0].attn.register_forward_hook(lambda module, args, out: calls.append("attention"))
    model(images_for(model))
    assert calls == ["attention", "block"]


class Lora(nn.Module):
    """A linear layer with a low-rank addition, which shows its base's weight as PEFT's layers do."""

    def __init__(self, base):
        super().__init__()
        self.base_layer = base
        self.down = nn.Parameter(torch.randn(2, base.in_features) * 0.3)
        self.up = nn.Parameter(torch.randn(base.out_features, 2) * 0.3)

    @property
    def weight(self):
        return self.base_layer.weight

    @property
    def bias(self):
        return self.base_layer.bias

    def forward(self, x):
        return self.base_layer(x) + x @ self.down.T @ self.up.T


def attach_hook(module, name):
    module.get_submodule(name).register_forward_hook(lambda m, args, out: out * 1.5)


def attach_lora(module, name):
    parent, _, child = name.rpartition(".")
    torch.manual_seed(3)
    setattr(module.get_submodule(parent), child, Lora(module.get_submodule(name)))


def attach_forward(module, name):
    target = module.get_submodule(name)
    original = target.forward
    target.forward = lambda x: original(x) * 1.5


@pytest.mark.parametrize("first", ["swap", "attachment"])
@pytest.mark.parametrize("attach", [attach_hook, attach_lora, attach_forward])
@pytest.mark.parametrize("name", ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"])
@pytest.mark.parametrize("build", [vit, swin])
def test_attachments_to_projections_keep_their_effect_and_their_gradients(build, name, attach, first):
    model = build()
    block = (model.blocks if build is vit else model.layers[0].blocks)[1]
    plain = logits(model, images_for(model))
    swapped = copy.deepcopy(model)
    other = (swapped.blocks if build is vit else swapped.layers[0].blocks)[1]
    attach(block, name)
    steps = [lambda: attach(other, name), lambda: vitkern.accelerate(swapped)]
    for step in steps if first == "attachment" else reversed(steps):
        step()
    model.double(), swapped.double()
    assert not torch.allclose(logits(model, images_for(model).double()), plain.double(), atol=1e-3)
    assert_same_gradients(model, swapped, images_for(model).double())


@pytest.mark.parametrize("name", ["norm1", "norm2", "mlp", "mlp.act", "attn", "mlp.drop1", "drop_path2"])
@pytest.mark.parametrize("build", [vit, swin])
def test_hooks_on_parts_that_are_bypassed_keep_their_effect(build, name):
    model = build()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    for each in (model, swapped):
        attach_hook((each.blocks if build is vit else each.layers[0].blocks)[0], name)
    assert_near(logits(swapped, images_for(model)), logits(model, images_for(model)), 2e-5, name)


def test_backward_hooks_keep_their_effect():
    model = vit()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    for each in (model, swapped):
        each.blocks[0].mlp.register_full_backward_hook(lambda module, grad_in, grad_out: (grad_in[0] * 2,))
    assert_same_gradients(model.double(), swapped.double(), images_for(model).double())


def test_weights_that_are_no_ordinary_tensors_are_not_read():
    """Quantisation and tensor parallelism leave nn.Linear in place and put a tensor of their own into it."""
    model = vit()
    vitkern.accelerate(model)
    parts = mlp_of(model.blocks[0])
    assert obstacle(parts) is None
    parts.fc1.weight = nn.Parameter(TwoTensor(parts.fc1.weight.detach(), parts.fc1.weight.detach()))
    assert obstacle(parts) == "its linear's weight is no ordinary floating-point tensor"
    other = vit()
    other.blocks[0].mlp.fc2.weight = nn.Parameter(
        TwoTensor(other.blocks[0].mlp.fc2.weight.detach(), torch.zeros(32, 128))
    )
    assert [kept.name for kept in vitkern.accelerate(other).kept] == ["blocks.0"]


# Other ways to run


@pytest.mark.parametrize("build", [vit, swin])
def test_backends(build):
    model = build()
    expected = logits(model, images_for(model))
    vitkern.accelerate(model)
    with vitkern.use_backend("torch"):
        assert_near(logits(model, images_for(model)), expected, 2e-5, "torch")
    with vitkern.use_backend("triton"), pytest.raises(NotImplementedError, match="cannot run: tensors are on cpu"):
        model(images_for(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("build", [vit, swin])
def test_half_precision(build, dtype):
    model = build()
    exact = logits(model, images_for(model))
    model.to(dtype)
    stock = logits(model, images_for(model).to(dtype))
    vitkern.accelerate(model)
    actual = logits(model, images_for(model).to(dtype))
    assert actual.dtype == dtype
    assert (actual - exact).abs().max() <= 2 * (stock - exact).abs().max() + 4 * torch.finfo(
        dtype
    ).eps * exact.abs().max()


@pytest.mark.parametrize("build", [vit, swin])
def test_autocast(build):
    model = build()
    exact = logits(model, images_for(model))
    with torch.autocast("cpu", torch.bfloat16):
        stock = logits(model, images_for(model))
        vitkern.accelerate(model)
        actual = logits(model, images_for(model))
        actual.float().sum().backward()
    assert actual.dtype == stock.dtype
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())
    assert (actual - exact).abs().max() <= 2 * (stock - exact).abs().max() + 2**-7 * exact.abs().max()


def test_checkpointing():
    model = swin()
    swapped = copy.deepcopy(model)
    vitkern.accelerate(swapped)
    swapped.set_grad_checkpointing()
    assert_same_gradients(model.double().train(), swapped.double().train(), images_for(model).double())


def test_a_swap_after_compile_takes_effect():
    model = vit(depth=1)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    expected = compiled(images_for(model)).detach()
    vitkern.accelerate(model)
    if torch.__version__ < (2, 12):  # such a torch does not guard a module's class: right, and as slow as before
        assert_near(compiled(images_for(model)).detach(), expected, 2e-5, "compiled")
        return
    with vitkern.use_backend("triton"), pytest.raises(Exception, match="cannot run: tensors are on cpu"):
        compiled(images_for(model))
    assert_near(compiled(images_for(model)).detach(), expected, 2e-5, "compiled")


def test_sharding(tmp_path):
    """One process that shards over itself: swapped blocks shard like any, sharded ones are kept with the reason."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    model = vit(depth=2)
    expected = logits(model, images_for(model)).detach()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        late = copy.deepcopy(model)
        fully_shard(late.blocks[0].attn, mesh=dist.init_device_mesh("cpu", (1,)))
        reasons = {kept.name: kept.reason for kept in vitkern.accelerate(late).kept}
        assert reasons == {"blocks.0.attn": "sharded already: accelerate first, then fully_shard"}
        vitkern.accelerate(model)
        mesh = dist.init_device_mesh("cpu", (1,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        out = logits(model, images_for(model))
        assert_near(out.detach(), expected, 2e-5, "sharded")
        out.sum().backward()
        assert all(p.grad is not None for p in model.parameters())
    finally:
        dist.destroy_process_group()


# Imports


def test_imports_stay_lazy():
    code = """
import sys
import vitkern
from torch import nn
vitkern.accelerate(nn.Sequential(nn.Linear(2, 2)))
vitkern.attention, vitkern.create_model, vitkern.list_models, vitkern.window_attention, vitkern.layernorm_mlp
assert not {"timm", "transformers", "torchvision"} & set(sys.modules), "a library was imported"
import torch
assert not torch.cuda.is_initialized()
import timm
model = timm.create_model("vit_tiny_patch16_224", depth=1)
vitkern.accelerate(model)
assert "transformers" not in sys.modules
assert "vitkern.interop.torchvision" not in sys.modules
assert "vitkern.interop.timm_swin" not in sys.modules
"""
    result = run_python(code)
    assert result.returncode == 0, result.stderr


def test_public_names():
    assert all(getattr(vitkern, name) is not None for name in vitkern.__all__)
    assert set(vitkern.__all__) <= set(dir(vitkern))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        vitkern.nothing  # noqa: B018


def test_saving_the_weights_alone():
    model = vit()
    vitkern.accelerate(model)
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    vit().load_state_dict(torch.load(buffer, weights_only=True), strict=True)
