"""Everything public is annotated, and what a type checker sees of the package is what there is. That the types fit
together is for `make lint`."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import vitkern
import vitkern.nn

ROOT = Path(vitkern.__file__).parent
ROOMS = ("vitkern.nn", "vitkern.ops", "vitkern.models")
ALONE = (
    "vitkern.dispatch",
    "vitkern.explaining.explanation",
    "vitkern.explaining.overlay",
    "vitkern.faults",
    "vitkern.interop.accelerate",
    "vitkern.interop.adapter",
    "vitkern.interop.capture",
    "vitkern.interop.graphs",
    "vitkern.interop.report",
    "vitkern.register",
    "vitkern.report",
    "vitkern.testing",
)


def modules():
    for room in ROOMS:
        package = importlib.import_module(room)
        yield room
        yield from (module.name for module in pkgutil.walk_packages(package.__path__, f"{room}."))
    yield from ALONE


def is_public(name):
    return not name.startswith("_") or name in ("__init__", "__call__", "__enter__", "__exit__", "__iter__")


def functions(owner, prefix):
    """(name, function) of those that ``owner`` defines; of classes their methods, the getters of properties too."""
    for name, value in vars(owner).items():
        value = inspect.unwrap(getattr(value, "__func__", value))
        value = getattr(value, "fget", value) if isinstance(value, property) else value
        home = owner.__name__ if inspect.ismodule(owner) else owner.__module__
        if not is_public(name) or getattr(value, "__module__", None) != home:
            continue
        if inspect.isclass(value) and value is not owner:
            yield from functions(value, f"{prefix}.{name}")
        elif inspect.isfunction(value):
            yield f"{prefix}.{name}", value


def missing(name, function):
    signature = inspect.signature(function)
    for argument in signature.parameters.values():
        if argument.annotation is inspect.Parameter.empty and argument.name not in ("self", "cls"):
            yield f"{name}: {argument.name} has no annotation"
    if signature.return_annotation is inspect.Signature.empty:
        yield f"{name}: the result has no annotation"


def lacks(owner, prefix):
    return [line for name, function in functions(owner, prefix) for line in missing(name, function)]


@pytest.mark.parametrize("name", [*modules()])
def test_every_public_function_is_annotated(name):
    assert not lacks(importlib.import_module(name), name)


@pytest.mark.parametrize("name", [name for name in vitkern.__all__ if name != "__version__"])
def test_every_public_name_is_annotated(name):
    assert not list(missing(name, getattr(vitkern, name)))


def test_every_module_of_nn_is_looked_at():
    found = [name for module in modules() for name, _ in functions(importlib.import_module(module), module)]
    assert set(vitkern.nn.__all__) <= {name.split(".")[-2] for name in found if name.endswith(".forward")}


def test_what_is_not_annotated_is_named():
    class Module:
        def forward(self, x, *rest: int):
            return x

        @property
        def size(self) -> int:
            return 1

    assert lacks(Module, "Module") == [
        "Module.forward: x has no annotation",
        "Module.forward: the result has no annotation",
    ]


def test_type_checkers_see_the_names_that_there_are():
    tree = ast.parse((ROOT / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and node.test.id == "TYPE_CHECKING")
    seen = {alias.asname: node.module for node in block.body for alias in node.names if alias.name == alias.asname}
    assert seen == vitkern._PUBLIC
