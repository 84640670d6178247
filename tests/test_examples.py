"""Every example runs at its small size, and says what to install where a package is missing."""

import ast
import runpy
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
# example -> what it must have said
SAID = {
    "benchmark_attention": "vitkern, from float64: out ",
    "export_model": "onnxruntime: at most ",
    "fine_tune_swin": "loaded into timm's own class: logits differ by at most ",
    "lora_vit": "merged: ViTForImageClassification gives (1, 2)",
    "recommend": "next for u2: [{'item': ",
    "relevance_map": "rollout, class ",
    "serve_dinov2": "swapped 4 of 4 modules",
    "swin_v2_features": "every stage has a gradient: True",
}
OPTIONAL = {"accelerate", "onnxruntime", "onnxscript", "peft", "timm", "torchvision", "transformers"}


def imports(name):
    for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text())):
        if isinstance(node, ast.Try):
            for one in node.body:
                yield from [one.module] if isinstance(one, ast.ImportFrom) else [alias.name for alias in one.names]


def start(name, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")


def test_every_example_is_listed_and_short():
    assert {path.stem for path in FOLDER.glob("*.py")} == set(SAID)
    listed = (FOLDER / "README.md").read_text()
    for name in SAID:
        assert f"({name}.py)" in listed and len((FOLDER / f"{name}.py").read_text().splitlines()) < 80


@pytest.mark.walk(4)
@pytest.mark.parametrize("name", SAID)
def test_an_example_runs(name, monkeypatch, tmp_path, capsys):
    for package in imports(name):
        pytest.importorskip(package.split(".")[0], reason="the example is about it")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    start(name, monkeypatch, "--tiny")
    assert SAID[name] in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in SAID if list(imports(name))])
def test_a_missing_package_is_one_line(name, monkeypatch):
    module = next(imports(name))
    assert module.split(".")[0] in OPTIONAL
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(SystemExit, match=rf"{module}.*: pip install 'vitkern\[examples\]'"):
        start(name, monkeypatch, "--tiny")
