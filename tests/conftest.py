"""Which tests run in this process.

Triton reads TRITON_INTERPRET when a kernel is decorated, so a process either interprets kernels or compiles them. With
it set, only tests/interpreter is collected; without it, everything else.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes")

if INTERPRETED:
    collect_ignore = ["compiler", "gpu"]
    collect_ignore_glob = ["test_*.py"]
else:
    collect_ignore = ["interpreter"]


@pytest.fixture(autouse=True)
def _fresh_seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _poisoned_allocations():
    """Deterministic mode fills torch.empty with NaN: an output element that nobody writes shows."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)
