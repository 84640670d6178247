"""``python -m vitkern coverage``: its verdicts, what it prints and writes, and the page that is made of it."""

import inspect
import json
import re
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from vitkern.commands import coverage
from vitkern.covering import examine, page
from vitkern.covering import timm as timm_families
from vitkern.covering.examine import BROKE, DRIFTED, NOT_RUN, OK, ROUNDING, Row
from vitkern.covering.family import Family, randomise
from vitkern.covering.running import apart
from vitkern.interop.attends import attends
from vitkern.interop.report import Report

PAGE = Path(__file__).resolve().parent.parent / "docs" / "coverage.md"
SAMPLE = {
    "timm": ("test_vit, *", "swin_tiny_*_224, 64 *", "convit_*", "mixer_*", "vit_small_patch16_rope_224*"),
    "transformers": ("vitforimageclassification", "swinmodel, *", "vitdetbackbone", "llavamodel, m*", "qwen2_vl*"),
    "torchvision": ("vit_*", "swin_t, padded*"),
}


@pytest.mark.walk(3)
@pytest.mark.parametrize("library, pattern", [(library, name) for library, names in SAMPLE.items() for name in names])
def test_a_sample_of_each_library_is_what_it_was(run, library, pattern):
    code, out, err = run("coverage", "--library", library, "--json", pattern)
    assert code == 0, out
    (row,) = json.loads(out)["libraries"][library]["rows"]
    assert row["status"] in (OK, ROUNDING) and row["attending"] >= row["swapped"], row
    assert row["swapped"] + len(row["kept"]) > 0 or row["operators"], row
    assert err == "", "there is no terminal to show progress on"


def test_every_module_of_timm_with_attention_has_a_family():
    modules = {timm.models.model_entrypoint(name).__module__ for name in timm.list_models()}
    covered = {timm.models.model_entrypoint(word.split("@")[0]).__module__ for word in timm_families.MODELS.split()}
    for name in modules - covered:
        kinds = [kind for kind in vars(sys.modules[name]).values() if inspect.isclass(kind)]
        own = [kind for kind in kinds if issubclass(kind, nn.Module) and kind.__module__ == name]
        assert not [kind.__name__ for kind in own if attends(kind)], name


class Little(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)
        self.normal = nn.BatchNorm1d(4)

    def forward(self, images):
        return self.second(self.normal(self.first(images)))


def little(build=Little):
    return Family("little", lambda: (build(), {"images": torch.randn(5, 3)}))


def accelerated(change):
    """What takes the place of accelerate: ``change(model)`` gives what puts it back."""

    def accelerate(model):
        report = Report(model)
        report.undo.append(change(model) or (lambda: None))
        return report

    return accelerate


def twice(model):
    model.second.forward = lambda x: nn.Linear.forward(model.second, x) * (1 + 1e-4)
    return lambda: vars(model.second).pop("forward") and None


def in_training(model):
    model.second.forward = lambda x: nn.Linear.forward(model.second, x) + model.training * torch.rand(2)
    return lambda: vars(model.second).pop("forward") and None


def gradients(model):
    handle = model.first.weight.register_hook(lambda gradient: gradient * 1.01)
    return lambda: handle.remove()


def statistics(model):
    model.normal.momentum = 0.2

    def put_back():
        model.normal.momentum = 0.1

    return put_back


def stays(model):
    model.__class__ = type("Other", (Little,), {})


def weights(model):
    with torch.no_grad():
        model.first.weight.add_(1)


def keys(model):
    model.third = nn.Linear(2, 2)
    return lambda: delattr(model, "third")


def other_bits(model):
    model.second.forward = lambda x: nn.Linear.forward(model.second, x)
    model.second.register_forward_hook(lambda module, given, out: out * 1.001 if "forward" not in vars(module) else out)
    return lambda: vars(model.second).pop("forward") and None


def fails(model):
    raise RuntimeError("no")


FAULTS = {
    twice: DRIFTED, in_training: DRIFTED, gradients: DRIFTED, statistics: DRIFTED,
    stays: BROKE, weights: BROKE, keys: BROKE, other_bits: BROKE, fails: BROKE,
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_found(monkeypatch, fault):
    monkeypatch.setattr(examine, "accelerate", accelerated(fault))
    row = examine.examine(little())
    assert row.status == FAULTS[fault], row
    assert row.remark if row.status == BROKE else row.double > 1e-5, row


def test_what_stays_is_ok(monkeypatch):
    monkeypatch.setattr(examine, "accelerate", accelerated(lambda model: None))
    row = examine.examine(little())
    assert (row.status, row.logits, row.gradients, row.train, row.double) == (OK, 0, 0, 0, None)


class Steep(Little):
    """What is left of a thousand, and of its rounding."""

    def __init__(self):
        super().__init__()
        nn.init.constant_(self.first.bias, 1000)

    def forward(self, images):
        return self.second(self.first(images) - 1000)


class SteepInFloat32(Steep):
    """Has no float64."""

    def forward(self, images):
        if images.dtype == torch.float64:
            raise TypeError("no float64")
        return super().forward(images)


@pytest.mark.parametrize("build", [Steep, SteepInFloat32])
def test_rounding_is_told_from_drift(monkeypatch, build):
    def rounded(model):
        model.first.forward = lambda x: nn.Linear.forward(model.first, x) * (1 + 4 * torch.finfo(x.dtype).eps)
        return lambda: vars(model.first).pop("forward") and None

    monkeypatch.setattr(examine, "accelerate", accelerated(rounded))
    row = examine.examine(little(build))
    assert row.status == ROUNDING and max(row.logits, row.gradients, row.train) > examine.LIMIT, row
    assert (row.double is None) == (build is SteepInFloat32)


class Nothing(Little):
    def forward(self, images):
        return super().forward(images) * torch.nan


class Words(Little):
    def forward(self, images):
        return super().forward(images).long()


@pytest.mark.parametrize("build", [Nothing, Words])
def test_what_gives_nothing_to_compare_is_not_run(build):
    row = examine.examine(little(build))
    assert row.status == NOT_RUN and "it answers no real numbers" in row.remark


def missing():
    raise ImportError("not there")


def test_a_model_that_cannot_be_built_ends_in_its_row(run, monkeypatch):
    monkeypatch.setattr(timm_families, "families", lambda: [little(missing), little()])
    code, out, _ = run("coverage", "--library", "timm")
    assert code == 0
    assert "| not run: ImportError: not there |" in out and "0 BROKE, 1 not run" in out
    monkeypatch.setattr(examine, "accelerate", accelerated(fails))
    code, out, _ = run("coverage", "--library", "timm")
    assert code == 1 and "| BROKE: RuntimeError: no |" in out


def test_the_table_goes_to_a_file(run, monkeypatch, tmp_path):
    monkeypatch.setattr(timm_families, "families", lambda: [little()])
    file = tmp_path / "table.md"
    code, out, _ = run("coverage", "--library", "timm", "--out", file)
    assert code == 0 and out.startswith("timm: 1 models, 0 with attention: swapped whole 0")
    assert f"timm {timm.__version__}" in file.read_text() and "| little | 0 / 0 |" in file.read_text()


def test_a_file_that_cannot_be_is_refused_before_the_work(run, monkeypatch, tmp_path):
    monkeypatch.setattr(timm_families, "families", lambda: [little(lambda: pytest.fail("it was built"))])
    for file in (tmp_path, tmp_path / "nowhere" / "table.md"):
        code, _, err = run("coverage", "--library", "timm", "--out", file)
        assert code == 2 and f"--out is no file in a folder that is there: {file}" in err


def test_libraries_that_are_not_installed_are_named(run, monkeypatch):
    monkeypatch.setattr(timm_families, "families", lambda: [little()])
    monkeypatch.setattr(coverage, "find_spec", lambda name: None if name != "timm" else object())
    code, out, err = run("coverage")
    assert code == 0 and "## timm" in out
    assert err == "transformers is not installed: left out\ntorchvision is not installed: left out\n"
    code, _, err = run("coverage", "--library", "transformers")
    assert code == 2 and "transformers is not installed" in err


def test_progress_is_shown_on_a_terminal(run, monkeypatch):
    monkeypatch.setattr(timm_families, "families", lambda: [little()])
    monkeypatch.setattr(coverage, "is_terminal", lambda: True)
    assert run("coverage", "--library", "timm")[2] == "[1/1] timm: little\n"


def test_near_matches_of_a_pattern_are_suggested(run):
    code, _, err = run("coverage", "--library", "torchvision", "swin_tt*")
    assert code == 2 and "no model matches 'swin_tt*'" in err and "swin_t" in err


def test_differences_are_seen():
    one = torch.tensor([1.0, 2.0])
    assert apart({"a": one}, {"a": one.clone()}) == 0
    assert apart({"a": one}, {"a": one + 0.5}) == 0.25
    assert (
        apart({"a": one}, {})
        == apart({"a": one}, {"a": one[:1]})
        == apart({"a": one}, {"a": one.double()})
        == torch.inf
    )
    nothing = torch.tensor([torch.nan, 2.0])
    assert apart({"a": nothing}, {"a": nothing.clone()}) == 0 and apart({"a": one}, {"a": nothing}) == torch.inf
    assert apart({"a": nothing}, {"a": one}) == torch.inf
    small = {"large": one, "small": one * 1e-9}
    assert (
        apart(small, {**small, "small": one * 2e-9}, floor=1e-3) < 1e-5 < apart(small, {**small, "small": one * 2e-9})
    )


def test_weights_that_start_at_zero_become_random():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    randomise(model)
    assert all(parameter.std() > 0.05 for parameter in model.parameters())


def test_the_page_has_the_form_of_the_command():
    text = PAGE.read_text()
    for line in page.LEAD.format(versions="").strip().splitlines():
        assert line in text or line == ".", line
    for library in coverage.LIBRARIES:
        table = text.split(f"\n## {library}\n\n")[1].split("\n\n")[0].strip().splitlines()
        assert table[0] == f"| {' | '.join(page.HEAD)} |", "run make coverage"
        found = [re.split(r"(?<!\\) \| ", line[2:-2]) for line in table[2:]]
        assert {len(cells) for cells in found} == {len(page.HEAD)}
        module = __import__(f"vitkern.covering.{library}", fromlist=["families"])
        assert [cells[0] for cells in found] == [family.name for family in module.families()], "run make coverage"
        rows = []
        for name, attention, *_, status in found:
            swapped, attending = map(int, attention.split(" / "))
            rows.append(Row(name, swapped, attending, status=status.split(":")[0]))
            assert rows[-1].status in (OK, ROUNDING, NOT_RUN), f"{name}: {status}"
        assert f"* {library}: {page.summary(rows)}\n" in text
