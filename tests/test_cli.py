"""The command line: exit codes, messages, and what the commands print."""

import os
import subprocess
import sys

import pytest
import torch

import vitkern
from vitkern import nn
from vitkern.lab.specimens import gathered, specimens, views
from vitkern.report import near_matches, table


def test_module_runs_as_a_command():
    done = subprocess.run([sys.executable, "-m", "vitkern", "models", "no-such-model"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("vitkern models: no model matches 'no-such-model'.") and done.stderr.count("\n") == 1


def test_runs_without_docstrings():
    done = subprocess.run([sys.executable, "-OO", "-m", "vitkern", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


def test_version(run):
    assert run("--version") == (0, f"vitkern {vitkern.__version__}\n", "")


def test_info_names_versions_devices_and_operators(run):
    code, out, _ = run("info")
    assert code == 0
    assert f"torch         {torch.__version__}" in out
    for op in specimens():
        assert op in out
    if not torch.cuda.is_available():
        assert "TRITON_INTERPRET=1 was not in the environment" in out


def test_models_lists_parameters_and_sizes(run):
    code, out, _ = run("models", "vit_base_patch16_*")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert code == 0
    assert "86,567,656" in lines["vit_base_patch16_224"] and "3 x 224 x 224" in lines["vit_base_patch16_224"]
    assert "3 x 384 x 384" in lines["vit_base_patch16_384"]
    assert not any(name.startswith("swin") for name in lines)


def test_models_suggests_near_matches(run):
    code, out, err = run("models", "swin_tinny*")
    assert (code, out) == (2, "")
    assert "swin_tiny_patch4_window7_224" in err


def test_check_of_the_pytorch_path_passes(run):
    code, out, err = run("check", "layernorm", "window_attention", "--pytorch", "--dtype", "fp32")
    assert code == 0, out
    assert "verdict: all" in out and "use" in out
    assert "[1/" in err, "progress goes to stderr"


def test_check_fails_on_a_wrong_result(run, monkeypatch):
    case = specimens()["layernorm"].check[0]
    monkeypatch.setattr(
        "vitkern.ops.layernorm.layernorm", lambda x, weight, bias, eps, residual=None: x * weight + bias
    )
    code, out, _ = run("check", "layernorm", "--pytorch", "--dtype", "fp32")
    assert code == 1
    assert f"FAILED  {case} fp32: out fails" in out and "verdict:" in out.splitlines()[-1]


def test_check_fails_on_an_operator_that_raises(run, monkeypatch):
    def broken(*args, **kwargs):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("vitkern.ops.layernorm_mlp.layernorm_mlp", broken)
    code, out, _ = run("check", "layernorm_mlp", "--pytorch", "--dtype", "fp32")
    assert code == 1
    assert "RuntimeError: out of luck" in out


def test_check_fails_on_a_wrong_gradient(run, monkeypatch):
    from vitkern.ops import layernorm as module

    right = module.layernorm

    def detached(x, weight, bias, eps, residual=None):
        return right(x, weight, 0.5 * bias + 0.5 * bias.detach(), eps, residual)

    monkeypatch.setattr(module, "layernorm", detached)
    code, out, _ = run("check", "layernorm", "--pytorch", "--dtype", "fp32")
    assert code == 1
    assert ": dbias fails" in out and ": out fails" not in out


def test_check_takes_the_first_words_of_an_operator(run):
    code, out, _ = run("check", "local", "--pytorch", "--dtype", "fp32")
    assert code == 0 and "local_attention" in out and "window_attention" not in out and "cases pooled" in out


@pytest.mark.parametrize("family", views())
def test_check_of_a_family_is_that_of_its_cases(run, family):
    view = views()[family]
    code, out, _ = run("check", family.removesuffix("_attention"), "--pytorch", "--dtype", "fp32")
    assert code == 0 and f"verdict: all {len(view.check)} checks passed" in out
    assert all(case.name in out for case in view.check)
    assert f"{family} has no kernel of its own: these are its cases of {view.of}, too few to pool" in out
    assert "cases pooled" not in out


def test_every_case_of_a_family_is_that_of_a_module():
    modules = {name.lower() for name in dir(nn)}
    for name, view in views().items():
        assert name.replace("_", "") in modules
        assert {(case.family, case.op) for case in view.check} == {(name, view.of)}
    assert {case.family for specimen in specimens().values() for case in specimen.check} == {""}


def test_check_rejects_an_unknown_operator(run):
    code, _, err = run("check", "atention")
    assert code == 2
    assert "no operator is called 'atention'. Near: attention" in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_check_on_a_missing_gpu_is_bad_input(run):
    code, _, err = run("check", "--device", "cuda")
    assert code == 2 and "torch sees no GPU" in err


def test_check_interprets_kernels_without_a_gpu():
    """It starts itself again with TRITON_INTERPRET=1, and runs kernels there, not PyTorch."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "vitkern", "check", "layernorm", "--dtype", "fp32", "--device", "cpu", "--all"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kernels in Triton's interpreter" in done.stdout
    assert "dweight" in done.stdout and done.stdout.splitlines()[-1].startswith("verdict: all")


def test_every_operator_has_cases_with_gradients():
    generator = torch.Generator().manual_seed(0)
    for case in gathered("check"):
        inputs = case.inputs(generator)
        assert case.gradients
        assert set(case.gradients) <= set(inputs), case
        constant = {"before_bias", "mask", "key_padding_mask", "row_scale", "index"}
        constant |= {"norm_bias", "k_bias"}  # RMSNorm has none; in a softmax one of keys cancels
        assert set(inputs) - set(case.gradients) <= constant, case


def test_table_sets_numbers_right():
    assert table(("name", "n"), [("a", "1"), ("bb", "20")]) == "name   n\na      1\nbb    20"


def test_near_matches_is_empty_without_any():
    assert near_matches("zzz", ["vit", "swin"]) == ""
    assert near_matches("vitt", ["vit", "swin"]) == " Near: vit."
