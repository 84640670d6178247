"""The layering holds: kernels <- ops <- nn <- models; interop on ops and nn; nothing imports upwards, and imports stay
lazy."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BASE = {"dispatch", "plans", "register", "reference", "testing"}
ALLOWED = {
    "announce": {"interop"},
    "faults": set(),
    "dispatch": {"faults"},
    "twice": set(),
    "tape": {"kernels"},
    "plans": {"dispatch", "faults", "kernels", "tape", "register"},
    "register": {"dispatch", "faults", "plans", "tape", "twice"},
    "testing": set(),
    "reference": {"reference"},
    "ops": {"ops", "kernels", *BASE},
    "nn": {"nn", "ops", "dispatch"},
    "models": {"models", "nn", "ops", "dispatch"},
    "interop": {"announce", "interop", "nn", "ops", "dispatch", "faults"},
    "covering": {"covering", "interop"},
    "explaining": {"explaining", "interop", "ops", "dispatch"},
    "lab": {"lab", "kernels", "nn", "ops", "report", *BASE},
    "strec": {"strec", "models", "nn", "ops", "dispatch", "report"},
    "report": set(),
}
ENTRY_POINTS = {"__init__", "__main__", "cli", "commands", "kernels"}  # may import every layer


def modules():
    return sorted((ROOT / "vitkern").rglob("*.py"))


def imported(path):
    package = path.relative_to(ROOT).with_suffix("").parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: -node.level]) if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def layer_of(path):
    return path.relative_to(ROOT / "vitkern").with_suffix("").parts[0]


def test_nothing_imports_upwards():
    paths = [path for path in modules() if layer_of(path) not in ENTRY_POINTS]
    assert len(paths) > 300
    for path in paths:
        inner = {name.split(".")[1] for name in imported(path) if name.startswith("vitkern.")}
        above = sorted(inner - ALLOWED[layer_of(path)])
        assert not above, f"{path.relative_to(ROOT)} imports {above}"


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=lambda p: p.name)
def test_kernels_import_only_triton(path):
    outside = {name.split(".")[0] for name in imported(path)} - {
        "triton",
        "torch",
        "collections",
        "math",
        "functools",
        "contextlib",
        "contextvars",
        "itertools",
        "typing",
        "kernels",
    }
    assert not outside


def test_kernels_is_no_package():
    assert not (ROOT / "kernels" / "__init__.py").exists(), (
        "it would shadow the package of that name which transformers imports"
    )


def test_nothing_unsafe():
    patterns = (
        r"\bpickle\b",
        r"\beval\((?!\))",
        r"\bexec\(",
        r"weights_only\s*=\s*False",
        r"shell\s*=\s*True",
        r"\burllib\b",
    )
    for path in [*modules(), *sorted((ROOT / "kernels").rglob("*.py"))]:
        text = path.read_text()
        for pattern in patterns:
            found = [m.group() for m in re.finditer(pattern, text) if not text[: m.start()].endswith(".")]
            if path.name == "tape.py":  # it runs what it wrote: names of its own, and literals
                found = [one for one in found if one != "exec("]
            assert not found, f"{found[0]} in {path.relative_to(ROOT)}"


def run_python(code, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_import_is_lazy_and_offline():
    code = """
import socket, sys
def refuse(*a, **k): raise OSError("no network at import")
socket.socket.connect = refuse
import vitkern
for name in ("timm", "transformers", "torchvision"):
    assert name not in sys.modules, name
import torch
assert not torch.cuda.is_initialized()
if "triton" in sys.modules:
    from triton.runtime import driver
    assert getattr(driver, "_active", None) is None, "the Triton driver was touched"
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


def test_everything_imports_and_runs_without_triton():
    code = """
import sys, importlib.util
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "triton" else real(name, *a)
import vitkern, torch, pkgutil, vitkern.ops, vitkern.nn, vitkern.models
importlib.util.find_spec = real
from vitkern.dispatch import HAS_TRITON, why_not
assert not HAS_TRITON
assert not [m for m in sys.modules if m.startswith("vitkern.kernels.")]
model = vitkern.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1)).eval()
with torch.no_grad():
    assert model(torch.randn(1, 3, 224, 224)).shape == (1, 1000)
assert "Triton is not installed" in why_not([torch.zeros(1)])
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
