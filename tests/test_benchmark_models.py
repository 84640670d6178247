"""Whole models and blocks in the benchmarks: chosen by pattern, compared before they are timed, run in every way."""

import pytest
import torch

import vitkern
from benchmarks import models, tables
from benchmarks.models import BOTH, COMPILED, IN_PYTORCH, ORIGINAL
from benchmarks.rows import OURS
from vitkern.commands import timing
from vitkern.report import BadInput

CPU = torch.device("cpu")
TINY = "test_vit.r160_in1k"


@pytest.fixture(autouse=True)
def _untimed(monkeypatch):
    """Each version runs once and is said to take 1, 2, ... s."""

    def side_by_side(runs, device, *, budget, progress):
        found = {}
        for i, (name, run) in enumerate(runs.items(), 1):
            run()
            found[name] = timing.Timing([float(i)] * 5, peak=i)
        return found

    monkeypatch.setattr(timing, "side_by_side", side_by_side)


def measured(name, **options):
    return models.measure_model(name, torch.float32, CPU, batch=2, progress=lambda text: None, **options)


def test_patterns_choose_among_all_models():
    assert models.chosen(["vit_tiny_patch16*"]) == ["vit_tiny_patch16_224", "vit_tiny_patch16_384"]
    assert models.chosen(["*"]) == vitkern.list_models()
    assert models.chosen([TINY, "vit_tiny_patch16_224:blocks.3", TINY]) == [TINY, "vit_tiny_patch16_224:blocks.3"]
    with pytest.raises(BadInput, match="Near: vit_tiny_patch16_224"):
        models.chosen(["vit_tiny_patch16_225"])


def test_a_model_of_tokens_is_not_timed():
    with pytest.raises(BadInput, match=r"images are timed: bert_base takes tokens \(B, N\)"):
        measured("bert_base")


def test_every_default_is_there():
    defaults = {*models.GPU_MODELS, *models.CPU_MODELS, *models.BLOCKS, *models.QUICK_MODELS, *models.QUICK_BLOCKS}
    assert set(models.chosen(sorted(defaults))) == defaults


def test_every_way_to_run_a_model_is_timed(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda model: model)
    found = measured(TINY, modes=("forward", "backward", "training"), compiled=True)
    assert [(row.mode, row.contender) for row in found] == [
        (mode, name) for mode in ("forward", "training") for name in (ORIGINAL, OURS, COMPILED, BOTH)
    ]
    assert [row.note for row in found[:4]] == [
        "", "0.50x (0.50 .. 0.50)", "0.33x (0.33 .. 0.33)", "0.25x (0.25 .. 0.25)"
    ]  # fmt: skip


def test_images_per_second_are_printed(capsys):
    tables.print_models(measured(TINY))
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:5] == ["model", "mode", "median", "spread", "images/s"]
    assert lines[2].split()[2:7] == [ORIGINAL, "1", "s", "0.0%", "2"] and lines[2].endswith("1.00x")
    assert lines[3].split()[2:7] == [OURS, "2", "s", "0.0%", "1"]


def test_a_block_runs_on_what_the_model_feeds_it():
    torch.manual_seed(1)
    contenders, x = models._built(f"{TINY}:blocks.2", 2, CPU, torch.float32)
    whole = contenders[ORIGINAL].block
    assert x.dim() == 3 and x.shape[0] == 2 and contenders[ORIGINAL](x).shape == (2, x.shape[2])
    assert type(contenders[OURS].block) is not type(whole)
    assert [row.contender for row in measured(f"{TINY}:blocks.2", modes=("training",))] == [ORIGINAL, OURS]


def test_a_model_that_timm_lacks_is_held_against_its_pytorch_path(monkeypatch):
    monkeypatch.setattr(models, "is_timms", lambda name: False)
    contenders, _ = models._built("vit_tiny_patch16_224", 1, CPU, torch.float32)
    assert [(name, model.backend) for name, model in contenders.items()] == [(IN_PYTORCH, "torch"), (OURS, "auto")]
    seen = []
    contenders[IN_PYTORCH].model.forward = lambda x: seen.append(vitkern.dispatch.current_backend())
    contenders[IN_PYTORCH](None)
    assert seen == ["torch"]


def test_out_of_memory_skips_a_model_and_says_so(monkeypatch):
    def full(*arguments):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9000000000 bytes")

    monkeypatch.setattr(models, "_built", full)
    (found,) = measured(TINY)
    assert found.seconds is None and found.note == "out of memory"


def test_other_errors_are_raised(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("a bug")

    monkeypatch.setattr(models, "_built", broken)
    with pytest.raises(RuntimeError, match="a bug"):
        measured(TINY)


def test_what_torch_compile_cannot_do_has_no_figure(monkeypatch):
    class Refusing(torch.nn.Module):
        def forward(self, x):
            raise RuntimeError("no graph of this")

    monkeypatch.setattr(torch, "compile", lambda model: Refusing())
    found = {row.contender: row for row in measured(TINY, compiled=True)}
    assert found[OURS].counts and found[ORIGINAL].counts
    assert found[COMPILED].seconds is None and found[COMPILED].note == "RuntimeError: no graph of this"


def test_warming_runs_every_way_once(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda model: (seen.append(model), model)[1])
    monkeypatch.setattr(timing, "side_by_side", lambda *a, **k: pytest.fail("it was timed"))
    assert measured(TINY, compiled=True, timed=False) == [] and len(seen) == 2


@pytest.mark.parametrize("name", [name for name in models.BLOCKS if not name.startswith("samvit")])
def test_blocks_take_what_their_model_feeds_them(name):
    """On one image of each model but SAM's 1024 x 1024 pixels; the original and the accelerated compute the same."""
    from vitkern.commands import equality

    contenders, x = models._built(name, 1, CPU, torch.float32)
    assert equality.compare_models(*contenders.values(), x).passed
    assert models.batch_of(name, gpu=True, quick=False) == 64


def test_large_images_come_in_small_batches():
    assert models.batch_of("samvit_base_patch16:blocks.0", gpu=True, quick=False) == 4
    assert models.batch_of("samvit_base_patch16", gpu=False, quick=False) == 1
