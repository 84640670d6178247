"""Which tests run in this process, and that none of them changes what a later one computes.

Triton reads TRITON_INTERPRET when a kernel is decorated, so a process either interprets kernels or compiles them. With
it set, only tests/interpreter is collected; without it, everything else.

A test marked ``walk(n)`` goes over all operators, models or tools, or is a whole of what others test in parts: with
--part one in n of its cases runs, others each time, as `make test` has it; without it all do, as in `make prove`.

With pytest-randomly, of the extra ``test``, they run in an order that changes from run to run; its seed is printed.
"""

import gc
import importlib
import os
import random
import sys
import time
from collections import defaultdict

import numpy as np
import pytest
import shares
import state
import torch

from vitkern import cli, dispatch, plans
from vitkern.lab import proofs

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")

if INTERPRETED:
    collect_ignore = ["compiler", "gpu"]
    collect_ignore_glob = ["test_*.py"]
else:
    collect_ignore = ["interpreter"]


CACHES = "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"  # of what was compiled: each process has its own
_globals = state.Globals()
_imported = 0  # modules, when what they hold was last frozen


def pytest_addoption(parser):
    parser.addoption("--part", action="store_true", help="of tests marked `walk`, run a part, drawn by the seed")


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--part"):
        return
    walks = defaultdict(list)
    for item in items:
        if item.get_closest_marker("walk"):
            walks[item.path, item.originalname].append(item)
    drawn, seed = set(), getattr(config.option, "randomly_seed", time.time())
    for (path, name), cases in walks.items():
        (of,) = cases[0].get_closest_marker("walk").args
        drawn |= shares.part((item.nodeid for item in cases), of, f"{seed} {path.name} {name}")
    left = {item for cases in walks.values() for item in cases if item.nodeid not in drawn}
    config.hook.pytest_deselected(items=list(left))
    items[:] = [item for item in items if item not in left]


def pytest_configure(config):
    config.option.randomly_reset_seed = False  # _fresh_seed does it, for torch too and with pytest-randomly or without


def pytest_terminal_summary(terminalreporter, config):
    seed = getattr(config.option, "randomly_seed", None)
    if seed is not None and config.option.randomly_reorganize:
        terminalreporter.write_line(f"the order of this run: --randomly-seed={seed}")


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """What was imported stays: a collection, of which the benchmarks make many, need not look at it again."""
    global _imported
    if len(sys.modules) != _imported:
        _imported = len(sys.modules)
        gc.collect()
        gc.freeze()


def pytest_sessionfinish():
    gc.unfreeze()  # or libraries say at the end that it was never freed


@pytest.fixture(scope="session", autouse=True)
def _own_caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        for name in CACHES:
            patch.setenv(name, str(tmp_path_factory.mktemp(name.lower())))
        yield


@pytest.fixture(scope="session", autouse=True)
def _nothing_proved(tmp_path_factory):
    """No test depends on what is recorded as proved today: each part of the laboratory runs its cases in full."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(proofs, "FILE", tmp_path_factory.mktemp("proofs") / "proofs.jsonl")
        yield


@pytest.fixture(autouse=True)
def _nothing_left_behind(request):
    """Every test finds the process as the one before it did: what changes it has to change it back."""
    dispatch._noted.clear()  # each test may be the first to say why an operator runs in PyTorch
    plans.forget()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # it counts what it compiled, and compiles no more beyond a limit
    _globals.changes()
    before = state.now()
    yield
    left = [*state.differences(before, state.now()), *_globals.changes()]
    if left:
        pytest.fail(f"{request.node.nodeid} leaves behind:\n  " + "\n  ".join(left), pytrace=False)


@pytest.fixture(autouse=True)
def _fresh_seed(_nothing_left_behind):
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_allocations(_nothing_left_behind):
    """Deterministic mode fills torch.empty with NaN: an output element that nobody writes shows."""
    before = torch.get_deterministic_debug_mode()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.set_deterministic_debug_mode(before)


@pytest.fixture(scope="session")
def _commands():
    """What commands import is imported before a test begins: some of it changes the process for good."""
    for name in cli.COMMANDS:
        importlib.import_module(f"vitkern.commands.{name}")


@pytest.fixture
def run(_commands, capsys):
    """run(*arguments) -> (exit code, stdout, stderr) of ``python -m vitkern``, in this process."""

    def call(*arguments):
        code = cli.main([str(argument) for argument in arguments])
        return code, *capsys.readouterr()

    return call
