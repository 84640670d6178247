"""STRec against tensors that the authors' code computed with injected noise (tests/golden/README.md)."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from vitkern.strec.form import default_alphas
from vitkern.strec.model import STRec
from vitkern.strec.objective import Objective
from vitkern.strec.sampling import gates, sampled_order

safetensors = pytest.importorskip("safetensors", reason="the golden files are safetensors")
GOLDEN = sorted((Path(__file__).parent / "golden").glob("strec_*.safetensors"))


class Golden:
    def __init__(self, path):
        with safetensors.safe_open(path, "pt") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            self.config = json.loads(file.metadata()["config"])
        self.pretrain = self.config["k_list"] is None
        self.double = self["input.noise"].dtype == torch.float64

    def __getitem__(self, name):
        return self.tensors[name]

    def __contains__(self, name):
        return name in self.tensors

    def model(self):
        config = self.config
        n, layers = config["MAX_ITEM_LIST_LENGTH"], config["n_layers"]
        alphas = config["alpha"] if self.pretrain else default_alphas(layers)
        model = STRec(
            config["n_items"], n, config["hidden_size"], layers, config["n_heads"], config["k_list"],
            alphas, form="official", hidden=config["inner_size"], activation=config["sampler_activation"], dropout=0.0,
        ).set_stage("pretrain" if self.pretrain else "finetune")  # fmt: skip
        model = model.double() if self.double else model
        model.load_state_dict(self.weights(), strict=True)
        return model

    def weights(self):
        return {name.removeprefix("weights."): t for name, t in self.tensors.items() if name.startswith("weights.")}

    def inputs(self):
        """Full sequences alone, as the authors' code keeps; the noise has no rows for the others."""
        seq, times = self["input.item_seq"], self["input.timestamps"]
        if "input.item_length" in self:
            full = self["input.item_length"] == seq.shape[1]
            seq, times = seq[full], times[full]
        return seq, times, self["input.noise"]

    def gradients(self):
        return {name.removeprefix("grad.weights."): t for name, t in self.tensors.items() if name.startswith("grad.")}


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request):
    return Golden(request.param)


def test_golden_files_are_there():
    assert len(GOLDEN) == 14


def relative(actual, expected):
    return ((actual - expected).abs().max() / expected.abs().max()).item()


# float32: eight layers of rounding, 1e-6 of the largest entry was seen. float64 in pre-training: the penalty of 1e8
# turns rounding of 1e-16 in a mask into 1e-8 in a logit; the operator rounds there in another order than the authors.
def tolerance(golden):
    return 1e-8 if golden.double else 1e-5


def test_outputs(golden):
    model, (seq, times, noise) = golden.model(), golden.inputs()
    states = list(model.hidden_states(seq, times, noise))
    state = model(seq, times, noise)
    if "output.y" in golden:
        assert relative(state, golden["output.y"]) < tolerance(golden)
    if "output.embed" in golden:
        positions = torch.arange(seq.shape[1]).expand_as(seq)
        assert relative(model.embed(seq, positions), golden["output.embed"]) < tolerance(golden)
    for layer, x in enumerate(states):
        if f"output.hidden.{layer}" in golden:
            error = (x - golden[f"output.hidden.{layer}"]).abs()
            if golden.pretrain:
                # A query that is not sampled has an undefined row in float32: the penalty hides the scores.
                error = error[golden[f"output.mask.{layer + 1}"] > 0.999]
            assert error.max() < tolerance(golden), f"layer {layer}"
    if "output.scores" in golden:
        full = golden["input.item_length"] == seq.shape[1]
        assert relative(state @ model.item_table().T, golden["output.scores"][full]) < tolerance(golden)


def test_sampler(golden):
    model, (seq, times, noise) = golden.model(), golden.inputs()
    score = model.score(seq, times, noise)
    if "output.sampler_norm" in golden:
        assert relative(model.score(seq, times, 0 * noise), golden["output.sampler_norm"]) < tolerance(golden)
    if "output.topk_index" in golden:
        assert torch.equal(sampled_order(seq, score), golden["output.topk_index"])
    if golden.pretrain:
        found = gates(model.form, model.alphas, score)
        assert len(found) == 9
        for layer, gate in enumerate(found):
            assert (gate - golden[f"output.mask.{layer}"]).abs().max() < 1e-5


def test_gradients(golden):
    expected = golden.gradients()
    if not expected:
        assert golden.config["batch"] == 3 and "output.scores" in golden  # the inference files hold none
        return
    model, (seq, times, noise) = golden.model(), golden.inputs()
    state = model.train()(seq, times, noise)
    if "output.loss" in golden:
        full = golden["input.item_length"] == seq.shape[1]
        loss = F.cross_entropy(state @ model.item_table().T, golden["input.pos_items"][full])
        assert relative(loss, golden["output.loss"]) < 1e-5
        (loss * golden["cotangent.loss"]).backward()
    else:
        (state * golden["cotangent.y"]).sum().backward()
    # Key biases and the sampler's last bias have no gradient but rounding: the floor is the file's largest gradient.
    largest = max(t.abs().max() for t in expected.values())
    for name, parameter in model.named_parameters():
        if name not in expected:
            assert name.startswith("ffn.") and parameter.grad is None, name
            continue
        error = (parameter.grad - expected[name]).abs().max()
        assert error <= tolerance(golden) * (expected[name].abs().max() + 0.1 * largest), name


def test_some_golden_file_has_a_gradient_of_the_sampler():
    largest = {p.stem: Golden(p).gradients().get("ffn.dense_1.weight", torch.zeros(1)).abs().max() for p in GOLDEN}
    assert all(largest[name] > 1 for name in ("strec_pre_n12_f64", "strec_pre_n50_f64", "strec_pre_n8_slope_f64"))


def test_the_authors_parameter_count():
    assert sum(p.numel() for p in STRec(1683).parameters()) == 1_808_353


@pytest.mark.parametrize("sampler", ["hash", "random"])
def test_checkpoints_of_the_authors_load_with_every_sampler(sampler):
    """Their code makes the MLP of the sampler also where a table of ages stands in its place."""
    golden = Golden(GOLDEN[0])
    weights, config = golden.weights(), golden.config
    model = STRec(
        config["n_items"], config["MAX_ITEM_LIST_LENGTH"], config["hidden_size"], config["n_layers"],
        config["n_heads"], form="official", sampler=sampler, hidden=config["inner_size"],
    )  # fmt: skip
    assert any(name.startswith("ffn.dense_1") for name in weights)
    for state, target in (
        (weights, model),
        ({f"model.{name}": value for name, value in weights.items()}, Objective(model, "full")),
    ):
        names = set(state)
        target.load_state_dict(state, strict=True)
        assert set(state) == names
    assert torch.equal(model.item_embedding.weight.double(), weights["item_embedding.weight"].double())
    model.load_state_dict(model.state_dict(), strict=True)  # its own have none
    for odd in ("ffn.dense_3.weight", "dense_1.weight"):
        with pytest.raises(RuntimeError, match="Unexpected key"):
            model.load_state_dict(weights | {odd: torch.zeros(1)}, strict=True)
