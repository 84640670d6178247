"""Compiles the selected cells of cases.py in worker processes with a cache of their own, while the tests wait.

VITKERN_COMPILE_WORKERS in the environment says how many; two without it.

Workers, because a compiler can abort its process: the tests of that cell fail then, and say so.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.compiler.cases import compile_cell, start_worker


def pytest_configure(config):
    if os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes"):
        raise pytest.UsageError("tests/compiler compiles kernels: start pytest without TRITON_INTERPRET")


@pytest.fixture(scope="session")
def compiled(request, tmp_path_factory):
    """(case, arch) -> a future of its kernels."""
    cache = str(tmp_path_factory.mktemp("triton"))
    cells = [item.callspec.params["cell"] for item in request.session.items if "compiled" in item.fixturenames]
    context = multiprocessing.get_context("spawn")
    workers = int(os.environ.get("VITKERN_COMPILE_WORKERS", "2"))
    with ProcessPoolExecutor(workers, mp_context=context, initializer=start_worker, initargs=(cache,)) as pool:
        yield {cell: pool.submit(compile_cell, *cell) for cell in dict.fromkeys(cells)}
        pool.shutdown(cancel_futures=True)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
