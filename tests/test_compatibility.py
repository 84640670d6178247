"""Every tool of `compatibility` on a model of every library: what the accelerated model gives is what the original
gives, or it is refused with a reason. A table of all is printed at the end.

A new library or tool is one more entry there, and is under all of this at once.
"""

import pytest
import torch

for _name in ("accelerate", "onnxruntime", "onnxscript", "peft", "timm", "torchao", "torchvision", "transformers"):
    pytest.importorskip(_name, reason="a row or a column stands on it")

from compatibility import LIBRARIES, TOOLS, build, images_of, original, results  # noqa: E402

import vitkern  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")

SAME, REFUSED_HERE, NEITHER, WRONG = "same", "refused", "neither", "WRONG"
# tool -> what the error of the accelerated model says, where the original works
REFUSED = {"torch.jit.script": r"report\.restore\(\) first"}

# tool -> (libraries whose original does not take it, what is said then)
READS_WEIGHTS = "torchvision's attention reads the weights of its projections"
ROWS_IN_THREE_DIMENSIONS = "torchvision's MLP gets (B, img_h, img_w, C), and the method takes (B, N, C)"
NEITHER_DOES = {
    "PEFT: OFT": (("torchvision",), "invalid for input of size", ROWS_IN_THREE_DIMENSIONS),
    "PEFT: OFT, on the accelerated": (("torchvision",), "invalid for input of size", ROWS_IN_THREE_DIMENSIONS),
    "PEFT: GraLoRA": (("torchvision",), "too many values to unpack", ROWS_IN_THREE_DIMENSIONS),
    "PEFT: GraLoRA, on the accelerated": (("torchvision",), "too many values to unpack", ROWS_IN_THREE_DIMENSIONS),
    "dynamic int8": (("torchvision",), "must be Tensor, not method", READS_WEIGHTS),
    "dynamic int8, on the accelerated": (("torchvision",), "must be Tensor, not method", READS_WEIGHTS),
    "weights offloaded": (("torchvision",), "device meta", READS_WEIGHTS),
    "weights offloaded, on the accelerated": (("torchvision",), "device meta", READS_WEIGHTS),
    "torch.jit.script": (("transformers",), "get source", "transformers' models are not written for TorchScript"),
    "FX feature extraction": (("transformers",), "symbolically traced", "transformers' models branch on their inputs"),
    "empty batch": (("timm", "transformers"), "cannot reshape", "a size of -1 is ambiguous without elements"),
    "empty batch, ViT alone": (("transformers",), "cannot reshape", "a size of -1 is ambiguous without elements"),
}

outcomes: dict[tuple[str, str], str] = {}


def listed(table: dict, tool: str, library: str) -> tuple | None:
    entry = table.get(tool)
    return entry if entry is not None and library in entry[0] else None


def cell(tool, library):
    return pytest.param(tool, library, id=f"{tool} - {library}")


@pytest.fixture(scope="module", autouse=True)
def _table(request):
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print("\n" + table())


def table() -> str:
    """Rows of tools, columns of libraries, of what ran."""
    rows = [tool for tool in TOOLS if any((tool, library) in outcomes for library in LIBRARIES)]
    width = max(map(len, rows), default=0)
    lines = [" " * width + "".join(f"  {library:<12}" for library in LIBRARIES)]
    for tool in rows:
        cells = (f"  {outcomes.get((tool, library), '-'):<12}" for library in LIBRARIES)
        lines.append(f"{tool:<{width}}{''.join(cells)}".rstrip())
    reasons = {
        f"{NEITHER}: {tool}, {' and '.join(libraries)}: {why}" for tool, (libraries, _, why) in NEITHER_DOES.items()
    }
    return "\n".join(lines + sorted(reason for reason in reasons if any(f" {tool}," in reason for tool in rows)))


@pytest.mark.walk(5)
@pytest.mark.parametrize("tool, library", [cell(tool, library) for tool in TOOLS for library in LIBRARIES])
def test_cell(tool, library):
    outcomes[tool, library] = WRONG
    neither = listed(NEITHER_DOES, tool, library)
    if neither:
        with pytest.raises(Exception, match=neither[1]):
            results(tool, library)
        outcomes[tool, library] = NEITHER
        return
    expected = results(tool, library)
    assert any(one is not None and (one.numel() == 0 or one.isfinite().all()) for one in expected)
    if tool in REFUSED:
        with pytest.raises(NotImplementedError, match=REFUSED[tool]):
            results(tool, library, vitkern.accelerate)
        outcomes[tool, library] = REFUSED_HERE
        return
    actual = results(tool, library, vitkern.accelerate)
    assert len(actual) == len(expected)
    for number, (one, other) in enumerate(zip(actual, expected, strict=True)):
        assert (one is None) == (other is None), f"result {number}"
        if one is not None:
            size = other.abs().max().item() if other.numel() else 0.0
            torch.testing.assert_close(
                one, other, rtol=1e-4, atol=1e-5 * max(1.0, size), msg=f"{{}} in result {number}".format
            )
    outcomes[tool, library] = SAME


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_pair_runs_on_vitkern(library):
    """Both of its models do, or the table would say nothing."""
    report = vitkern.accelerate(build(library))
    ops = {(entry.name.split(".")[0], op.split(",")[0]) for entry in report for op in entry.ops}
    wanted = {("vit", "attention"), ("vit", "layernorm_mlp"), ("swin", "window_attention"), ("swin", "layernorm_mlp")}
    assert wanted <= ops and not report.kept


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_refusal_of_script_changes_nothing_and_its_remedy_helps(library):
    model, images = build(library), images_of(2)
    report = vitkern.accelerate(model)
    swapped = [type(module) for module in model.modules()]
    with pytest.raises(NotImplementedError, match=REFUSED["torch.jit.script"]):
        torch.jit.script(model)
    assert [type(module) for module in model.modules()] == swapped
    report.restore()
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(images), results("called", library, original)[0])


@pytest.mark.parametrize("library", LIBRARIES)
def test_what_is_traced_is_the_original(library):
    """So that files need nothing but PyTorch's own operators, whatever runs here."""
    graphs = []
    for change in (original, vitkern.accelerate):
        model = build(library)
        change(model)
        with torch.no_grad():
            traced = torch.jit.trace(model, images_of(2), check_trace=False)
        graphs.append([node.kind() for node in traced.inlined_graph.nodes()])
    assert graphs[0] == graphs[1]
