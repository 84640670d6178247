"""The same command in a new process: Triton reads TRITON_INTERPRET when kernels are decorated."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from vitkern.commands.outcome import INTERRUPTED
from vitkern.report import BadInput

GRACE = 3.0  # seconds that a process has to see for itself that it was interrupted
OUTSIDE = (signal.SIGKILL, signal.SIGTERM)


def again(argv: Sequence[str], *, interpreted: bool) -> int:
    """The exit code of ``python -m vitkern`` with these arguments, where kernels are interpreted or are not."""
    sys.stdout.flush()
    environment = os.environ | {"TRITON_INTERPRET": str(int(interpreted))}
    with subprocess.Popen([sys.executable, "-m", "vitkern", *argv], env=environment) as process:
        code = _code_of(process)
    if code >= 0:
        return code
    if code == -signal.SIGINT:  # it has said so
        return INTERRUPTED
    name = signal.Signals(-code).name
    if -code in OUTSIDE:
        raise BadInput(f"{name} ended its process, as systems do where memory runs short.")
    raise RuntimeError(f"{name} ended the process.")


def _code_of(process: subprocess.Popen) -> int:
    try:
        return process.wait()
    except KeyboardInterrupt:  # a terminal interrupts both, and that process says so
        try:
            return process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            return process.wait()
