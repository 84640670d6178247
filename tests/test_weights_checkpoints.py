"""Checkpoints as trainings leave them: averaged weights, names of wrappers, several files, odd values."""

import json
import os
import warnings

import pytest
import torch
import torch.nn as nn

import vitkern.models as models


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.BatchNorm1d(4)


def filled(value, model=None):
    state = (Small() if model is None else model).state_dict()
    return {name: torch.full_like(tensor, value) for name, tensor in state.items()}


def values(model):
    return {float(tensor.flatten()[0]) for tensor in model.state_dict().values()}


def loaded(found, path, **options):
    torch.save(found, path)
    model = Small()
    models.load_weights(model, path, **options)
    return values(model)


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema"])
@pytest.mark.parametrize("trained", ["state_dict", "model"])
def test_averaged_weights_are_taken_as_timm_takes_them(tmp_path, average, trained):
    found = {trained: filled(1), average: filled(2), "epoch": 3}
    path = tmp_path / "w.pth"
    with pytest.warns(
        UserWarning, match=rf"'w\.pth' holds '{average}' beside '{trained}': the averaged weights are ta"
    ):
        assert loaded(found, path) == {2.0}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # where there is no choice, or the caller made it, nothing is said
        assert loaded(found, path, use_ema=False) == {1.0}
        assert set(models.read_weights(path, use_ema=False)["first.weight"].unique().tolist()) == {1.0}
        assert loaded({average: filled(2)}, path) == {2.0}
        assert loaded({trained: filled(1), average: None}, path) == {1.0}
    timm = pytest.importorskip("timm.models", reason="it is the reference of this test")
    for use_ema, value in ((True, 2.0), (False, 1.0)):
        torch.save(found, path)
        assert set(timm.load_state_dict(str(path), use_ema)["first.weight"].unique().tolist()) == {value}


PREFIXES = [
    "module.",
    "_orig_mod.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "module.module.",
    "_fsdp_wrapped_module.",
]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("wrapper", [None, "model", "state_dict_ema"])
def test_names_of_wrappers_are_removed(tmp_path, prefix, wrapper):
    state = {prefix + name: tensor for name, tensor in filled(1).items()}
    assert loaded(state if wrapper is None else {wrapper: state}, tmp_path / "w.pth") == {1.0}


def test_parts_that_were_compiled_and_averages_load_too(tmp_path):
    inside = {name.replace("first.", "first._orig_mod."): tensor for name, tensor in filled(1).items()}
    assert loaded(inside, tmp_path / "w.pth") == {1.0}
    averaged = torch.optim.swa_utils.AveragedModel(Small(), use_buffers=True)
    averaged.load_state_dict(filled(2, averaged))
    assert loaded({"model_ema": averaged.state_dict()}, tmp_path / "w.pth") == {2.0}


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel])
def test_a_wrapped_model_takes_the_weights_of_a_bare_one_and_of_its_like(tmp_path, wrap):
    for model in (Small(), wrap(Small())):
        torch.save(filled(2, model), tmp_path / "w.pth")
        target = wrap(Small())
        models.load_weights(target, tmp_path / "w.pth")
        assert values(target.module if hasattr(target, "module") else target) == {2.0}


def test_module_is_kept_where_a_model_has_it(tmp_path):
    model = nn.ModuleDict({"module": nn.Linear(2, 2), "head": nn.Linear(2, 2)})
    torch.save(filled(1, model), tmp_path / "w.pth")
    models.load_weights(model, tmp_path / "w.pth")
    assert values(model) == {1.0}


def circle():
    found = {"epoch": 1}
    found["model"] = found
    return found


def with_last(tensor):
    return {**filled(1), "last.running_var": tensor}


ODD = {
    "sparse": (with_last(torch.ones(4).to_sparse()), r"no plain tensors: got last\.running_var \(sparse_coo\)"),
    "meta": (with_last(torch.ones(4, device="meta")), r"no plain tensors: got last\.running_var \(without values\)"),
    "int8": (with_last(torch.ones(4, dtype=torch.int8)), r"1 of another kind \(last\.running_var int8 for float32\)"),
    "bool": (with_last(torch.ones(4, dtype=torch.bool)), r"1 of another kind \(last\.running_var bool for float32\)"),
    "complex": (with_last(torch.ones(4) * 1j), r"1 of another kind \(last\.running_var complex64 for float32\)"),
    "float8": (with_last(torch.ones(4).to(torch.float8_e4m3fn)), r"1 of another kind \(last\.running_var float8"),
    "count": (filled(1) | {"last.num_batches_tracked": torch.tensor(1.0)}, r"num_batches_tracked float32 for int64"),
    "range": (with_last(torch.full((4,), 1e300, dtype=torch.float64)), r"1 out of range \(last\.running_var for"),
    "integers": ({0: torch.ones(3), 1: torch.ones(2)}, "no state dict inside: got a mapping of 0, 1"),
    "lines": ({"a\nb": torch.ones(3)}, r"1 unexpected \('a\\nb'\)"),
    "circle": (circle(), "no state dict inside: got a mapping of epoch, model"),
    "twice": ({**filled(1), "module.first.bias": torch.ones(4)}, r"1 unexpected \(module\.first\.bias\)"),
    "merged": ({**filled(1), "_orig_mod.first.bias": torch.ones(4)}, "names are the same without their wrappers"),
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
def test_what_does_not_fit_changes_nothing(tmp_path, case):
    found, message = ODD[case]
    torch.save(found, tmp_path / "w.pth")
    model = Small()
    model.load_state_dict(filled(7))
    with pytest.raises(ValueError, match=message) as caught:
        models.load_weights(model, tmp_path / "w.pth")
    assert values(model) == {7.0} and "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_module_that_refuses_its_part_leaves_all_as_it_was(tmp_path, error):
    torch.save(filled(1), tmp_path / "w.pth")
    model = Small()
    model.load_state_dict(filled(7))

    def refuse(*_):
        raise error("no")

    model.last._load_from_state_dict = refuse
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else ValueError):
        models.load_weights(model, tmp_path / "w.pth")
    assert values(model) == {7.0}


def test_values_that_a_narrower_model_holds_are_cast(tmp_path):
    torch.save(filled(1.0), tmp_path / "w.pth")
    model = Small().half()
    models.load_weights(model, tmp_path / "w.pth")
    assert values(model) == {1.0}
    torch.save(with_last(torch.full((4,), 1e6)), tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"1 out of range \(last\.running_var for float16\)"):
        models.load_weights(model, tmp_path / "w.pth")
    torch.save(with_last(torch.full((4,), torch.inf)), tmp_path / "w.pth")
    models.load_weights(model, tmp_path / "w.pth")  # infinite before, infinite after


def shards(folder, kind=".bin"):
    """A checkpoint in two files with its index."""
    folder.mkdir(parents=True, exist_ok=True)
    names, state = {}, filled(1)
    for i, part in enumerate((list(state)[:2], list(state)[2:])):
        file = f"model-{i}{kind}"
        names |= dict.fromkeys(part, file)
        torch.save({name: state[name] for name in part}, folder / file)
    return index(folder, names)


def index(folder, names):
    path = folder / "pytorch_model.bin.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return path


def test_a_checkpoint_of_several_files(tmp_path):
    model = Small()
    models.load_weights(model, shards(tmp_path))
    assert values(model) == {1.0}
    (tmp_path / "model-1.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"a file of the index is missing: got model-1\.bin"):
        models.load_weights(model, tmp_path / "pytorch_model.bin.index.json")
    with pytest.raises(FileNotFoundError, match=r"is missing: got x+\.\.\. in "):
        models.load_weights(model, index(tmp_path, {"first.bias": "x" * 9999 + ".bin"}))


def test_the_hubs_cache_is_made_of_links(tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    shards(blobs)
    snapshot.mkdir(parents=True)
    for path in blobs.iterdir():
        (snapshot / path.name).symlink_to(os.path.relpath(path, snapshot))
    model = Small()
    models.load_weights(model, snapshot / "pytorch_model.bin.index.json")
    assert values(model) == {1.0}


@pytest.mark.parametrize("where", ["../out/model-1.bin", "/absolute", "link.bin", "linked/model-1.bin", "a\0b"])
def test_an_index_that_points_outside_its_folder(tmp_path, where):
    """Whole files lie there: only where they lie is wrong."""
    shards(tmp_path / "out")
    path = shards(tmp_path / "in")
    (tmp_path / "in" / "link.bin").symlink_to(tmp_path / "out" / "model-1.bin")
    (tmp_path / "in" / "linked").symlink_to(tmp_path / "out")
    file = str(tmp_path / "out" / "model-1.bin") if where == "/absolute" else where
    names = {n: file if f == "model-1.bin" else f for n, f in json.loads(path.read_text())["weight_map"].items()}
    model = Small()
    model.load_state_dict(filled(7))
    with pytest.raises(ValueError, match="the index points outside its folder") as caught:
        models.load_weights(model, index(tmp_path / "in", names))
    assert values(model) == {7.0} and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    ["[]", "{", "1", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {}}', "[" * 99999, "\xff"],
)
def test_files_that_are_no_index(tmp_path, text):
    path = tmp_path / "model.safetensors.index.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"^load_weights: (the index cannot be read|this is no index)") as caught:
        models.load_weights(Small(), path)
    assert "\n" not in str(caught.value)


def test_an_index_that_its_files_contradict(tmp_path):
    path = shards(tmp_path)
    names = json.loads(path.read_text())["weight_map"]
    with pytest.raises(ValueError, match=r"the index does not fit its files: got no first\.bias in 'model-1\.bin'"):
        models.load_weights(Small(), index(tmp_path, names | {"first.bias": "model-1.bin"}))
    (tmp_path / "again.bin").write_bytes((tmp_path / "model-0.bin").read_bytes())
    with pytest.raises(ValueError, match=r"got first\.bias, first\.weight twice in 'again\.bin'"):
        models.load_weights(Small(), index(tmp_path, {"first.bias": "model-0.bin", "first.weight": "again.bin"}))
