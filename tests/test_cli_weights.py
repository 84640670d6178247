"""Whose weights are compared: a user's as they are and all of them, finite ones, and none that were fetched unasked."""

import gc
import shutil
import socket
import threading

import folders
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from vitkern.commands import equality, peers

TINY = "test_vit.r160_in1k"
FAST = ("--seconds", "0")


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    pytest.importorskip("transformers", reason="transformers is not installed")
    return folders.write_vit(tmp_path_factory.mktemp("vit"))


@pytest.fixture
def folder(vit, tmp_path):
    """A copy, to be spoilt."""
    return shutil.copytree(vit, tmp_path / "model")


@pytest.fixture(autouse=True)
def _no_threads_left():
    """Those of a loading that failed end with the error that holds them."""
    before = set(threading.enumerate())
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(10)


@pytest.fixture
def reached(monkeypatch):
    """What was asked of the network, which answers nothing."""
    asked = []

    def refuse(host, *rest, **options):
        asked.append(host)
        raise OSError("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: refuse(address))
    return asked


def test_the_weights_of_a_folder_stay_as_they_are(run, vit):
    import transformers

    peer = peers.build(str(vit))
    saved = transformers.ViTForImageClassification.from_pretrained(vit).state_dict()
    assert peer.weights == f"weights of {vit}" and peer.model.state_dict().keys() == saved.keys()
    assert all(torch.equal(value, saved[name]) for name, value in peer.model.state_dict().items())
    code, out, err = run("accelerate", vit, *FAST)
    assert code == 0, err
    assert f"weights of {vit}" in out and "random" not in out
    assert out.splitlines()[-1] == "verdict: the same results"


def test_a_folder_may_lie_here(run, folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert run("accelerate", folder.name, *FAST)[0] == 0


@pytest.mark.parametrize("what", folders.REFUSED)
def test_a_folder_that_holds_no_whole_model_is_one_line(run, folder, monkeypatch, what):
    monkeypatch.setattr("builtins.input", lambda *text: pytest.fail("somebody was asked"))
    folders.REFUSED[what](folder)
    code, out, err = run("accelerate", folder, *FAST)
    assert code == 2 and "verdict" not in out, out
    assert len(err.splitlines()) <= 3 and err.splitlines()[-1].startswith("vitkern accelerate: "), err
    assert not (folder / folders.MARKER).exists()


@pytest.mark.parametrize("what", folders.UNREAD)
def test_what_an_index_names_is_looked_at_before_it_is_read(run, folder, monkeypatch, what):
    import transformers

    for kind in (transformers.AutoModelForImageClassification, transformers.AutoModel):
        monkeypatch.setattr(kind, "from_pretrained", lambda *_, **__: pytest.fail("it was opened"))
    spoil, said = folders.UNREAD[what]
    spoil(folder)
    code, out, err = run("accelerate", folder, *FAST)
    assert code == 2 and "verdict" not in out, out
    assert len(err.splitlines()) <= 3 and said in err.splitlines()[-1], err


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_weights_in_several_files_are_read(run, folder, kind):
    folders.shard(folder, kind)
    code, out, err = run("accelerate", folder, *FAST)
    assert code == 0 and out.splitlines()[-1] == "verdict: the same results", err


def test_weights_that_lack_are_named(run, folder):
    folders.REFUSED["3 of its weights"](folder)
    _, _, err = run("accelerate", folder, *FAST)
    assert "37 of 40 of ViTForImageClassification are missing or of another shape (vit.embeddings." in err


def test_a_checkpoint_without_a_head_is_compared_without_one(run, folder):
    import transformers

    transformers.ViTModel(transformers.ViTConfig.from_pretrained(folder)).save_pretrained(folder)
    code, out, err = run("accelerate", folder, *FAST)
    assert code == 0, err
    assert f"weights of {folder}" in out


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
def test_results_that_are_not_finite_are_not_the_same(run, tmp_path, value):
    import timm

    state, path = timm.create_model(TINY).state_dict(), tmp_path / "weights.safetensors"
    state["norm.weight"] = state["norm.weight"].clone()
    state["norm.weight"][0] = value
    save_file(state, path)
    code, out, err = run("accelerate", TINY, "--weights", path, *FAST)
    assert code == 1, err
    assert "NOT FINITE" in out and "0 of 2 images" in out
    assert out.splitlines()[-1] == "verdict: NOTHING IS SHOWN: the original's own results are not finite"


def test_a_folder_of_nan_is_not_the_same(run, folder):
    folders.weights(folder, lambda state: {name: value * float("nan") for name, value in state.items()})
    code, out, _ = run("accelerate", folder, *FAST)
    assert code == 1 and "NOTHING IS SHOWN" in out


def test_weights_of_another_kind_are_refused(run, tmp_path):
    import timm

    path = tmp_path / "weights.pth"
    torch.save({name: value.to(torch.int8) for name, value in timm.create_model(TINY).state_dict().items()}, path)
    code, out, err = run("accelerate", TINY, "--weights", path, *FAST)
    assert (code, out) == (2, "") and "is torch.int8, for torch.float32" in err


class Times(nn.Module):
    """Scores (B, 4): a product with a parameter, times a factor."""

    def __init__(self, factor, used=True):
        super().__init__()
        self.weight, self.unused = nn.Parameter(torch.ones(12, 4)), nn.Parameter(torch.ones(4))
        self.factor, self.used = factor, used

    def forward(self, x):
        out = x.flatten(1) @ self.weight * self.factor
        return out + self.unused if self.used else out


IMAGES = torch.linspace(-1, 1, 36).reshape(3, 3, 2, 2)


def test_only_the_accelerated_model_being_not_finite_is_a_difference():
    result = equality.compare_models(Times(1.0), Times(float("nan")), IMAGES)
    assert not result.passed and result.finite and result.verdict == "RESULTS DIFFER" and result.top1 == 0


@pytest.mark.parametrize("factor", (float("nan"), float("inf")))
def test_the_same_nonsense_twice_shows_nothing(factor):
    result = equality.compare_models(Times(factor), Times(factor), IMAGES, train=True)
    assert not result.passed and not result.finite and "NOTHING IS SHOWN" in result.verdict


@pytest.mark.parametrize("first", (True, False))
def test_a_gradient_that_one_of_both_lacks_is_a_difference(first):
    result = equality.compare_models(Times(1.0, used=first), Times(1.0, used=not first), IMAGES, train=True)
    assert "d unused" in [name for name, comparison, *_ in result.rows if not comparison.passed]


def test_outputs_that_are_no_scores_have_no_class():
    model = nn.Conv2d(3, 4, 1)
    result = equality.compare_models(model, model, IMAGES)
    assert result.passed and result.top1 is None and "top-1" not in str(result)


@pytest.mark.parametrize(
    ("name", "line"),
    (
        ("lraspp_mobilenet_v3_large", "the model gives OrderedDict; expected class scores"),
        ("fasterrcnn_mobilenet_v3_large_320_fpn", "the model gives list; expected class scores"),
        ("r3d_18", "r3d_18 cannot take a photograph"),
        ("raft_small", "raft_small cannot take a photograph"),
        ("hf-hub:timm/nothing", "of what is on this machine (--pretrained lets timm fetch it)"),
        ("google/nothing", "--pretrained lets transformers fetch it"),
        ("test_vit.no_such_tag", "could not be built"),
    ),
)
def test_nothing_is_fetched_and_what_is_no_classifier_is_one_line(run, reached, name, line):
    code, out, err = run("accelerate", name, *FAST)
    assert code == 2 and "verdict" not in out
    assert line in err and len(err.splitlines()) <= 3 and reached == []


def test_what_reaches_out_all_the_same_is_stopped(monkeypatch):
    from vitkern.commands.sealed import NoNetwork, offline

    with offline(), pytest.raises(NoNetwork, match=r"example\.org was to be reached"):
        socket.create_connection(("example.org", 80), timeout=1)
    here = socket.socket(socket.AF_INET)
    with here, pytest.raises(ConnectionRefusedError):  # and afterwards it is as before
        here.connect(("127.0.0.1", 9))


def test_published_weights_may_be_fetched(run, reached):
    code, _, err = run("accelerate", "lraspp_mobilenet_v3_large", "--pretrained", *FAST)
    assert code == 2 and reached and "could not be built" in err
