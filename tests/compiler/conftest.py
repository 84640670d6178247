"""Compiles the cells of cases.py in worker processes with a cache of their own, while the tests wait.

VITKERN_COMPILE_WORKERS in the environment says how many; two without it.
"""

import os
import types

import pytest

from tests.compiler.rows import ARCH, NAME, scale_rows
from vitkern import cli
from vitkern.lab.compiling import compile as lab
from vitkern.lab.compiling import golden, matrix, workers


def pytest_configure(config):
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes"):
        raise pytest.UsageError("tests/compiler compiles kernels: start pytest without TRITON_INTERPRET")


@pytest.fixture(scope="session", autouse=True)
def compiled(request):
    """compiled(cell) -> its kernels, once they are there; the cells of all collected tests are compiled from the first
    test on, whichever it is."""
    parameters = [getattr(item, "callspec", None) for item in request.session.items]
    cells = [found.params["cell"] for found in parameters if found and "cell" in found.params]
    count = int(os.environ.get("VITKERN_COMPILE_WORKERS", "2"))
    coming = workers.compile_cells(list(dict.fromkeys(cells)), count)
    there = {}

    def wait():
        done = next(coming)
        there[done.cell] = done

    def get(cell):
        while cell not in there:
            wait()
        assert not there[cell].failed, f"{cell} did not compile: {there[cell].failed}"
        return there[cell].kernels

    if cells:
        wait()  # the workers start here, with the cache of the session and not that of one test
    yield get
    coming.close()


@pytest.fixture(autouse=True)
def _poisoned_allocations():
    """None here: nothing runs, and what launches would read, gigabytes at many images, is never touched."""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """command(*arguments) -> (exit code, stdout, stderr) of the part, in this process, with golden files of its own."""
    monkeypatch.setattr(golden, "FOLDER", tmp_path / "golden")
    monkeypatch.setenv("VITKERN_LAB_RECORDS", str(tmp_path / "records"))
    monkeypatch.setattr(lab, "archs_of", lambda name: (ARCH,))

    def compile_here(cells, jobs):
        for cell in cells:
            yield workers.Done(cell, workers.compile_cell(*cell), "", 0.1)

    monkeypatch.setattr(workers, "compile_cells", compile_here)

    def call(*arguments, run=scale_rows):
        monkeypatch.setattr(matrix, "launches", lambda: {NAME: types.SimpleNamespace(run=run)})
        code = cli.main(["lab", "compile", *arguments])
        return code, *capsys.readouterr()

    return call
