"""`vitkern.kernels` is the top-level kernels/ folder in every way of installing, and no import of transformers finds it
instead of its own."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vitkern

ROOT = Path(__file__).resolve().parent.parent
LOCATE = "import vitkern.kernels.machine.launch as m, vitkern; print(m.__file__)"


def run(code, cwd, **environment):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**env, **environment}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """What a wheel is made of, where building it may leave things."""
    if int(importlib.metadata.version("setuptools").split(".")[0]) < 77:
        pytest.skip("building without isolation needs the setuptools that pyproject.toml asks for, 77 or newer")
    source = tmp_path_factory.mktemp("source")
    for name in ("kernels", "vitkern"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    return source


@pytest.fixture(scope="module")
def wheel(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        str(out),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == "", "pip shows what setuptools has to say of the package"
    return next(out.glob("*.whl"))


def test_the_version_of_a_wheel_is_that_of_the_package_and_has_changes(wheel):
    assert wheel.name.startswith(f"vitkern-{vitkern.__version__}-")
    assert f"\n## {vitkern.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_wheel_holds_the_kernels_once_and_no_top_level_kernels(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    kernels = {f"vitkern/{p.relative_to(ROOT)}" for p in (ROOT / "kernels").rglob("*.py")}
    assert kernels <= set(names)
    golden = Path("vitkern/lab/compiling/golden")
    assert {str(golden / p.name) for p in (ROOT / golden).glob("*.json")} <= set(names)
    assert not [n for n in names if n.startswith("kernels/")]
    assert "vitkern/py.typed" in names


def test_wheel_runs_outside_and_beside_the_repository(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert run(LOCATE, tmp_path, PYTHONPATH=str(site)) == str(site / "vitkern" / "kernels" / "machine" / "launch.py")


def test_an_editable_install_has_no_warnings(source, tmp_path):
    """pip shows the warnings that the build gives while it calls it."""
    code = """
import sys, warnings
from setuptools import build_meta
with warnings.catch_warnings(record=True) as found:
    build_meta.build_editable(sys.argv[1])
assert not found, [str(warning.message) for warning in found]
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(list(tmp_path.glob("*.whl"))) == 1


def test_uninstalled_from_the_repository_root_where_transformers_imports_too():
    shown = run(f"from transformers import ViTModel; print(ViTModel.__name__)\n{LOCATE}", ROOT)
    assert shown.splitlines() == ["ViTModel", str(ROOT / "kernels" / "machine" / "launch.py")]
