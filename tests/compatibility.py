"""What people do with a model, as functions that a model goes through twice: as it is, and accelerated.

A *library* is a pair of small random models, a ViT and a Swin whose windows are padded and shifted. A *tool* takes the
pair, images, and `accelerate`, which it calls where its users would; for the original that does nothing. What it
returns is compared.
"""

import contextlib
import copy
import functools
import io
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import peft
import torch
import torch.nn.functional as F
from peft.tuners.tuners_utils import BaseTunerLayer
from swapping import randomise
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import prune
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

SIZE, PATCH, WINDOW, CLASSES = 24, 4, 4, 5  # 6 x 6 tokens: windows of 4 x 4 are padded

Accelerate = Callable[[nn.Module], object]
Tool = Callable[[nn.Module, Tensor, Accelerate], list]


class Pair(nn.Module):
    """Logits of two models side by side."""

    library: str

    def __init__(self, vit: nn.Module, swin: nn.Module) -> None:
        super().__init__()
        self.vit, self.swin = vit, swin

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.vit(x), self.swin(x)], 1)


class TransformersPair(Pair):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.vit(x).logits, self.swin(x).logits], 1)


def timm_pair() -> Pair:
    import timm

    small = dict(img_size=SIZE, embed_dim=32, num_classes=CLASSES)
    vit = timm.create_model("vit_tiny_patch16_224", patch_size=PATCH, depth=1, num_heads=2, **small)
    swin = timm.create_model("swin_tiny_patch4_window7_224", window_size=WINDOW, depths=(2,), num_heads=(2,), **small)
    return Pair(vit, swin)


def torchvision_pair() -> Pair:
    from torchvision.models import SwinTransformer, VisionTransformer

    vit = VisionTransformer(SIZE, PATCH, 1, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=CLASSES)
    swin = SwinTransformer(
        [PATCH] * 2, 32, [2], [2], window_size=[WINDOW] * 2, stochastic_depth_prob=0.0, num_classes=CLASSES
    )
    return Pair(vit, swin)


def transformers_pair() -> Pair:
    from transformers import SwinConfig, SwinForImageClassification, ViTConfig, ViTForImageClassification

    small = dict(image_size=SIZE, patch_size=PATCH, num_labels=CLASSES, drop_path_rate=0.0)
    vit = ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, **small)
    swin = SwinConfig(embed_dim=32, depths=[2], num_heads=[2], window_size=WINDOW, **small)
    return TransformersPair(ViTForImageClassification(vit), SwinForImageClassification(swin))


LIBRARIES = {"timm": timm_pair, "torchvision": torchvision_pair, "transformers": transformers_pair}
TOOLS: dict[str, Tool] = {}
COSTLY: set[str] = set()  # the original is called, and not put through these
PROGRAMS: dict[str, torch.export.ExportedProgram] = {}  # of a library, as exporting takes seconds


def build(library: str) -> Pair:
    torch.manual_seed(0)
    pair = randomise(LIBRARIES[library]().eval())
    pair.library = library
    return pair


def tool(name: str, costly: bool = False) -> Callable[[Tool], Tool]:
    def add(function: Tool) -> Tool:
        TOOLS[name] = function
        if costly:
            COSTLY.add(name)
        return function

    return add


def outcome(model: nn.Module, images: Tensor) -> list:
    """Logits without gradients, and the gradients of all that wants one."""
    with torch.no_grad():
        plain = model(images)
    images = images.clone().requires_grad_()
    wanting = [p for p in model.parameters() if p.requires_grad]
    out = model(images)
    weight = torch.linspace(-1, 1, out.numel()).view(out.shape)
    return [plain, *torch.autograd.grad(out, [images, *wanting], weight, allow_unused=True)]


def linears(model: nn.Module) -> list[str]:
    """All but the heads."""
    return [name for name, m in model.named_modules() if type(m) is nn.Linear and m.out_features != CLASSES]


# adapters of linears

METHODS = {
    "LoRA": functools.partial(peft.LoraConfig, r=2),
    "DoRA": functools.partial(peft.LoraConfig, r=2, use_dora=True),
    "OFT": functools.partial(peft.OFTConfig, oft_block_size=4, r=0),
    "BOFT": functools.partial(peft.BOFTConfig, boft_block_size=4),
    "GraLoRA": functools.partial(peft.GraloraConfig, r=4),
    "LoHa": functools.partial(peft.LoHaConfig, r=2),
    "LoKr": functools.partial(peft.LoKrConfig, r=2),
    "HRA": functools.partial(peft.HRAConfig, r=2),
    "VeRA": functools.partial(peft.VeraConfig, r=2),
    "IA3": functools.partial(peft.IA3Config, feedforward_modules=[]),
    "FourierFT": functools.partial(peft.FourierFTConfig, n_frequency=16),
}


def adapted(model: nn.Module, method: str) -> nn.Module:
    """The adapters' parameters are random: as they begin, they change nothing."""
    found = peft.get_peft_model(model, METHODS[method](target_modules=linears(model))).eval()
    assert any(isinstance(m, BaseTunerLayer) for m in found.modules())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return found


def _peft(method: str) -> None:
    @tool(f"PEFT: {method}")
    def before(model, images, accelerate):
        found = adapted(model, method)
        accelerate(found)
        return outcome(found, images)

    @tool(f"PEFT: {method}, on the accelerated")
    def after(model, images, accelerate):
        accelerate(model)
        return outcome(adapted(model, method), images)


for _method in METHODS:
    _peft(_method)


@tool("PEFT: LoRA, merged")
def merged(model, images, accelerate):
    found = adapted(model, "LoRA")
    accelerate(found)
    return outcome(found.merge_and_unload(), images)


# quantised weights


@tool("dynamic int8")
def dynamic_int8(model, images, accelerate):
    found = torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)
    accelerate(found)
    with torch.no_grad():
        return [found(images)]


@tool("dynamic int8, on the accelerated")
def dynamic_int8_after(model, images, accelerate):
    accelerate(model)
    with torch.no_grad():
        return [torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, torch.qint8)(images)]


@tool("torchao int8")
def torchao_int8(model, images, accelerate):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(model, Int8WeightOnlyConfig())
    accelerate(model)
    with torch.no_grad():
        return [model(images)]


# what is attached to modules


def hooked(model: nn.Module, images: Tensor, accelerate: Accelerate, attach: Callable) -> list:
    """``attach(module, seen)`` for every leaf module; then what the hooks saw, in the order of the modules."""
    accelerate(model)
    seen = {name: [] for name, module in model.named_modules() if not list(module.children())}
    for name in seen:
        attach(model.get_submodule(name), seen[name])
    results = outcome(model, images)
    return results + [value for values in seen.values() for value in (torch.tensor(len(values)), *values)]


@tool("forward hooks")
def forward_hooks(model, images, accelerate):
    def attach(module, seen):
        module.register_forward_hook(lambda _, args, out: (seen.append(out.detach()), out * 1.1)[1])

    return hooked(model, images, accelerate, attach)


@tool("forward pre-hooks")
def forward_pre_hooks(model, images, accelerate):
    def attach(module, seen):
        module.register_forward_pre_hook(lambda _, args: (seen.extend(args), tuple(x * 1.1 for x in args))[1])

    return hooked(model, images, accelerate, attach)


@tool("backward hooks")
def backward_hooks(model, images, accelerate):
    def attach(module, seen):
        module.register_full_backward_hook(lambda _, into, out: seen.append(out[0].detach()))

    return hooked(model, images, accelerate, attach)


@tool("backward pre-hooks")
def backward_pre_hooks(model, images, accelerate):
    def attach(module, seen):
        module.register_full_backward_pre_hook(lambda _, out: (seen.append(out[0].detach()), (out[0] * 1.1,))[1])

    return hooked(model, images, accelerate, attach)


@tool("global hooks")
def global_hooks(model, images, accelerate):
    accelerate(model)
    leaves = [module for module in model.modules() if not list(module.children())]
    seen = {module: [] for module in leaves}

    def watch(module, args, out):
        if module in seen:
            seen[module].append(out)

    handle = nn.modules.module.register_module_forward_hook(watch)
    try:
        with torch.no_grad():
            out = model(images)
    finally:
        handle.remove()
    return [out, *(value for values in seen.values() for value in (torch.tensor(len(values)), *values))]


def _reparametrised(name: str, change: Callable[[nn.Module], object]) -> None:
    @tool(name)
    def run(model, images, accelerate):
        accelerate(model)
        for linear in linears(model):
            change(model.get_submodule(linear))
        return outcome(model, images)


def _weaken(module: nn.Module) -> None:
    forward = module.forward
    module.forward = lambda x: forward(x) * 0.9


_reparametrised("weight_norm", nn.utils.parametrizations.weight_norm)
_reparametrised("spectral_norm", lambda m: nn.utils.parametrizations.spectral_norm(m).eval())
_reparametrised("pruning", lambda m: prune.l1_unstructured(m, "weight", 0.5))
_reparametrised("forward of an instance", _weaken)


@tool("weight_norm, then accelerated")
def weight_norm_first(model, images, accelerate):
    for linear in linears(model):
        nn.utils.parametrizations.weight_norm(model.get_submodule(linear))
    accelerate(model)
    return outcome(model, images)


def _weaker(kind: type) -> contextlib.AbstractContextManager:
    """Its ``forward`` patched; what it inherits it inherits again afterwards."""
    original = kind.forward
    return mock.patch.object(kind, "forward", lambda self, x: original(self, x) * 0.9)


def _patched(kind: type, when: str) -> None:
    @tool(f"{kind.__name__}.forward patched {when}")
    def run(model, images, accelerate):
        if when == "after":
            accelerate(model)
        with _weaker(kind):
            if when == "before":
                accelerate(model)
            return outcome(model, images)


for _kind in (nn.Linear, nn.GELU, nn.LayerNorm):
    _patched(_kind, "before"), _patched(_kind, "after")


@tool("MLP.forward patched after")
def mlp_patched(model, images, accelerate):
    accelerate(model)
    with contextlib.ExitStack() as patches:
        for kind in {type(m) for name, m in model.named_modules() if name.endswith(".mlp")}:
            patches.enter_context(_weaker(kind))
        return outcome(model, images)


class Weaker(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        return out * 0.9 if func is F.linear else out


@tool("function mode")
def function_mode(model, images, accelerate):
    accelerate(model)
    with Weaker():
        return outcome(model, images)


class WeakerWeight(Tensor):
    """As a quantised one may keep its scale beside it."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        return (out * 0.9).as_subclass(Tensor) if func is F.linear else out


@tool("tensor subclass")
def tensor_subclass(model, images, accelerate):
    for name in linears(model):
        linear = model.get_submodule(name)
        linear.weight = nn.Parameter(linear.weight.detach().as_subclass(WeakerWeight), requires_grad=False)
    accelerate(model)
    with torch.no_grad():
        return [model(images)]


# graphs


def images_of(batch: int) -> Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(3))


def of_two_batches(run: Callable[[Tensor], Tensor], images: Tensor) -> list:
    return [run(images), run(images_of(len(images) + 2))]


@tool("called", costly=True)
def called(model, images, accelerate):
    accelerate(model)
    with torch.no_grad():
        return of_two_batches(model, images)


@tool("torch.jit.trace", costly=True)
def traced(model, images, accelerate):
    accelerate(model)
    with torch.no_grad():
        return of_two_batches(torch.jit.trace(model, images, check_trace=False), images)


@tool("torch.jit.script")
def scripted(model, images, accelerate):
    accelerate(model)
    with torch.no_grad():
        return [torch.jit.script(model)(images)]


@tool("FX feature extraction")
def feature_extraction(model, images, accelerate):
    from timm.models._features_fx import get_notrace_functions, get_notrace_modules
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    accelerate(model)
    options = dict(leaf_modules=get_notrace_modules(), autowrap_functions=get_notrace_functions())
    names = get_graph_node_names(model, tracer_kwargs=options)[1]
    wanted = [name for name in names if "mlp" in name or ("attn" in name and "proj" in name)][::3] + names[-1:]
    extractor = create_feature_extractor(model, wanted, tracer_kwargs=options)
    with torch.no_grad():
        return [torch.tensor(len(names)), *extractor(images).values()]


def onnx_session(file: bytes) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@tool("ONNX, older exporter", costly=True)
def onnx_older(model, images, accelerate):
    accelerate(model)
    file = io.BytesIO()
    axes = dict(input_names=["x"], dynamic_axes={"x": {0: "batch"}})
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(model, (images,), file, dynamo=False, **axes)
    return of_two_batches(onnx_session(file.getvalue()), images)


def program_of(model: Pair, images: Tensor, accelerate: Accelerate) -> torch.export.ExportedProgram:
    """For batches of any size."""
    if model.library not in PROGRAMS:
        accelerate(model)
        with torch.no_grad():
            shapes = ({0: torch.export.Dim("batch")},)
            PROGRAMS[model.library] = torch.export.export(model, (images,), dynamic_shapes=shapes)
    return PROGRAMS[model.library]


@tool("torch.export", costly=True)
def exported(model, images, accelerate):
    with torch.no_grad():
        return of_two_batches(program_of(model, images, accelerate).module(), images)


@tool("ONNX, newer exporter", costly=True)
def onnx_newer(model, images, accelerate):
    file = io.BytesIO()
    torch.onnx.export(program_of(model, images, accelerate), dynamo=True, verbose=False, optimize=False).save(file)
    return of_two_batches(onnx_session(file.getvalue()), images)


@tool("torch.compile, dynamic", costly=True)
def compiled(model, images, accelerate):
    accelerate(model)
    torch._dynamo.reset()
    graphs = CompileCounter()
    with torch.no_grad():
        found = of_two_batches(torch.compile(model, backend=graphs, fullgraph=True, dynamic=True), images)
    assert graphs.frame_count == 1, "a graph of its own for another batch"
    return found


# derivatives


def _functional(model: nn.Module, images: Tensor) -> tuple[dict, Callable]:
    parameters = {name: p.detach() for name, p in model.named_parameters()}

    def loss(parameters, images):
        return torch.func.functional_call(model, parameters, (images,)).square().sum()

    return parameters, loss


@tool("functional_call, grad")
def functional_gradients(model, images, accelerate):
    accelerate(model)
    parameters, loss = _functional(model, images)
    return list(torch.func.grad(loss)(parameters, images).values())


@tool("gradients of each sample")
def sample_gradients(model, images, accelerate):
    accelerate(model)
    parameters, loss = _functional(model, images)
    each = torch.vmap(torch.func.grad(lambda p, x: loss(p, x[None])), in_dims=(None, 0))
    return list(each(parameters, images).values())


@tool("ensemble by vmap")
def ensemble(model, images, accelerate):
    accelerate(model)
    parameters = {name: torch.stack([p.detach(), p.detach() * 0.9]) for name, p in model.named_parameters()}
    return [torch.vmap(lambda p: torch.func.functional_call(model, p, (images,)))(parameters)]


@tool("forward mode")
def forward_mode(model, images, accelerate):
    accelerate(model)
    with sdpa_kernel(SDPBackend.MATH):  # the others have no forward mode, and no second derivative
        return list(torch.func.jvp(model, (images,), (images.flip(0),)))


@tool("second derivatives")
def second_derivatives(model, images, accelerate):
    accelerate(model)
    images = images.clone().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):
        (first,) = torch.autograd.grad(model(images).square().sum(), images, create_graph=True)
    return list(torch.autograd.grad(first.square().sum(), list(model.parameters()), allow_unused=True))


@tool("checkpointed")
def checkpointed(model, images, accelerate):
    accelerate(model)
    images = images.clone().requires_grad_()
    out = checkpoint(model, images, use_reentrant=False)
    return [out, *torch.autograd.grad(out.square().sum(), [images, *model.parameters()], allow_unused=True)]


@tool("saved tensors packed")
def saved_tensors_packed(model, images, accelerate):
    accelerate(model)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
        return outcome(model, images)


# copies, devices, batches


@tool("deepcopy")
def deep_copied(model, images, accelerate):
    accelerate(model)
    other = copy.deepcopy(model)
    del model
    return outcome(other, images)


LOAD = """
import sys, torch
for path in sys.argv[1:]:
    try:
        model, images = torch.load(path, weights_only=False)
        with torch.no_grad():
            torch.save(model(images), path)
    except Exception as error:
        torch.save(repr(error), path)
"""


@functools.cache
def from_a_fresh_process(accelerate: Accelerate) -> dict[str, Tensor | str]:
    """Results of a model of each library there, or the error; one process for all, as it imports for seconds."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {library: str(Path(folder) / library) for library in reversed(LIBRARIES)}
        for library, path in paths.items():
            model = build(library)
            accelerate(model)
            torch.save((model, images_of(4)), path)
        tests = Path(__file__).resolve().parent
        program = f"import sys\nsys.path[:0] = {[str(tests), str(tests.parent)]}\n{LOAD}"
        subprocess.run([sys.executable, "-W", "ignore", "-c", program, *paths.values()], check=True)
        return {library: torch.load(path) for library, path in paths.items()}


@tool("pickled whole, fresh process", costly=True)
def pickled(model, images, accelerate):
    found = from_a_fresh_process(accelerate)[model.library]
    if isinstance(found, str):
        raise pickle.UnpicklingError(found)
    return [found[:2], found]


def replica_of(model: nn.Module) -> nn.Module:
    """What nn.DataParallel runs on another device: shallow copies, with tensors in place of parameters."""
    modules = {module: module._replicate_for_data_parallel() for module in model.modules()}
    for module, other in modules.items():
        for name, child in module._modules.items():
            setattr(other, name, None if child is None else modules[child])
        for name, parameter in module._parameters.items():
            setattr(other, name, None if parameter is None else parameter.view_as(parameter))
        for name, buffer in module._buffers.items():
            setattr(other, name, buffer)
    return modules[model]


@tool("DataParallel")
def data_parallel(model, images, accelerate):
    accelerate(model)
    out = nn.DataParallel(model)(images)
    halves = [replica_of(model)(half) for half in images.chunk(2)]
    parallel = torch.autograd.grad(torch.cat(halves).square().sum(), list(model.parameters()), allow_unused=True)
    return [out, *halves, *parallel]


def _offloaded(name: str, first: bool) -> None:
    @tool(name)
    def run(model, images, accelerate):
        from accelerate import cpu_offload

        if not first:
            accelerate(model)
        cpu_offload(model, execution_device=torch.device("cpu"))
        assert all(p.is_meta for p in model.parameters())
        if first:
            accelerate(model)
        with torch.no_grad():
            return [model(images)]


_offloaded("weights offloaded", first=True)
_offloaded("weights offloaded, on the accelerated", first=False)


@tool("meta device")
def meta_device(model, images, accelerate):
    accelerate(model)
    return [torch.empty_like(model.to("meta")(images.to("meta")), device="cpu").zero_()]


@tool("another default device")
def default_device(model, images, accelerate):
    accelerate(model)
    with torch.device("meta"):
        return outcome_on_cpu(model, images)


def outcome_on_cpu(model: nn.Module, images: Tensor) -> list:
    images = images.clone().requires_grad_()
    out = model(images)
    return [out, *torch.autograd.grad(out.square().sum(), [images, *model.parameters()], allow_unused=True)]


@tool("empty batch")
def empty_batch(model, images, accelerate):
    accelerate(model)
    return outcome(model, images[:0])


@tool("empty batch, ViT alone")
def empty_batch_of_vit(model, images, accelerate):
    accelerate(model)
    return outcome(model.vit, images[:0])


@tool("inference mode")
def inference_mode(model, images, accelerate):
    accelerate(model)
    with torch.inference_mode():
        return [model(images).clone()]


def original(model: nn.Module) -> None:
    """In place of `accelerate`."""


def results(name: str, library: str, accelerate: Accelerate = original) -> list:
    """Of the original, costly tools are not used, but what they should give is known."""
    run = TOOLS["called" if accelerate is original and name in COSTLY else name]
    return run(build(library), images_of(2), accelerate)
