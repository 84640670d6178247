"""Every block size of kernels/, every hook and every combination of them in a model is compiled somewhere."""

import ast
import inspect
import re
from pathlib import Path

import pytest
import torch

import vitkern
from tests import other_triton
from tests.compiler import coverage
from vitkern.kernels.loop import logits, norms, scores, starts, tokens, weighing
from vitkern.kernels.machine.choices import replaced
from vitkern.kernels.rows import epilogues
from vitkern.kernels.rows.blocks import layernorm_config
from vitkern.lab.compiling import golden
from vitkern.lab.compiling.compile import cells
from vitkern.lab.compiling.matrix import ARCHITECTURES, launches
from vitkern.lab.specimens import gathered, merged

pytestmark = pytest.mark.compiler
# Between them every family, token count class, window size, head dimension and normalisation of the registry.
MODELS = (
    ("vit_tiny_patch16_224", 1),
    ("vit_tiny_patch16_384", 1),
    ("vit_small_patch32_384", 1),
    ("vit_small_patch32_224", 1),
    ("vit_huge_patch14_224", 1),
    ("deit_tiny_distilled_patch16_224", 1),
    ("vit_giant_patch14_map_224", 1),
    ("vit_22b_patch14_224", 1),
    ("vit_giant_patch14_dinov2", 1),
    ("cait_s24_224", 1),
    ("convit_small", 1),
    ("cpvt_tiny_patch16_gap_224", 1),
    ("mixer_s16_224", 1),
    ("vitdet_base", 4),
    ("swin_tiny_patch4_window7_224", 2),
    ("swin_base_patch4_window12_384", 2),
    ("swinv2_tiny_window8_256", 2),
    ("swinv2_tiny_window16_256", 2),
    ("swinv2_base_window12_192", 2),
    ("swinv2_base_window12to24_192to384", 2),
    ("vil_medium_wide_window7_224", 1),
    ("nat_base", 1),
    ("dinat_mini", 2),
    ("pvt_tiny", 1),
    ("pvt_v2_b2_li", 1),
    ("twins_svt_small", 2),
    ("cvt_13", 1),
    ("davit_tiny", 1),
    ("halonet_h0", 1),
    ("halonet26t", None),
    ("halonet50ts", None),
    ("mobilevit_s", None),
    ("mobilevitv2_100", None),
    ("mobilevitv3_100", None),
    ("sasa_resnet26", 1),
    ("vt_resnet18", None),
    ("vt_resnet50", None),
    ("transformer_base", 1),
    ("bert_base", 1),
    ("igpt_small", 1),
    ("igpt_medium", 1),
    ("igpt_large", 1),
    ("dynamicvit_deit_s", 12),
    ("deformable_detr", 1),
)


SEQUENCE = "transformer", "bert", "igpt"
PLAIN = "vit", "deit", "cait", "convit", "cpvt", "dynamicvit"


@pytest.fixture(scope="module")
def launched():
    """launched(arch) -> (entries, combinations, constants) of all its cells; nothing is compiled."""
    known = {}

    def get(arch):
        if arch not in known:
            found = [coverage.asked(launches()[name].run, arch) for name, of_cell in cells([], []) if of_cell == arch]
            known[arch] = tuple(set().union(*(one[i] for one in found)) for i in (0, 1))
            known[arch] += ([constants for one in found for constants in one[2]],)
        return known[arch]

    return get


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_block_size_is_compiled(launched, arch):
    possible = coverage.entries(arch)
    assert {entry[0] for entry in possible} == set(coverage.NAMES) - ({"stream_hopper_config"} if arch != 90 else set())
    missing = [f"{entry} for {example}" for entry, example in possible.items() if entry not in launched(arch)[0]]
    assert not missing, "no launch of vitkern/lab/specimens asks for\n" + "\n".join(missing)


def test_an_entry_that_nothing_asks_for_is_found(launched):
    usual = {channels: layernorm_config(channels, 80) for channels in coverage.DOMAIN["channels"]}
    other, known = {**usual, 3072: (7, usual[3072][1])}, launched(80)[0]
    with replaced({"layernorm_config": lambda channels, arch: other[channels]}):
        assert [entry[0] for entry in set(coverage.entries(80)) - known] == ["layernorm_config"]


def test_every_hook_and_activation_is_compiled_on_every_architecture(launched):
    for arch in ARCHITECTURES:
        used = {name for _, hooks, _, _ in launched(arch)[1] for _, name in hooks}
        for module in (tokens, scores, logits, norms, starts, weighing, epilogues):
            public = {  # what kernels call themselves is no hook
                name
                for name, value in vars(module).items()
                if hasattr(value, "fn") and value.fn.__module__ == module.__name__ and not name.startswith("_")
            } - {"logit_slope"}
            assert public and public <= used, (arch, public - used)
        assert {constants.get("ACT") for constants in launched(arch)[2]} >= {"gelu", "gelu_tanh"}


def test_no_hook_hides_in_a_tuple_of_constants(launched):
    """Triton keeps kernels by the text of such a tuple, in which a function is a name and not what it does."""
    tuples = {value for constants in launched(90)[2] for value in constants.values() if isinstance(value, tuple)}
    assert len(tuples) > 20
    assert not [one for one in tuples if any(hasattr(getattr(part, "value", part), "fn") for part in one)]


def test_every_kernel_is_launched(launched):
    folder, names = Path(inspect.getfile(tokens)).parent.parent, set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "launch":
                names.add(node.args[0].id)
    for arch in ARCHITECTURES:
        assert {kernel for kernel, *_ in launched(arch)[1]} == names - ({"_stream_hopper_fwd"} if arch != 90 else set())
    assert set(merged("turns")) <= names


def test_what_another_triton_compiles_has_every_kernel_of_hopper(launched):
    sample = cells(list(other_triton.SAMPLE), [90])
    assert len(sample) == len(other_triton.SAMPLE)  # each names one launch
    found = set().union(*(coverage.asked(launches()[name].run, 90)[1] for name, _ in sample))
    assert {kernel for kernel, *_ in found} == {kernel for kernel, *_ in launched(90)[1]}


def _empty_linear(input, weight, bias=None):
    return input.new_empty(*input.shape[:-1], weight.shape[0])


def _empty_convolution(input, weight, bias=None, stride=1, padding=(0, 0), dilation=1, groups=1):
    steps = zip(input.shape[2:], weight.shape[2:], stride, padding, strict=True)
    sizes = [(size + 2 * around - side) // step + 1 for size, side, step, around in steps]
    return input.new_empty(input.shape[0], weight.shape[0], *sizes)


@pytest.fixture
def combinations_of_model(monkeypatch):
    """combinations_of_model(name, depth, arch), for its inference on two images; its weights are never touched."""
    monkeypatch.setattr(torch.nn.functional, "linear", _empty_linear)
    monkeypatch.setattr(torch.nn.functional, "conv2d", _empty_convolution)

    def call(name, depth, arch):
        depths = {"depth": depth} if name.startswith(PLAIN) else {"depths": (depth,) * 4}
        if name.startswith(SEQUENCE):
            depths = {"depth": depth}
        if name.startswith("cvt"):
            depths = {"depths": (depth,) * 3}
        if name.startswith("mixer"):
            depths = {"num_blocks": depth}
        if name.startswith("convit"):
            depths = {"depth": depth + 1, "local_up_to_layer": depth}
        if name.startswith("deformable"):
            depths = {"depths": (depth,) * 2, "backbone_depths": (1,) * 4, "backbone_width": 8}
        if name.startswith("dinat"):
            depths["dilations"] = ((1, 8), (1, 4), (1, 2), (1, 1))
        depths = depths if depth else {}
        with torch.device("meta"):
            model = vitkern.create_model(name, **depths).to(torch.bfloat16).eval()
        model = model.to_empty(device="cpu")
        inputs = model.example_inputs(2)
        with torch.no_grad():
            return coverage.asked(lambda: model(*inputs), arch)[1]

    return call


@pytest.mark.walk(6)
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model[0])
def test_what_models_launch_is_compiled(launched, combinations_of_model, model):
    for arch in ARCHITECTURES:
        missing = combinations_of_model(*model, arch) - launched(arch)[1]
        assert not missing, f"{arch}: no launch of vitkern/lab/specimens has\n" + "\n".join(map(str, missing))


def test_the_models_stand_for_the_registry():
    assert {name for name, _ in MODELS} <= set(vitkern.list_models())
    families = {name.split("_")[0] for name in vitkern.list_models()}
    windows = {found.group() for name in vitkern.list_models() if (found := re.search(r"^swin.*window\d+(?=_)", name))}
    assert {name.split("_")[0] for name, _ in MODELS} == families
    sizes = {re.search(r"^swin(v2)?", name).group() + re.search(r"window\d+", name).group() for name in windows}
    covered = [name for name, _ in MODELS if name.startswith("swin")]
    assert {re.search(r"^swin(v2)?", n).group() + re.search(r"window\d+", n).group() for n in covered} == sizes


def test_launches_have_names_of_their_own_and_places_in_the_matrix():
    names = [launch.name for launch in gathered("launches")]
    assert len(set(names)) == len(names) and set(names) == set(launches())
    everywhere = {launch.name for launch in launches().values() if launch.everywhere}
    for name in names:
        placed = [arch for of_cell, arch in cells([name], []) if of_cell == name]
        fitting = set(ARCHITECTURES) - set(launches()[name].in_pytorch)
        assert set(placed) == fitting if name in everywhere else len(placed) == 1 and set(placed) <= fitting
    assert {arch for _, arch in cells([], [])} == set(ARCHITECTURES)


def test_exceptions_name_cells_and_give_reasons():
    for (name, kernel, arch), (begins, reason, tritons) in merged("exceptions").items():
        assert (name, arch) in cells([name], [arch]) and kernel.startswith("_") and begins and len(reason) > 20
        assert set(tritons) <= {path.stem.removeprefix("triton-") for path in golden.FOLDER.glob("*.json")}
