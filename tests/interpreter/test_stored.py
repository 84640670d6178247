"""Attention of several families on the kernels, in the interpreter, against the results of other implementations: a few
of each kind, and gradients of the smallest. In PyTorch all of them are compared, and kernels of local attention with
PyTorch in `test_local_attention`.
"""

import sys
from functools import partial
from pathlib import Path

import pytest
from timm.models.davit import ChannelBlock, SpatialBlock
from timm.models.twins import LocallyGroupedAttn
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import stored

import vitkern
from vitkern.models.hierarchical.nat import Block
from vitkern.nn import (
    ChannelAttention,
    ClassAttention,
    ConvolutionalAttention,
    GatedPositionalAttention,
    HaloAttention,
    NeighborhoodAttention,
    SeparableSelfAttention,
    SpatialReductionAttention,
    TalkingHeadsAttention,
    ViLAttention,
)

pytestmark = pytest.mark.interpreter
GATED = "convit_gpsa_d16_h4_n16", "convit_gpsa_d32_h4_n49_qkvbias", "convit_gpsa_localinit"
MODES = {1: "exact", 0: "zero", -1: "cyclic"}


def neighborhood(config):
    names = "dim", "num_heads", "kernel_size", "dilation"
    return NeighborhoodAttention(**{name: config[name] for name in names}), ()


def chunks(config):
    options = dict(mode=MODES[config["exact"]], share_weights=config["sharew"], num_global=config["nglo"])
    return ViLAttention(config["dim"], config["num_heads"], config["w"], **options), ((config["nx"], config["ny"]),)


def twins(config):
    return LocallyGroupedAttn(config["dim"], config["num_heads"], ws=config["ws"]), ((config["H"], config["W"]),)


def davit(config):
    names = "dim", "num_heads", "window_size", "mlp_ratio", "qkv_bias"
    return SpatialBlock(**{name: config[name] for name in names}), ()


def channels(config):
    later = dict(value="v", dynamic_scale=True) if config.get("dynamic_scale") else {}
    return ChannelAttention(config["dim"], config["num_heads"], qkv_bias=config["qkv_bias"], **later), ()


def channel_block(config):
    block = ChannelBlock(**config)
    block.attn = channels(config)[0]
    return block, ()


def separable(config):
    return SeparableSelfAttention(config["embed_dim"]), ()


def reduced(config):
    module = SpatialReductionAttention(config["dim"], config["num_heads"], config["sr_ratio"])
    return module, ((config["H"], config["W"]),)


def convolutional(config):
    module = ConvolutionalAttention(config["dim_in"], config["num_heads"], stride_kv=config["stride_kv"])
    return module, ((config["h"], config["w"]),)


def talking(config):
    return TalkingHeadsAttention(config["dim"], config["num_heads"], qkv_bias=config["qkv_bias"]), ()


def of_class(config):
    module = ClassAttention(config["dim"], config["num_heads"], qkv_bias=config["qkv_bias"])
    module.k.register_forward_hook(lambda *_: None)  # otherwise it is absorbed, and no kernel runs
    return module, ()


def gated(config):
    return GatedPositionalAttention(config["dim"], config["num_heads"], qkv_bias=config["qkv_bias"]), ()


CASES = {
    "nat_attn_k3_d1_5x9": neighborhood,
    "nat_attn_k5_d1_4x3": neighborhood,
    "nat_layer_k3_d2_9x7_layerscale": lambda config: (Block(**config), ()),
    "halo_attention_b4h1": lambda config: (HaloAttention(**config), ()),
    "vil_attn_exact_g1_own_rpb_4x5_w3": chunks,
    "vil_attn_zero_g1_share_rpb_3x2_w3": chunks,
    "vil_attn_cyclic_g1_own_rpb_4x5_w3": chunks,
    "twins_lsa": twins,
    "davit_window_block": davit,
    "cait_class_attention": of_class,
    "cait_talking_heads": talking,
    "davit_channel_attention": channels,
    "davit_channel_attention_fl": channels,
    "davit_channel_block": channel_block,
    "mobilevitv3_v2_linear_attention": separable,
    "mobilevitv3_v2_linear_cross_attention": separable,
    "twins_gsa": reduced,
    "cvt_attention_cls_s2": convolutional,
    **dict.fromkeys(GATED, gated),
}

CHANNELS = "davit_channel_attention", "davit_channel_attention_fl", "davit_channel_block"
GRADED = (
    *CHANNELS,
    "cait_class_attention",
    "cait_talking_heads",
    *GATED,
    "nat_attn_k5_d1_4x3",
    "vil_attn_exact_g1_own_rpb_4x5_w3",
    "vil_attn_zero_g1_share_rpb_3x2_w3",
    "twins_lsa",
    "mobilevitv3_v2_linear_attention",
    "mobilevitv3_v2_linear_cross_attention",
    "twins_gsa",
    "cvt_attention_cls_s2",
)
INPUTS = {"mobilevitv3_v2_linear_cross_attention": ("x", "x_prev")}


@pytest.mark.parametrize("name", CASES)
def test_stored_results(name):
    config, tensors = stored.read(stored.FOLDER / f"{name}.safetensors")
    del config["input"]
    module, arguments = CASES[name](config)
    module.eval()
    if not type(module).__module__.startswith("vitkern") and name not in CHANNELS:
        assert len(vitkern.accelerate(module)) > 0

    with vitkern.use_backend("interpreter"):  # an op that could not run there would raise
        stored.assert_stored(
            module, tensors, lambda *x: module(*x, *arguments), graded=name in GRADED, inputs=INPUTS.get(name, ("x",))
        )


def test_stored_samples():
    """A function of three tensors, without a module."""
    config, tensors = stored.read(stored.FOLDER / "deformable_attention_core.safetensors")

    def call(value, locations, weights):
        return vitkern.deformable_attention(value, config["spatial_shapes"], locations, weights)

    with vitkern.use_backend("interpreter"):
        names = "value", "sampling_locations", "attention_weights"
        stored.assert_stored(nn.Module(), tensors, call, inputs=names)


@pytest.mark.parametrize("name", ["allpruned", "normal", "ones"])
def test_stored_policies(name):
    config, tensors = stored.read(stored.FOLDER / f"dynamicvit_policy_softmax_{name}.safetensors")
    with vitkern.use_backend("interpreter"):
        call = partial(stored.policy_softmax, eps=config["eps"])
        stored.assert_stored(nn.Module(), tensors, call, inputs=("attn", "policy"))
