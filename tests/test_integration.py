"""Every operator in PyTorch's hands, on its PyTorch path; every module and an accelerated model copied, pickled and
stored; and thousands of bad calls, none of which gets past the checks."""

import contextlib
import copy
import io
import math
import pickle
import random
import re

import integration
import pytest
import torch
from integration import CASES, CHECKS, MODULES, agree, gradients

import vitkern
from vitkern import nn as vnn
from vitkern.ops.decomposed_attention import decomposed_attention
from vitkern.ops.halo_attention import halo_attention, halo_attention_qkvpacked
from vitkern.ops.local_attention import local_attention
from vitkern.ops.neighborhood_attention import neighborhood_attention
from vitkern.ops.standalone_attention import standalone_attention

# what test_window_attention.py does with more shapes takes long: its PyTorch path is many operators
ELSEWHERE = {("window_attention", integration.compiles_whole_with_changing_lengths)}
PAIRS = [(name, check) for name in CASES for check in CHECKS if (name, check) not in ELSEWHERE]


@pytest.mark.walk(6)
@pytest.mark.parametrize("name, check", PAIRS, ids=lambda value: getattr(value, "__name__", value))
def test_operator(name, check):
    check(CASES[name])


def built(name):
    return getattr(vnn, name)(**MODULES[name].arguments)


def randomise(module):
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.3)
    return module


def results(module, x, *more):
    """Output, gradient of the input and of each parameter."""
    torch.manual_seed(4)
    return gradients(lambda x, *_: module(x, *more), [x.detach().clone().requires_grad_(), *module.parameters()])


@pytest.mark.walk(5)
@pytest.mark.parametrize("name", MODULES)
def test_module_is_copied_pickled_and_stored(name):
    case = MODULES[name]
    x, more = torch.randn(case.shape), case.more
    module = randomise(built(name))
    expected = results(module, x, *more)  # caches and lazily made tensors are there before the copy
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    stored = built(name)
    stored.load_state_dict(torch.load(buffer, weights_only=True), strict=True)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), stored):
        assert type(other) is type(module) and repr(other) == repr(module)
        assert list(other.state_dict()) == list(module.state_dict())
        for key, value in module.state_dict().items():
            assert torch.equal(other.state_dict()[key], value)
        assert all(p is not q for p, q in zip(other.parameters(), module.parameters(), strict=True))
        for one, reference in zip(results(other, x, *more), expected, strict=True):
            assert torch.equal(one, reference)


@pytest.mark.parametrize("name", ["Attention", "Mlp", "PatchEmbed"])
def test_module_compiles_exports_and_checkpoints(name):
    module, x = randomise(built(name)), torch.randn(MODULES[name].shape)
    expected = results(module, x)
    torch._dynamo.reset()
    agree(results(torch.compile(module, fullgraph=True, backend="aot_eager"), x), expected)
    agree([torch.export.export(module, (x,)).module()(x)], expected[:1])
    again = x.clone().requires_grad_()
    out = torch.utils.checkpoint.checkpoint(module, again, use_reentrant=False)
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    agree(torch.autograd.grad(out, [again, *module.parameters()], weight), expected[1:])


@pytest.mark.walk(5)
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("name", MODULES)
def test_module_is_traced_and_exported_to_onnx(name):
    """Both for other batches, as originals are; by the older exporter, which builds on the trace."""
    case = MODULES[name]
    module, x, more = randomise(built(name)).eval(), torch.randn(case.shape), case.more
    longer = torch.cat([x, x.flip(0), -x])
    with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()):
        whole = module if not more else Called(module, *more).eval()
        traced = torch.jit.trace(whole, x, check_trace=False)
        agree([traced(x), traced(longer)], [whole(x), whole(longer)])
        onnxruntime = pytest.importorskip("onnxruntime", reason="it runs the file")
        file = io.BytesIO()
        axes = dict(input_names=["x"], dynamic_axes={"x": {0: "batch"}}) if not case.one_batch else {}
        torch.onnx.export(whole, (x,), file, dynamo=False, **axes)
        session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
        for images in (x, longer) if axes else (x,):
            (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
            agree([torch.from_numpy(found)], [whole(images)])


class Called(torch.nn.Module):
    """A module with further arguments."""

    def __init__(self, module, *more):
        super().__init__()
        self.module, self.more = module, more

    def forward(self, x):
        return self.module(x, *self.more)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_images_in_channels_last(name):
    small = dict(
        vit_tiny_patch16_224=dict(depth=1, embed_dim=32, num_heads=2, img_size=16, patch_size=4),
        swin_tiny_patch4_window7_224=dict(depths=(2,), embed_dim=32, num_heads=(2,), img_size=16, window_size=4),
    )
    model = randomise(vitkern.create_model(name, num_classes=3, **small[name]))
    images = torch.randn(2, 3, 16, 16)
    expected = results(model, images)
    other = copy.deepcopy(model).to(memory_format=torch.channels_last)
    agree(results(other, images.to(memory_format=torch.channels_last)), expected)
    embed = randomise(vnn.PatchEmbed(16, 4, 3, 8))
    agree(results(embed, images.to(memory_format=torch.channels_last)), results(embed, images))


def test_an_accelerated_model_is_copied_pickled_and_stored():
    timm = pytest.importorskip("timm", reason="the model is timm's")
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", depths=(2,), embed_dim=32, num_heads=(2,), img_size=16, window_size=4
    )
    keys = {key: value.clone() for key, value in randomise(model).state_dict().items()}
    vitkern.accelerate(model)
    assert list(model.state_dict()) == list(keys)
    assert all(torch.equal(value, keys[key]) for key, value in model.state_dict().items())
    images = torch.randn(2, 3, 16, 16)
    expected = results(model, images)
    agree(results(model.to(memory_format=torch.channels_last), images), expected)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        for one, reference in zip(results(other, images), expected, strict=True):
            torch.testing.assert_close(one, reference)


def good_calls():
    t = torch.randn
    return {
        "attention": (vitkern.attention, dict(q=t(2, 4, 5, 8), k=t(2, 2, 6, 8), v=t(2, 2, 6, 8), bias=t(1, 4, 5, 6),
            mask=torch.ones(5, 6, dtype=torch.bool), key_padding_mask=torch.ones(2, 6, dtype=torch.bool), scale=0.3,
            dropout_p=0.1, causal=True, softcap=5.0, sinks=t(4), return_lse=False)),
        "attention_qkvpacked": (vitkern.attention_qkvpacked, dict(qkv=t(2, 5, 3, 2, 8), bias=t(2, 5, 5),
            mask=t(1, 1, 5, 5), key_padding_mask=torch.ones(2, 5, dtype=torch.bool), scale=0.3, dropout_p=0.0,
            softcap=5.0, sinks=t(2))),
        "window_attention": (vitkern.window_attention, dict(qkv=t(2, 5, 6, 48), num_heads=2, window=(4, 3),
            shift=(1, 2), table=t(35, 2), padding=t(48), wrap="image", mask_value=-100.0, logit_scale=t(2, 1, 1))),
        "projected_window_attention": (vitkern.projected_window_attention, dict(x=t(2, 5, 6, 16),
            project=lambda x: torch.cat([x, x, x], -1), num_heads=2, window=(4, 3), shift=(1, 2), table=t(35, 2),
            wrap="padded", mask_value=None, scale=0.2, dropout_p=0.0)),
        "layernorm": (vitkern.layernorm, dict(x=t(2, 5, 8), weight=t(8), bias=t(8), eps=1e-6, residual=t(2, 5, 8))),
        "layernorm_mlp": (vitkern.layernorm_mlp, dict(x=t(2, 5, 8), norm_weight=t(8), norm_bias=t(8),
            fc1_weight=t(16, 8), fc1_bias=t(16), fc2_weight=t(8, 16), fc2_bias=t(8), eps=1e-6, act="gelu",
            layer_scale=t(8), row_scale=t(2),
            post_norm=False)),
        "local_attention": (local_attention, dict(qkv=t(1, 8, 8, 48), num_heads=2, block=(4, 4), halo=(1, 1),
            border="keep", dilation=(1, 1), table=t(2, 11, 11), rel_h=t(1, 8, 8, 2, 6), rel_w=t(1, 8, 8, 2, 6),
            padding=None, neighbor=None, scale=0.3, return_lse=False)),
        "neighborhood_attention": (neighborhood_attention, dict(qkv=t(1, 5, 8, 48), num_heads=2, kernel=(3, 3),
            dilation=(2, 2), table=t(2, 5, 5), padding=t(48), scale=0.3)),
        "halo_attention_qkvpacked": (halo_attention_qkvpacked, dict(qkv=t(1, 8, 8, 48), height_rel=t(11, 8),
            width_rel=t(11, 8), num_heads=2, block=4, halo=1, scale=0.3, rel_scale=1.0)),
        "halo_attention": (halo_attention, dict(q=t(1, 4, 4, 2, 8), k=t(1, 8, 8, 2, 8), v=t(1, 8, 8, 2, 4),
            height_rel=t(11, 8), width_rel=t(11, 8), block=4, halo=1, scale=0.3, rel_scale=1.0)),
        "standalone_attention": (standalone_attention, dict(qkv=t(1, 8, 8, 48), rel_h=t(2, 3, 4), rel_w=t(2, 5, 4),
            num_heads=2, kernel=(3, 5), scale=1.0)),
        "decomposed_attention": (decomposed_attention, dict(qkv=t(1, 7, 8, 48), rel_pos_h=t(7, 8), rel_pos_w=t(7, 8),
            num_heads=2, window=(4, 4), padding=t(48), scale=0.3)),
    }  # fmt: skip


ODD_VALUES = (
    None, True, 0, -1, 7, 10**9, 0.5, -0.5, 1.5, math.nan, math.inf, -math.inf, 1j, "", "gelu ", "image", (), (1,),
    (0, 0), (4, -3), (4, 3, 2), (2.0, 2.0), ("4", "3"), [4, 3], [[4, 3]], {}, {"window": 4}, ..., len, b"bytes",
    range(2),
)  # fmt: skip


def spoiled_tensor(tensor, rng):
    """The tensor with another shape, dtype, kind or demand for a gradient."""
    shape = list(tensor.shape)
    axis = rng.randrange(len(shape))
    kind = rng.randrange(10)
    if kind == 0:
        shape[axis] += rng.choice((-1, 1, 2))
    elif kind == 1:
        shape[axis] = 0
    elif kind == 2:
        shape.insert(axis, rng.choice((1, 2)))
    elif kind == 3:
        del shape[axis]
    elif kind == 4:
        return tensor.to(rng.choice((torch.int64, torch.int8, torch.bool, torch.complex64)))
    elif kind == 5:
        return tensor.to(rng.choice((torch.float16, torch.float64)))
    elif kind == 6:
        return tensor.to("meta")
    elif kind == 7:
        return tensor.to_sparse() if rng.random() < 0.5 else torch.nested.nested_tensor([tensor.float()])
    elif kind == 8:
        return rng.choice((tensor.tolist(), tensor.numpy(), torch.Size(shape)))
    else:
        return tensor.clone().requires_grad_() if tensor.is_floating_point() else tensor
    return torch.zeros([max(0, size) for size in shape], dtype=tensor.dtype)


# got and expected, in this order, after the name of an operator
CONTRACT = re.compile(r"^(\w+): .+: got .+; expected .+", re.S)


@pytest.mark.walk(3)
def test_bad_arguments_meet_the_checks():
    """500 calls of each with one or two arguments spoiled. A call that is still right may succeed; any other raises a
    TypeError, ValueError or NotImplementedError in the words of the contract."""
    rng, calls = random.Random(5), good_calls()
    for function, arguments in calls.values():
        function(**arguments)
    raised, passed, names = 0, 0, set(calls)
    for trial, name in enumerate(500 * list(calls)):
        function, arguments = calls[name]
        arguments = dict(arguments)
        for key in rng.sample(list(arguments), rng.choice((1, 1, 2))):
            value = arguments[key]
            spoil = isinstance(value, torch.Tensor) and rng.random() < 0.7
            arguments[key] = spoiled_tensor(value, rng) if spoil else rng.choice(ODD_VALUES)
        what = f"trial {trial}: {name}({', '.join(f'{k}={describe(v)}' for k, v in arguments.items())})"
        try:
            function(**arguments)
        except (TypeError, ValueError, NotImplementedError) as error:
            found = CONTRACT.match(str(error))
            assert found and found[1] in names, f"{what}\n{type(error).__name__}: {error}"
            raised += 1
        except Exception as error:
            pytest.fail(f"{what}\n{type(error).__name__}: {error}")
        else:
            passed += 1
    assert raised >= 400 * len(calls) and passed >= 100, (raised, passed)


def describe(value):
    if isinstance(value, torch.Tensor):
        return f"{value.layout} {value.dtype} {'nested' if value.is_nested else tuple(value.shape)}"
    return repr(value)[:60]
