"""Every test here runs in the repaired interpreter, under the memory sanitizer, with programs in shuffled order.

``@pytest.mark.unsanitized(reason="...")`` leaves the sanitizer out; with ``repaired=False`` too, the repairs.
"""

import os

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
        return (yield)
    with repaired():
        return (yield)
