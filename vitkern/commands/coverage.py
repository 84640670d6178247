"""coverage: what accelerate makes of a small model of each family of timm, transformers and torchvision."""

import fnmatch
import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from vitkern.commands.sealed import offline, quiet
from vitkern.report import BadInput, near_matches, progress

LIBRARIES = ("timm", "transformers", "torchvision")


def add_arguments(parser) -> None:
    parser.add_argument("pattern", nargs="?", default="*", help="a glob on the names of the models, such as 'swin*'")
    parser.add_argument("--library", choices=LIBRARIES, help="all that are installed unless given")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the table goes: standard output unless given")
    parser.add_argument("--json", action="store_true", help="JSON in place of Markdown")


def run(arguments) -> int:
    from vitkern.covering import examine, page

    if arguments.out is not None and (arguments.out.is_dir() or not arguments.out.parent.is_dir()):
        raise BadInput(f"--out is no file in a folder that is there: {arguments.out}")  # before minutes of work
    chosen = _chosen(arguments.library, arguments.pattern)
    found: dict[str, list[examine.Row]] = {library: [] for library in chosen}
    for library, family in _announced(chosen):
        with quiet(), offline():
            found[library].append(examine.examine(family))
    text = (page.as_json if arguments.json else page.markdown)(found, _versions(list(chosen)))
    if arguments.out is None:
        print(text, end="")
    else:
        arguments.out.write_text(text)
        print("\n".join(page.summaries(found)))
    return int(any(row.status in examine.WRONG for rows in found.values() for row in rows))


def _chosen(asked: str | None, pattern: str) -> dict[str, list]:
    """The families of each library whose names match."""
    missing = [library for library in LIBRARIES if find_spec(library) is None]
    if asked in missing or len(missing) == len(LIBRARIES):
        raise BadInput(f"{asked or ' or '.join(LIBRARIES)} is not installed")
    chosen, names = {}, []
    for library in [asked] if asked else LIBRARIES:
        if library in missing:
            print(f"{library} is not installed: left out", file=sys.stderr)
            continue
        families = importlib.import_module(f"vitkern.covering.{library}").families()
        names += [family.name for family in families]
        chosen[library] = [family for family in families if fnmatch.fnmatchcase(family.name.lower(), pattern.lower())]
    if not any(chosen.values()):
        raise BadInput(f"no model matches {pattern!r}.{near_matches(pattern.strip('*'), names)}")
    return {library: families for library, families in chosen.items() if families}


def _announced(chosen: dict[str, list]) -> Iterator[tuple]:
    every = [(library, family) for library, families in chosen.items() for family in families]
    for number, (library, family) in enumerate(every, 1):
        if is_terminal():
            progress(f"[{number}/{len(every)}] {library}: {family.name}")
        yield library, family


def is_terminal() -> bool:
    return sys.stderr.isatty()


def _versions(libraries: list[str]) -> dict[str, str]:
    import vitkern

    return {"vitkern": vitkern.__version__} | {name: importlib.metadata.version(name) for name in ("torch", *libraries)}
