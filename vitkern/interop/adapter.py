"""What every adapter is, and the table of those there are."""

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

from torch import nn

from vitkern import dispatch
from vitkern.interop.descriptions import DESCRIPTIONS, exemplar_of
from vitkern.ops.bypass import pristine, watched

# Class of the library -> adapter here. Read by name, so that a library is imported only once a model uses it.
ADAPTERS = DESCRIPTIONS | {
    "timm.layers.attention.Attention": "timm.Attention",
    "timm.models.vision_transformer.Block": "timm.Block",
    "timm.models.swin_transformer.WindowAttention": "timm_swin.WindowAttention",
    "timm.models.swin_transformer.SwinTransformerBlock": "timm_swin.SwinTransformerBlock",
    "timm.models.swin_transformer_v2.SwinTransformerV2Block": "timm_swin.SwinTransformerV2Block",
    "timm.models.twins.LocallyGroupedAttn": "timm_windows.LocallyGroupedAttn",
    "timm.models.davit.SpatialBlock": "timm_windows.SpatialBlock",
    "timm.models.davit.ChannelAttention": "timm_channels.ChannelAttention",
    "timm.models.davit.ChannelAttentionV2": "timm_channels.ChannelAttentionV2",
    "timm.models.edgenext.CrossCovarianceAttn": "timm_channels.CrossCovarianceAttn",
    "timm.models.xcit.XCA": "timm_channels.XCA",
    "timm.models.cait.LayerScaleBlock": "timm_blocks.LayerScaleBlock",
    "timm.models.convit.Block": "timm_convit.Block",
    "timm.models.convit.GPSA": "timm_convit.GPSA",
    "timm.models.convit.MHSA": "timm_convit.MHSA",
    "timm.models.davit.ChannelBlock": "timm_blocks.ChannelBlock",
    "timm.models.mlp_mixer.MixerBlock": "timm_blocks.MixerBlock",
    "timm.models.twins.Block": "timm_reduced.Block",
    "timm.models.xcit.XCABlock": "timm_blocks.XCABlock",
    "timm.models.pvt_v2.Attention": "timm_reduced.Attention",
    "timm.models.twins.GlobalSubSampleAttn": "timm_reduced.GlobalSubSampleAttn",
    "timm.models.mobilevit.LinearSelfAttention": "timm_mobilevit.LinearSelfAttention",
    "timm.models.cait.ClassAttn": "timm_cait.ClassAttn",
    "timm.models.cait.TalkingHeadAttn": "timm_cait.TalkingHeadAttn",
    "timm.models.maxxvit.PartitionAttentionCl": "timm_windows.PartitionAttentionCl",
    "timm.models.vision_transformer_sam.Block": "timm_sam.Block",
    "timm.layers.halo_attn.HaloAttn": "timm_halo.HaloAttn",
    "timm.models.beit.Attention": "timm_biased.BeitAttention",
    "timm.models.maxxvit.Attention2d": "timm_biased.Attention2d",
    "timm.models.maxxvit.AttentionCl": "timm_biased.AttentionCl",
    "timm.models.tiny_vit.Attention": "timm_biased.TinyAttention",
    "timm.models.vision_transformer_relpos.RelPosAttention": "timm_biased.RelPosAttention",
    "timm.layers.attention2d.Attention2d": "timm_dense.Attention2d",
    "timm.layers.attention2d.MultiQueryAttention2d": "timm_dense.MultiQueryAttention2d",
    "timm.layers.diff_attention.DiffAttention": "timm_dense.DiffAttention",
    "timm.models.cpubone.ConvAttention": "timm_dense.BoneAttention",
    "timm.models.fastvit.Attention": "timm_dense.FastAttention",
    "timm.models.hiera.MaskUnitAttention": "timm_dense.MaskUnitAttention",
    "timm.models.hieradet_sam2.MultiScaleAttention": "timm_dense.MultiScaleAttention",
    "timm.models.iformer.SHMA": "timm_dense.SHMA",
    "timm.models.lowformer.ConvAttention": "timm_dense.LowAttention",
    "timm.models.metaformer.Attention": "timm_dense.MetaAttention",
    "timm.models.nest.Attention": "timm_dense.NestAttention",
    "timm.models.nextvit.EfficientAttention": "timm_dense.EfficientAttention",
    "timm.models.vision_transformer.DiffParallelScalingBlock": "timm_dense.DiffParallelScalingBlock",
    "timm.models.vision_transformer.ParallelScalingBlock": "timm_dense.ParallelScalingBlock",
    "timm.models.volo.Attention": "timm_dense.VoloAttention",
    "timm.layers.attention_pool.AttentionPoolLatent": "timm_pooling.AttentionPoolLatent",
    "timm.layers.attention_pool.AttentionPoolPrr": "timm_pooling.AttentionPoolPrr",
    "timm.layers.attention_pool2d.AttentionPool2d": "timm_pooling.AttentionPool2d",
    "timm.layers.attention_pool2d.RotAttentionPool2d": "timm_pooling.RotAttentionPool2d",
    "timm.layers.other_pool.SimPool1d": "timm_pooling.SimPool1d",
    "timm.layers.other_pool.SimPool2d": "timm_pooling.SimPool2d",
    "timm.layers.attention.AttentionRope": "timm_rope.AttentionRope",
    "timm.models.eva.EvaBlock": "timm_eva.EvaBlock",
    "timm.models.eva.EvaBlockPostNorm": "timm_eva.EvaBlockPostNorm",
    "timm.models.eva.EvaAttention": "timm_rope.EvaAttention",
    "timm.models.gemma4_vit.Gemma4Attention": "timm_rope.Gemma4Attention",
    "timm.models.crossvit.CrossAttention": "timm_products.CrossAttention",
    "timm.models.shvit.SHSA": "timm_products.SHSA",
    "timm.models.tnt.Attention": "timm_products.TntAttention",
    "timm.models.visformer.Attention": "timm_products.VisAttention",
    "timm.models.volo.ClassAttention": "timm_products.ClassAttention",
    "timm.models.efficientvit_msra.CascadedGroupAttention": "timm_products_biased.CascadedGroupAttention",
    "timm.models.efficientformer.Attention": "timm_products_biased.FormerAttention",
    "timm.models.efficientformer_v2.Attention2dDownsample": "timm_products_biased.Attention2dDownsample",
    "timm.models.gcvit.WindowAttentionGlobal": "timm_products_biased.WindowAttentionGlobal",
    "timm.models.levit.Attention": "timm_products_biased.LevitAttention",
    "timm.models.levit.AttentionDownsample": "timm_products_biased.AttentionDownsample",
    "timm.models.swin_transformer_v2_cr.WindowMultiHeadAttention": "timm_products_biased.WindowMultiHeadAttention",
    "timm.layers.bottleneck_attn.BottleneckAttn": "timm_queried.BottleneckAttn",
    "timm.models.mvitv2.MultiScaleAttention": "timm_queried.MultiScaleAttention",
    "torchvision.models.vision_transformer.EncoderBlock": "torchvision.EncoderBlock",
    "torchvision.models.swin_transformer.ShiftedWindowAttention": "torchvision_swin.ShiftedWindowAttention",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": "torchvision_swin.ShiftedWindowAttentionV2",
    "torchvision.models.swin_transformer.SwinTransformerBlock": "torchvision_swin.SwinTransformerBlock",
    "torchvision.models.swin_transformer.SwinTransformerBlockV2": "torchvision_swin.SwinTransformerBlockV2",
}

WAITS = "the original runs where no kernel does"  # the reason of a `Fit` that needs a kernel


class Fit(NamedTuple):
    """What an adapter would do for one module: the ops that would run, why others would not, and whether the original
    runs where no kernel does."""

    ops: tuple[str, ...]
    reasons: tuple[str, ...] = ()
    needs_kernel: bool = False


if TYPE_CHECKING:
    _Adapted = nn.Module  # what every class is that an adapter is mixed into
else:
    _Adapted = object


class Adapter(_Adapted):
    """Mixed in before the class it adapts, of which it overrides ``forward`` and nothing that holds state.

    ``module.__class__ = ItsAdapter`` is the whole swap: parameters, buffers, hooks and state-dict keys stay.
    ``forward`` asks at each call whether what it would bypass is still plain, and leaves the work to the class it
    adapts where it is not. It is entered only while that class is as its library made it, nothing watches all modules
    or functions, and calls are not recorded (`vitkern.dispatch.is_recorded`): the graph is then the original's. The
    name stays that of the original, since wrapping policies find layers by it; ``print(model)`` shows it with Vitkern
    in front.

    One that derives from no library's class is a description: it serves the class it was written for and all copies of
    it (`vitkern.interop.descriptions`), each as the base of an adapter that `adapter_of` makes.
    """

    covers: ClassVar[tuple[str, ...]] = ()  # names of children whose work an adapter takes over
    within: ClassVar[bool] = False  # it does the attention of the module around it
    adapted: ClassVar[type[nn.Module]]  # the library's class

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.adapted = cls.__mro__[cls.__mro__.index(Adapter) + 1]
        if cls.adapted is not object:
            cls.__name__ = cls.adapted.__name__  # of several classes in one file; by __qualname__ it is pickled
        if "forward" in vars(cls):
            cls.forward = _where_open(cls, cls.forward)

    @classmethod
    def fit(cls, module: nn.Module) -> Fit:
        """Look at a module of the adapted class before it is swapped."""
        raise NotImplementedError

    def __prepare_scriptable__(self) -> NoReturn:
        """torch.jit.script reads the source of each forward, and would have to change the model to find another."""
        raise NotImplementedError(
            f"torch.jit.script: the model is accelerated: got {self._get_name()}; expected modules whose source "
            "TorchScript can read. Call report.restore() first, or use torch.jit.trace."
        )

    def __reduce_ex__(self, protocol: Any) -> Any:
        """One that was made of a description is found by the class that it adapts, and made again."""
        reduced = super().__reduce_ex__(protocol)
        kind = type(self)
        if not isinstance(reduced, tuple) or kind is not _made.get(kind.adapted):
            return reduced
        return (_again, (kind.adapted,), *reduced[2:])

    def _get_name(self) -> str:
        return f"Vitkern{super()._get_name()}"


def _where_open(cls: type[Adapter], forward: Callable[..., Any]) -> Callable[..., Any]:
    """``forward``, which ``cls`` defines, where a module may be bypassed at all; else that of the adapted class."""

    @functools.wraps(forward)
    def open_forward(self: Adapter, *args: Any, **keywords: Any) -> Any:
        recorded = dispatch.is_recorded(*args, *keywords.values()) and not dispatch.is_forced()
        if recorded or watched() or not pristine(self.adapted):
            return super(cls, self).forward(*args, **keywords)
        return forward(self, *args, **keywords)

    return open_forward


def path_of(kind: type) -> str:
    """Importable name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


_made: dict[type, type[Adapter]] = {}  # class of a library: the adapter that a description became for it


@functools.cache
def adapter_of(kind: type) -> type[Adapter] | None:
    """The adapter for exactly this class, imported or made of a description now; None where there is none.

    Raises:
        ImportError: there is one, but the installed version of the library has no place for it.
    """
    path = path_of(kind)
    target = ADAPTERS.get(path if path in ADAPTERS else exemplar_of(kind) or "")
    if target is None:
        return None
    module, name = target.split(".")
    found: type[Adapter] = getattr(importlib.import_module(f"vitkern.interop.{module}"), name)
    if found.adapted is not object:
        return found
    names = {"__module__": found.__module__, "__qualname__": kind.__qualname__, "__doc__": found.__doc__}
    _made[kind] = type(kind.__name__, (found, kind), names)
    return _made[kind]


def _again(kind: type) -> nn.Module:
    """A bare module of the adapter for ``kind``, or of ``kind`` where there is none any more."""
    return nn.Module.__new__(adapter_of(kind) or kind)


def known_base(kind: type) -> str | None:
    """The adapted class that ``kind`` derives from, if it is a subclass of one and has no adapter itself."""
    if _is_known(kind):
        return None
    return next((path_of(base) for base in kind.__mro__[1:] if _is_known(base)), None)


def _is_known(kind: type) -> bool:
    return path_of(kind) in ADAPTERS or exemplar_of(kind) is not None
