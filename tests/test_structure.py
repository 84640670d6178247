"""Whether a class is a copy of another one, by its source, and what becomes of copies and of others."""

import inspect
import sys
import types
from pathlib import Path

import pytest
import torch
import transformers as hf
from swapping import assert_near, randomise
from torch import nn
from transformers.models.sam.modeling_sam import SamVisionAttention
from transformers.models.sam_hq.modeling_sam_hq import SamHQVisionAttention, SamHQVisionModel
from transformers.models.swin.modeling_swin import SwinLayer
from transformers.models.vit import modeling_vit
from transformers.models.vit_msn import modeling_vit_msn

import vitkern
from vitkern.interop.adapter import adapter_of, known_base
from vitkern.interop.descriptions import exemplar_of, near_miss
from vitkern.interop.structure import difference, like, plain_like

hf.logging.set_verbosity_error()
VIT = dict(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8
)
SAM = dict(VIT, mlp_dim=64, output_channels=8, global_attn_indexes=[0], window_size=3, use_rel_pos=True)


HEADER = """
import torch
from torch import nn
from transformers.models.vit.modeling_vit import *
from transformers.models.vit.modeling_vit import (
    ACT2FN, ALL_ATTENTION_FUNCTIONS, Callable, GradientCheckpointingLayer, TransformersKwargs, Unpack, ViTConfig,
    eager_attention_forward,
)

"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Makes a folder of transformers: a file of this source -> the module."""

    def make(source, name="modeling_fake"):
        path = tmp_path / f"{name}.py"
        path.write_text(source)
        module = types.ModuleType(f"transformers.models.fake.{name}")
        module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(source, path, "exec"), vars(module))
        return module

    return make


def renamed_vit(folder, *edits, name="modeling_fake"):
    """ViT's layer under another name, with changes."""
    classes = (modeling_vit.ViTAttention, modeling_vit.ViTMLP, modeling_vit.ViTLayer)
    source = HEADER + "\n\n".join(map(inspect.getsource, classes)).replace("ViT", "FakeViT").replace("FakeViTC", "ViTC")
    for old, new in edits:
        assert old in source
        source = source.replace(old, new)
    return folder(source, name)


def config():
    return hf.ViTConfig(**VIT, attn_implementation="sdpa")


def test_a_renamed_copy_is_swapped(folder):
    docstring = ("        # Self Attention\n", '        """A layer."""\n        # Self Attention\n')
    module = renamed_vit(folder, docstring, ("hidden_states: torch.Tensor", "hidden_states"), ("-> torch.Tensor", ""))
    kind = module.FakeViTLayer
    assert exemplar_of(kind) == "transformers.models.vit.modeling_vit.ViTLayer" and near_miss(kind) is None
    layer = randomise(kind(config())).eval()
    expected = layer(x := torch.randn(2, 5, 32))
    adapter = adapter_of(kind)
    (entry,) = vitkern.accelerate(layer)
    assert entry.ops == ("layernorm_mlp",) and type(layer) is adapter and isinstance(layer, kind)
    assert adapter.__name__ == "FakeViTLayer" and adapter.adapted is kind and "VitkernFakeViTLayer(" in repr(layer)
    assert not isinstance(layer, modeling_vit.ViTLayer)
    assert_near(layer(x), expected, 2e-6, "layer")
    layer.mlp.fc1.register_forward_hook(lambda *args: calls.append(1))
    calls = []
    assert torch.equal(layer(x), kind.forward(layer, x)) and len(calls) == 2  # super() is the copy


ADDED, RETURNED = "hidden_states = hidden_states + residual", "\n\n        return"
# What is replaced, by what, and the line that the report gives.
DIFFERENT = {
    "another child": (
        "self.layernorm_after(hidden_states)",
        "self.layernorm_before(hidden_states)",
        "hidden_states = self.layernorm_before(hidden_states)",
    ),
    "another sign": (ADDED + RETURNED, ADDED.replace("+", "-") + RETURNED, ADDED.replace("+", "-")),
    "one line more": (ADDED + RETURNED, f"{ADDED}\n        {ADDED}{RETURNED}", ADDED),
    "one line less": (f"{ADDED}\n\n        # F", "\n        # F", "residual = hidden_states"),
    "another default": ("None = None,", "None = 1,", "attention_mask: torch.Tensor | None = 1,"),
}


@pytest.mark.parametrize("change", DIFFERENT)
def test_what_differs_is_kept_and_the_report_says_where(folder, change):
    old, new, line = DIFFERENT[change]
    module = renamed_vit(folder, (old, new))
    layer = module.FakeViTLayer(config())
    reasons = [kept.reason for kept in vitkern.accelerate(layer).kept if kept.name == ""]
    source = Path(module.__file__).read_text().splitlines()
    numbers = [number for number, text in enumerate(source, 1) if text.strip() == line]
    exemplar = "transformers.models.vit.modeling_vit.ViTLayer"
    assert reasons[0] in [f"differs from {exemplar} in line {number}: `{line}`" for number in numbers]
    assert len(reasons) == 1 and type(layer) is module.FakeViTLayer


def test_children_are_looked_at_in_turn(folder):
    """The layer is a copy; its MLP is none."""
    order = ("self.fc1(hidden_states)\n        hidden_states = self.activation_fn(hidden_states)",
             "self.activation_fn(hidden_states)\n        hidden_states = self.fc1(hidden_states)")  # fmt: skip
    module = renamed_vit(folder, order)
    report = vitkern.accelerate(module.FakeViTLayer(config()), only="")
    assert [kept.reason for kept in report.kept if kept.name == ""] == ["MLP not fused: it is a FakeViTMLP"]


def test_without_a_source_nothing_is_a_copy(folder):
    module = renamed_vit(folder)
    Path(module.__file__).unlink()
    assert exemplar_of(module.FakeViTLayer) is None
    assert near_miss(module.FakeViTLayer).endswith("in what is not known: its source cannot be read")
    assert like(modeling_vit.ViTMLP, modeling_vit.ViTMLP) and not like(module.FakeViTMLP, modeling_vit.ViTMLP)


def forward(body="x", before="", after="", base="nn.Module", arguments="self, x"):
    """A file with a class X."""
    lines = ["import torch", "from torch import nn", before, f"class X({base}):"]
    return "\n".join([*lines, f"    def forward({arguments}):", f"        return {body}", after])


def module(name, body, base="nn.Module"):
    return f"class {name}({base}):\n    def forward(self, x):\n        return {body}"


def method(body, decorator=""):
    return f"    {decorator}\n    def f(self, *x):\n        return {body}"


def function(name, arguments, body):
    return f"def {name}({arguments}):\n    return {body}"


SUPER = "super().forward(x)"
# Two files whose X runs the same, or does not.
PAIRS = {
    "a local variable": (forward("[a for a in x]"), forward("[b for b in x]"), True),
    "two local variables, exchanged": (forward("[(a, b) for a, b in x]"), forward("[(b, a) for a, b in x]"), False),
    "a text and a number": (forward("(x, 1)"), forward("(x, '1')"), False),
    "True and 1": (forward("(x, 1)"), forward("(x, True)"), False),
    "a function's name": (forward("f(x)", function("f", "x", "x")), forward("g(x)", function("g", "y", "y")), True),
    "a function's body": (forward("f(x)", function("f", "x", "x")), forward("f(x)", function("f", "x", "-x")), False),
    "a function's parameters, exchanged": (
        forward("f(a=x, b=1)", function("f", "a, b", "a - b")),
        forward("f(a=x, b=1)", function("f", "b, a", "b - a")),
        False,
    ),
    "a global for a local": (forward("[a for b in x]", "a = b = 1"), forward("[b for b in x]", "a = b = 1"), False),
    "a constant": (forward("c * x", "c = 1"), forward("d * x", "d = 1"), True),
    "another constant": (forward("c * x", "c = 1"), forward("c * x", "c = 2"), False),
    "a name that nobody has": (forward("nothing(x)"), forward("nobody(x)"), False),
    "a method": (forward("self.f(x)", after=method("x")), forward("self.f(x)", after=method("-x")), False),
    "a method for a child": (forward("self.f(x)"), forward("self.f(x)", after=method("x")), False),
    "a property": (
        forward("self.f * x", after=method("1", "@property")),
        forward("self.f * x", after=method("2", "@property")),
        False,
    ),
    "a decorator": (
        forward("self.f(x)", after=method("x", "@torch.no_grad()")),
        forward("self.f(x)", after=method("x")),
        False,
    ),
    "a base": (
        forward(SUPER, module("B", "x"), base="B"),
        forward(SUPER, module("B", "-x"), base="B"),
        False,
    ),
    "the name of a base": (
        forward(SUPER, module("B", "x"), base="B"),
        forward(SUPER, module("C", "x"), base="C"),
        True,
    ),
    "a class": (forward("A()(x)", module("A", "x")), forward("A()(x)", module("A", "-x")), False),
    "an argument": (forward("1", arguments="self, x"), forward("1", arguments="self, y"), False),
    "a default": (forward("x", arguments="self, x=1"), forward("x", arguments="self, x=2"), False),
    "an annotation": (forward("x", arguments="self, x: int"), forward("x", arguments="self, x"), True),
}


@pytest.mark.parametrize("case", PAIRS)
def test_what_makes_a_difference(folder, case):
    one, other, same = PAIRS[case]
    first, second = folder(one, "modeling_one").X, folder(other, "modeling_other").X
    assert (difference(first, second) is None) == same
    assert (difference(second, first) is None) == same
    assert difference(first, first) is None


def test_only_what_is_made_alike_is_bypassed():
    model = SamHQVisionModel(hf.SamHQVisionConfig(**SAM, attn_implementation="eager"))
    layer = model.vision_encoder.layers[1]
    assert type(layer.attn) is SamHQVisionAttention and plain_like(layer.attn, SamVisionAttention)
    layer.attn = modeling_vit_msn.ViTMSNAttention(config())
    report = vitkern.accelerate(model)
    reasons = {kept.name: kept.reason for kept in report.kept}
    assert reasons["vision_encoder.layers.1"] == "attention kept: it is replaced or hooked"
    assert "vision_encoder.layers.0" in [entry.name for entry in report]


def test_another_scale_is_no_copy(folder):
    """The op is told nothing of SAM's scale: how a copy makes it is a part of what it is."""
    source = inspect.getsource(SamVisionAttention)
    header = "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"
    same = folder(header + source, "modeling_one").SamVisionAttention
    other = folder(header + source.replace("head_dim**-0.5", "head_dim**-1.5"), "modeling_other").SamVisionAttention
    modules = [kind(hf.SamVisionConfig(**SAM), 3) for kind in (same, other)]
    assert [plain_like(module, SamVisionAttention) for module in modules] == [True, False]


def test_descriptions_serve_no_class_by_themselves():
    for kind in (nn.Linear, nn.MultiheadAttention, type("SwinLayer", (nn.Module,), {})):
        assert exemplar_of(kind) is None and near_miss(kind) is None
    assert known_base(type("Mine", (SwinLayer,), {})) == "transformers.models.swin.modeling_swin.SwinLayer"
    assert known_base(type("Mine", (modeling_vit_msn.ViTMSNLayer,), {})).endswith("ViTMSNLayer")
