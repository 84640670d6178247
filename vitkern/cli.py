"""``python -m vitkern``: `COMMANDS`, a module each in `vitkern.commands`."""

import argparse
import importlib
from collections.abc import Sequence
from types import ModuleType

from vitkern import __version__
from vitkern.commands import outcome

COMMANDS = ("info", "check", "models", "accelerate", "coverage", "explain", "lab", "strec")


def parser(modules: dict[str, ModuleType]) -> argparse.ArgumentParser:
    top = outcome.Parser(
        prog="vitkern", description="Make vision transformers fast, and check that they stay the same."
    )
    top.add_argument("--version", action="version", version=f"vitkern {__version__}")
    choices = top.add_subparsers(dest="command", required=True, metavar="{" + ",".join(COMMANDS) + "}")
    for name, module in modules.items():
        summary = (module.__doc__ or f"{name}: {name}").splitlines()[0].split(": ", 1)[1]  # -OO leaves no docs
        module.add_arguments(choices.add_parser(name, help=summary, description=summary))
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code, which ``--help`` explains (`vitkern.commands.outcome`)."""
    return outcome.ended("vitkern", argv, _run, COMMANDS)


def _run(argv: list[str]) -> int:
    with outcome.imported():
        modules = {name: importlib.import_module(f"vitkern.commands.{name}") for name in COMMANDS}
    arguments = parser(modules).parse_args(argv, argparse.Namespace(argv=argv))  # for `again`
    return modules[arguments.command].run(arguments)
