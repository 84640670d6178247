"""``python -m vitkern``: info, check, models, accelerate, lab, strec. One module each in `vitkern.commands`."""

import argparse
import os
import sys

from vitkern.commands import accelerate, check, info, lab, models, strec
from vitkern.report import BadInput

COMMANDS = {"info": info, "check": check, "models": models, "accelerate": accelerate, "lab": lab, "strec": strec}


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="vitkern", description="Make vision transformers fast, and check that they stay the same."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for name, module in COMMANDS.items():
        summary = (module.__doc__ or f"{name}: {name}").splitlines()[0].split(": ", 1)[1]  # -OO leaves no docs
        module.add_arguments(commands.add_parser(name, help=summary, description=summary))
    return top


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code: 0 fine, 1 a check failed, 2 bad input (one line on stderr)."""
    arguments = parser().parse_args(argv)
    try:
        return COMMANDS[arguments.command].run(arguments)
    except BadInput as problem:
        print(f"vitkern {arguments.command}: {problem}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
