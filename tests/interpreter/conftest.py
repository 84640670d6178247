"""Every test here runs in the repaired interpreter, under the memory sanitizer, with programs in shuffled order.

``@pytest.mark.unsanitized(reason="...")`` leaves the sanitizer out; with ``repaired=False`` too, the repairs.
"""

import os
from contextlib import contextmanager

import pytest
import torch

ORDER = os.environ.get("VITKERN_PROGRAM_ORDER", "random")


def pytest_configure(config):
    config.addinivalue_line(
        "markers", "unsanitized(reason, repaired=True): run without the memory sanitizer, because ..."
    )
    if os.environ.get("TRITON_INTERPRET", "0").lower() not in ("1", "true", "on", "yes"):
        raise pytest.UsageError(
            "tests/interpreter interprets kernels: start pytest with TRITON_INTERPRET=1 in the environment"
        )
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)


@contextmanager
def language_kept():
    """Triton's own interpreter leaves its language patched after a kernel has called another function."""
    import triton.language as tl

    from vitkern.lab.interpreting.patches import Patches

    owners = (tl, tl.core, tl.math, tl.core.tensor, tl.core.dtype, tl.core.tensor_descriptor_base)
    before, patches = [dict(vars(owner)) for owner in owners], Patches()
    try:
        yield
    finally:
        for owner, attributes in zip(owners, before, strict=True):
            patches.adopt(owner, attributes)
        patches.undo()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    from vitkern.lab.interpreting.interpreter import repaired
    from vitkern.lab.interpreting.sanitizer import sanitized
    from vitkern.lab.specimens import gathered

    marker = item.get_closest_marker("unsanitized")
    if marker is None:
        with sanitized(order=ORDER, scratch=gathered("scratch")):
            return (yield)
    if not marker.kwargs.get("reason"):
        pytest.fail(f"{item.nodeid}: unsanitized without a reason")
    if not marker.kwargs.get("repaired", True):
        with language_kept():
            return (yield)
    with repaired():
        return (yield)
