"""Every operator has a specimen with all that the laboratory wants to know of it, and specimens do not clash."""

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import integration
import pytest

import vitkern.lab.specimens
import vitkern.nn
from vitkern.commands.lab import PARTS
from vitkern.dispatch import HAS_TRITON
from vitkern.lab.differentiating.gradient_check import operators
from vitkern.lab.specimen import OPTIONAL, Specimen, View
from vitkern.lab.specimens import gathered, merged, specimens, views

ROOT = Path(__file__).resolve().parents[1]
EMPTY = {"name": "", "case": None, "draw": None, "tiles": None, "weight": 0, "offsets": None}
REQUIRED = [entry.name for entry in fields(Specimen) if entry.name not in OPTIONAL]


def missing(names, found):
    """A line for each registered operator without a specimen, and for each specimen that lacks something."""
    known = {operator for specimen in found for operator in specimen.operators}
    lines = [f"{name}: no specimen has it in `integration`; expected one in vitkern/lab/specimens" for name in names]
    lines = [line for name, line in zip(names, lines, strict=True) if name not in known]
    return lines + [f"{one.name}: its specimen has no {', '.join(one.lacks())}" for one in found if one.lacks()]


@pytest.mark.skipif(not HAS_TRITON, reason="without Triton no operator is registered")
def test_every_registered_operator_has_a_specimen_that_lacks_nothing():
    names = [op.name for op in operators()]
    assert missing(names, specimens().values()) == []
    assert len(names) >= 7
    assert set(merged("integration")) <= set(names)
    (line,) = missing([*names, "new_attention"], specimens().values())
    assert line.startswith("new_attention: no specimen has it")


def homeless(public, known):
    """A line for each public module without a case, and for each case without a module."""
    lost = [name for name in public if name not in known]
    lines = [f"{name}: no specimen has it in `modules`; expected one in vitkern/lab/specimens" for name in lost]
    return lines + [f"{name}: there are `modules` of this name, and vitkern.nn has none" for name in known - {*public}]


def test_every_public_module_is_of_a_specimen_or_of_no_operator():
    known, apart = set(merged("modules")), set(integration.WITHOUT_OPERATOR)
    assert homeless(vitkern.nn.__all__, known | apart) == []
    assert known.isdisjoint(apart) and len(known) >= 13
    (line,) = homeless([*vitkern.nn.__all__, "NewAttention"], known | apart)
    assert line.startswith("NewAttention: no specimen has it in `modules`")
    (line,) = homeless(vitkern.nn.__all__, known | apart | {"OldAttention"})
    assert line.startswith("OldAttention: ")


def emptied(specimen, field):
    """Without what stands in one field."""
    return replace(specimen, **{field: EMPTY[field] if field in EMPTY else type(getattr(specimen, field))()})


@pytest.mark.parametrize("field", REQUIRED)
def test_a_specimen_that_lacks_something_is_named(field):
    one = emptied(next(iter(specimens().values())), field)
    assert one.lacks() == [field]
    assert f"{one.name}: its specimen has no {field}" in missing([], [one])


def test_names_are_those_of_files_and_functions():
    files = {path.stem for path in Path(vitkern.lab.specimens.__path__[0]).glob("[a-z]*.py")}
    assert files == {*specimens(), *views()}
    for name in specimens():
        for room in ("ops", "reference"):
            assert list((ROOT / "vitkern" / room).glob(f"{name}*")), f"vitkern/{room} has no {name}"
    for name, view in views().items():
        assert view.of in specimens() and view.check and view.modules, name
        assert (ROOT / "vitkern" / "nn" / f"{name}.py").is_file(), name


def repeated(names):
    return [name for name, count in Counter(names).items() if count > 1]


@pytest.mark.parametrize(
    ("field", "name_of"),
    [
        ("check", str),
        ("edges", lambda edge: edge.name),
        ("gradients", str),
        ("layers", lambda layer: f"{layer.op}: {layer}"),
        ("launches", lambda launch: launch.name),
        ("faults", str),
    ],
)
def test_names_are_unique(field, name_of):
    names = [name_of(one) for one in gathered(field)]
    assert len(names) >= 10 and repeated(names) == []
    assert repeated([*names, names[3]]) == [names[3]]


MAPPINGS = "integration", "bounded", "exceptions", "turns", "survivors", "properties", "modules"


@pytest.mark.parametrize("field", MAPPINGS)
def test_no_two_specimens_have_one_key(field, monkeypatch):
    every = *specimens().values(), *views().values()
    assert merged(field).keys() == {key for one in every for key in getattr(one, field, ())}
    twice = next(one for one in every if getattr(one, field))
    monkeypatch.setattr(vitkern.lab.specimens, "_every", lambda: (twice, replace(twice, name="x")))
    with pytest.raises(ValueError, match=f"two have {field} of one key: got .* again in x"):
        merged(field)


def test_views_have_what_the_walk_asks_for():
    """A field that a view shares with a specimen means the same there."""
    assert {entry.name for entry in fields(View)} - {"of"} <= {entry.name for entry in fields(Specimen)}


def words(source):
    """The words of the strings that are no docstrings, and of imported names."""
    tree, prose = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            prose.add(node.body[0].value)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in prose:
            yield from re.findall(r"\w+", node.value)
        elif isinstance(node, ast.ImportFrom):
            yield from (*(node.module or "").split("."), *(alias.name for alias in node.names))


def test_no_part_of_the_laboratory_knows_an_operator_by_name():
    folders = {package for package, _ in PARTS.values()} | {"interpreting"}
    files = [path for folder in folders for path in (ROOT / "vitkern" / "lab" / folder).glob("*.py")]
    files += [ROOT / "vitkern" / "commands" / f"{name}.py" for name in ("check", "info", "lab")]
    known = {*specimens(), *views()}
    assert len(files) > 40
    for path in files:
        assert known.isdisjoint(words(path.read_text())), path
    assert not known.isdisjoint(words("from vitkern.ops.layernorm import layernorm_forward"))
    assert not known.isdisjoint(words("def draw():\n    return {'attention': 9}"))


def test_they_import_no_kernel_and_do_without_triton():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "from vitkern.lab.specimens import gathered, merged, specimens\n"
        "assert specimens() and gathered('launches') and merged('survivors')\n"
        "print([name for name in sys.modules if name.startswith(('vitkern.kernels.', 'vitkern.ops.'))])\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
