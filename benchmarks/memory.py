"""Running out of memory is a result, not a crash: on a CPU allocations fail before the system ends the process."""

from contextlib import contextmanager
from pathlib import Path

import torch

SHARE = 0.8  # of the memory that is available


def _kilobytes(path: str, name: str) -> int | None:
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(name)), None)


@contextmanager
def bounded(device: torch.device):
    """Within the block this process may take `SHARE` of what is available; a GPU sets its own bound. Linux only."""
    available, used = _kilobytes("/proc/meminfo", "MemAvailable:"), _kilobytes("/proc/self/status", "VmData:")
    if device.type == "cuda" or available is None or used is None:
        yield
        return
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    most = round((used + SHARE * available) * 1024)
    hard = before[1]
    resource.setrlimit(resource.RLIMIT_DATA, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
