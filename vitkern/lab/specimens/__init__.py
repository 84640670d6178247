"""All that the laboratory knows of each operator: a file for each, and in it ``SPECIMEN``, a `Specimen` or a `View`.

The parts of the laboratory, the benchmarks and the tests know no operator by name; they walk this folder. Files whose
name begins with an underscore hold what several specimens have in common.
"""

import functools
import importlib
import pkgutil

from vitkern.lab.specimen import Specimen, View


@functools.cache
def _every() -> tuple[Specimen | View, ...]:
    names = sorted(found.name for found in pkgutil.iter_modules(__path__) if not found.name.startswith("_"))
    return tuple(importlib.import_module(f"{__name__}.{name}").SPECIMEN for name in names)


def specimens() -> dict[str, Specimen]:
    """Operator -> its specimen, in alphabetical order."""
    return {one.name: one for one in _every() if isinstance(one, Specimen)}


def views() -> dict[str, View]:
    """Family without a kernel of its own -> what is known of it."""
    return {one.name: one for one in _every() if isinstance(one, View)}


def gathered(field: str) -> tuple:
    """What stands in the tuple ``field`` of every specimen, and of every view that has one."""
    return tuple(entry for _, entry in owned(field))


def owned(field: str) -> tuple[tuple[str, object], ...]:
    """As `gathered`, each with the operator whose kernels it is about."""
    every = ((one.of if isinstance(one, View) else one.name, getattr(one, field, ())) for one in _every())
    return tuple((operator, entry) for operator, entries in every for entry in entries)


def merged(field: str) -> dict:
    """The mapping ``field`` of all specimens, and of the views that have one, as one.

    Raises:
        ValueError: two have the same key.
    """
    found = {}
    for one in _every():
        for key, value in getattr(one, field, {}).items():
            if key in found:
                raise ValueError(f"specimens: two have {field} of one key: got {key!r} again in {one.name}")
            found[key] = value
    return found
