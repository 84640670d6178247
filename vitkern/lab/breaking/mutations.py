"""Faults for the laboratory to find: every place where an operator applies to a kernel file, and a fixed choice of
them."""

import ast
import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from vitkern.lab.breaking.launcher_operators import LAUNCHER
from vitkern.lab.breaking.mutation_operators import KERNEL
from vitkern.lab.breaking.mutation_scope import Scope, scope_of

PER_FILE = 20  # kernel mutants that a file is given, where it has as many places
LAUNCHERS_PER_FILE = 3


class NoMutant(ValueError):
    """A change leaves the source as it was, or leaves no Python."""


@dataclass(frozen=True)
class Mutant:
    """A file of kernels/ with one change. ``name`` is ``stem.function:operator:number``, the number counting the
    places of that operator in that function.
    """

    file: str  # path within kernels/, without .py
    name: str
    operator: str
    function: str
    line: int
    before: str
    after: str
    source: str

    @property
    def launcher(self) -> bool:
        return self.operator in LAUNCHER

    @property
    def change(self) -> str:
        """One line: what became what."""
        return f"{' '.join(self.before.split())} -> {' '.join(self.after.split())}"


def kernels_folder() -> Path:
    import vitkern.kernels as package

    return Path(package.__path__[0])


def kernel_files() -> dict[str, Path]:
    """Name without .py -> file, for every file of kernels/ that something can be broken in."""
    return {file_of(path): path for path in sorted(kernels_folder().rglob("*.py")) if all_mutants(path)}


def file_of(path: Path) -> str:
    """``loop/stream`` of a file of kernels/."""
    folder = kernels_folder()
    return path.relative_to(folder).with_suffix("").as_posix() if path.is_relative_to(folder) else path.stem


def checked(source: str, original: str) -> str:
    """``source``, if it is another program than ``original``.

    Raises:
        NoMutant: it is the same, or no Python.
    """
    try:
        same = ast.dump(ast.parse(source)) == _tree(original)
    except SyntaxError as error:
        raise NoMutant(f"the change leaves no Python: {error}") from None
    if same:
        raise NoMutant("the mutant is the original")
    return source


@functools.lru_cache(maxsize=4)
def _tree(source: str) -> str:
    return ast.dump(ast.parse(source))


def all_mutants(path: Path, source: str | None = None) -> list[Mutant]:
    """Every mutant of a file, in the order of its source, not yet `checked`."""
    return list(_all_mutants(path, path.read_text() if source is None else source))


@functools.cache
def _all_mutants(path: Path, source: str) -> list[Mutant]:
    found, seen, data, file = [], {source}, source.encode(), file_of(path)
    for function, nodes, scope, operators in _places(source):
        numbers = Counter()
        for node in nodes:
            for operator, apply in operators.items():
                for target, text in apply(node, scope):
                    numbers[operator] += 1
                    start, end = scope.span(target)
                    changed = (data[:start] + text.encode() + data[end:]).decode()
                    if changed not in seen:
                        seen.add(changed)
                        name = f"{path.stem}.{function}:{operator}:{numbers[operator]}"
                        before = scope.text(target)
                        found.append(Mutant(file, name, operator, function, target.lineno, before, text, changed))
    return found


def _places(source: str) -> Iterator[tuple[str, Iterable[ast.AST], Scope, dict]]:
    """(function, its nodes, their scope, the operators for them); the numbers of the module come as functions."""
    tree, data = ast.parse(source), source.encode()
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and "constexpr(" in ast.unparse(node)
    }
    names = (*constants, "LOG2E", "LN2")
    for name, value in constants.items():
        yield name, ast.walk(value), Scope(data, (), (), (), ()), {"wrong-constant": KERNEL["wrong-constant"]}
    for function in tree.body:
        if isinstance(function, ast.FunctionDef):
            jitted = any("jit" in ast.unparse(decorator) for decorator in function.decorator_list)
            body = [statement for statement in function.body if not _is_docstring(statement)]
            nodes = sorted(
                (node for statement in body for node in ast.walk(statement) if hasattr(node, "lineno")),
                key=lambda node: (node.lineno, node.col_offset, -node.end_lineno, -node.end_col_offset),
            )
            yield function.name, nodes, scope_of(function, data, names), KERNEL if jitted else LAUNCHER


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


@functools.cache
def chosen(path: Path, source: str | None = None) -> tuple[Mutant, ...]:
    """A fixed choice of a file's mutants, `PER_FILE` of its kernels and `LAUNCHERS_PER_FILE` of its launchers, spread
    over functions and operators.

    The order in which places are taken comes from a hash of their names: a new place leaves the others' order alone.
    """
    source = path.read_text() if source is None else source
    mutants = all_mutants(path, source)
    names = set()
    for launcher, count in ((False, PER_FILE), (True, LAUNCHERS_PER_FILE)):
        names |= _spread([mutant for mutant in mutants if mutant.launcher is launcher], source, count)
    return tuple(mutant for mutant in mutants if mutant.name in names)


def _spread(mutants: list[Mutant], original: str, count: int) -> set[str]:
    left = sorted(mutants, key=lambda mutant: hashlib.sha256(mutant.name.encode()).digest())
    operators, functions, lines, picked = Counter(), Counter(), Counter(), []
    while left and len(picked) < count:
        best = min(left, key=lambda m: 2 * operators[m.operator] + functions[m.function] + lines[m.line])
        left.remove(best)
        try:
            checked(best.source, original)
        except NoMutant:
            continue
        picked.append(best)
        operators[best.operator] += 1
        functions[best.function] += 1
        lines[best.line] += 1
    return {mutant.name for mutant in picked}
