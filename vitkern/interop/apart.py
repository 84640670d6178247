"""What is known to keep the images of a batch apart: what a module makes of one depends on none beside it."""

import functools
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vitkern.interop.adapter import Adapter, path_of
from vitkern.interop.around import within
from vitkern.ops.bypass import _is_genuine, _run_by, pristine

MOST = 0.5  # of the parameters: around less the joins cost what is won

_TORCH = """activation batchnorm channelshuffle container conv dropout flatten fold instancenorm linear normalization
padding pixelshuffle pooling sparse transformer upsampling"""
_MOVING = ("cuda", "float", "half", "to")  # which transformers wraps, and no forward calls of a module
# Of models that keep something of a call, or draw random numbers in evaluation, none is here.
_TRANSFORMERS = """beit bit clip convnext convnextv2 cvt data2vec deit dinov2 dinov2_with_registers dinov3_vit
donut.modeling_donut_swin dpt efficientnet focalnet glpn hiera ijepa levit maskformer.modeling_maskformer_swin
mobilenet_v1 mobilenet_v2 mobilevit mobilevitv2 poolformer pvt pvt_v2 regnet resnet sam segformer siglip siglip2 swin
swinv2 vit vit_msn vitdet vitpose_backbone yolos"""
# Modules of Python whose classes all do, but for those below.
_PACKAGES = (
    *(f"torch.nn.modules.{name}" for name in _TORCH.split()),
    *(f"transformers.models.{name}" for name in _TRANSFORMERS.split()),
    "timm.layers",
    "timm.models",
    "torchvision.models",
    "torchvision.ops.misc",
    "torchvision.ops.stochastic_depth",
    "transformers.activations",
    "vitkern.models",
    "vitkern.nn",
)
_NOT = {  # packages and classes
    "timm.layers.conv2d_same.Conv2dSameExport": "it keeps the size of what it padded last",
    "timm.layers.split_batchnorm": "it normalises parts of the batch in different ways",
    "torch.nn.modules.sparse.EmbeddingBag": "its offsets count from the first row of the batch",
    "torchvision.models.detection": "it pads images to the largest of the batch",
    "torchvision.models.quantization": "quantised operators have threads of their own",
    "transformers.models.clip.modeling_clip.CLIPModel": "it compares each image with each text",
    "transformers.models.siglip.modeling_siglip.SiglipModel": "it compares each image with each text",
    "transformers.models.siglip2.modeling_siglip2.Siglip2Model": "it compares each image with each text",
    "vitkern.nn.strec": "its rows are users",
}


class Apart:
    """Whether images are known to be kept apart in ``model``, asked at each call. Its modules, their classes and the
    functions on instances are as they were (`vitkern.interop.census.Census.stands`)."""

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._reason = next(filter(None, map(why_not, modules)), None)
        kinds = {_library_class(type(module)) for module in modules}
        self._pristine = [kind for kind in kinds if pristine(kind)]
        self._others = [(kind, *found) for kind in kinds if not pristine(kind) for found in _run_by(kind)]
        self._norms = [module for module in modules if isinstance(module, _BatchNorm)]

    def why_not(self) -> str | None:
        """Why they are not, now."""
        if self._reason is not None:
            return self._reason
        patched = next((kind for kind in self._pristine if not pristine(kind)), None)
        changed = (kind for kind, base, name, found in self._others if vars(base).get(name) is not found)
        patched = patched or next(changed, None)
        if patched is not None:
            return _is_patched(patched)
        return next(filter(None, map(_normalises, self._norms)), None)


def why_not(module: nn.Module) -> str | None:
    """Why ``module`` itself, its children aside, is not known to keep images apart."""
    kind = _library_class(type(module))
    reason = _unknown(path_of(kind))
    if reason is not None:
        return reason
    if not pristine(kind) and not all(_is_genuine(*found) for found in _run_by(kind) if found[1] not in _MOVING):
        return _is_patched(kind)
    if "forward" in vars(module):
        return f"the forward of a {path_of(kind)} is overridden on the instance"
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return f"a {path_of(kind)} with max_norm writes into its weight"
    return _normalises(module) if isinstance(module, _BatchNorm) else None


def _library_class(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of a module before vitkern exchanged it."""
    kind = within(kind)
    return kind.adapted if issubclass(kind, Adapter) and kind.__module__.startswith("vitkern.") else kind


def _is_patched(kind: type[nn.Module]) -> str:
    return f"{path_of(kind)} is patched, or decorated by somebody"


def _normalises(norm: _BatchNorm) -> str | None:
    if norm.running_mean is not None:
        return None
    return f"a {path_of(_library_class(type(norm)))} without running statistics normalises by those of the batch"


@functools.cache
def _unknown(path: str) -> str | None:
    reason = next((reason for start, reason in _NOT.items() if _is_in(path, start)), None)
    if reason is not None:
        return f"{path}: {reason}"
    known = any(_is_in(path, start) for start in _PACKAGES)
    return None if known else f"{path} is not known to keep images apart"


def _is_in(path: str, start: str) -> bool:
    return path == start or path.startswith(start + ".")


def largest(model: nn.Module) -> tuple[str, nn.Module] | str:
    """(name, module) of the largest module in ``model``, itself or a part with most of its parameters, in which images
    do not meet; or why there is none."""
    modules = list(model.named_modules(remove_duplicate=False))
    reasons = {name: reason for name, module in modules if (reason := why_not(module)) is not None}
    if not reasons:
        return "", model
    barred = {above for name in reasons for above in _upwards(name)}
    free = [(name, m) for name, m in modules if name not in barred and name.rpartition(".")[0] in barred]
    name, best = max(free, key=lambda found: _size(found[1]), default=("", None))
    first = next(iter(reasons))
    reason = f"{reasons[first]}{f' ({first})' if first else ''}"
    if best is None or _size(best) <= MOST * _size(model):
        return f"{reason}, and no part without it has most of the parameters"
    if isinstance(best, (nn.ModuleList, nn.ModuleDict)):
        return f"{reason}, and {name}, which has most of the parameters, is called in pieces"
    return name, best


def _upwards(name: str) -> Iterator[str]:
    """``name``, and those of all modules around it."""
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
