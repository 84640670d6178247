"""``python -m benchmarks``: `benchmarks.command`, and how it ends (`vitkern.commands.outcome`)."""

import os
import sys
from collections.abc import Sequence

from vitkern.commands import outcome

LOST = 3  # exit code: the GPU is lost to the process, which another one may go on from


def main(argv: Sequence[str] | None = None) -> int:
    return outcome.ended("benchmarks", argv, _run)


def _run(argv: list[str]) -> int:
    with outcome.imported():
        from benchmarks import command, session
    try:
        return command.run(command.parsed(argv))
    except session.DeviceLost:
        return LOST


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    if code == LOST:
        os._exit(code)  # what is left of a lost GPU cannot be put away in order
    sys.exit(code)
