"""What has been proved of each operator, kept beside the sources that it was proved of, so that it need not be proved
at full counts again until they change.

`FILE` has a line for each operator: the digest of its sources, and for each part of the laboratory how many cases ran,
when, and whether all passed. A part runs an operator in full where its digest is another, where the record is of fewer
cases, and where ``--all`` asks for it; else a tenth of the cases, drawn anew each time (`new_seed`), so that what is
taken as proved goes on being tried. ``--update`` records a run; nothing else writes.

A record proves that these modules, with these minors of Triton and torch, passed that many cases of the part as it was
on that day: those of `sources`. It does not prove it of what lies around them: the laboratory itself (a case that was
added raises the count, a sanitizer that sees more does not), `vitkern.register`, `vitkern.dispatch`, Python, the
machine. After a change there, run with ``--all``. Comments, docstrings and formatting are no part of a digest.
"""

import ast
import functools
import json
import os
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

from vitkern import kernels
from vitkern.lab import records, trees
from vitkern.report import BadInput, near_matches

PARTS = ("fuzz", "edges", "gradients", "offsets")
FILE = Path(__file__).with_name("proofs.jsonl")
PACKAGE = Path(__file__).parents[1]
ROOMS = ("kernels", "ops", "reference")  # of vitkern: imports are followed within these
SHARE = 10  # of an operator that has not changed, one case in so many
Case = TypeVar("Case")


@dataclass(frozen=True)
class Run:
    """Of one part, for one operator."""

    count: int
    date: str
    passed: bool


@dataclass(frozen=True)
class Proof:
    """What has been run of an operator whose sources had this digest."""

    digest: str
    runs: dict[str, Run] = field(default_factory=dict)  # by part


def operators() -> tuple[str, ...]:
    """Modules of vitkern.ops with a formula in vitkern.reference."""
    names = sorted(path.stem for path in (PACKAGE / "reference").glob("[!_]*.py"))
    return tuple(name for name in names if _file(f"vitkern.ops.{name}"))


def _file(module: str) -> Path | None:
    """That of a module of vitkern; None where there is none."""
    _, room, *rest = module.split(".")
    path = Path(kernels.__path__[0] if room == "kernels" else PACKAGE / room).joinpath(*rest)
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def _module(module: str, file: Path) -> tuple[str, frozenset[str]]:
    """(text, names of what it imports, of which some are no modules)."""
    tree, package, found = ast.parse(file.read_text()), module.split("."), set()
    if file.name != "__init__.py":
        package.pop()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            around = package[: len(package) - node.level + 1] if node.level else []
            name = ".".join([*around, *filter(None, [node.module])])
            found |= {name, *(f"{name}.{alias.name}" for alias in node.names)}
    return trees.text(tree), frozenset(found)


def sources(operator: str) -> dict[str, str]:
    """The modules that an operator is made of, as texts: its own in kernels, ops, reference and the laboratory's
    specimens, and what these import of the first three.

    Raises:
        BadInput: there is no such operator.
    """
    if operator not in operators():
        near = near_matches(operator, operators())
        raise BadInput(f"proofs: unknown operator: got {operator!r}; expected one of {', '.join(operators())}.{near}")
    waiting, found = [f"vitkern.{room}.{operator}" for room in (*ROOMS, "lab.specimens")], {}
    followed = tuple(f"vitkern.{room}." for room in ROOMS)
    while waiting:
        module = waiting.pop()
        file = _file(module)
        if module not in found and file is not None:
            found[module], imported = _module(module, file)
            waiting += (name for name in imported if name.startswith(followed))
    return found


@functools.cache
def digest(operator: str) -> str:
    """The digest of `sources` and of the minors of Triton and torch. A process reads each file once.

    Raises:
        BadInput: there is no such operator.
    """
    versions = records.environment()
    minors = (f"{name} {'.'.join(versions[name].split('.')[:2])}" for name in ("triton", "torch"))
    return trees.digest(*minors, *(f"{module} {text}" for module, text in sorted(sources(operator).items())))


def load() -> dict[str, Proof]:
    """What is recorded, by operator; nothing where there is no file.

    Raises:
        BadInput: the file is damaged.
    """
    found = {}
    try:
        for line in FILE.read_text().splitlines() if FILE.exists() else ():
            content = json.loads(line)
            runs = {part: Run(**content[part]) for part in PARTS if part in content}
            if any(type(run.count) is not int or type(run.passed) is not bool for run in runs.values()):
                raise ValueError(f"{content['operator']}: a count or a verdict is none")
            found[content["operator"]] = Proof(content["digest"], runs)
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"the record of proofs is damaged: {FILE}: {error}. Restore it, or remove it and run the parts of the "
            "laboratory with --update."
        ) from None
    return found


def _recorded(operator: str, part: str) -> Run | None:
    """The run of a part that stands for the sources as they are."""
    if part not in PARTS:
        raise ValueError(f"proofs: unknown part: got {part!r}; expected one of {', '.join(PARTS)}.")
    now, proof = digest(operator), load().get(operator)
    run = proof.runs.get(part) if proof and proof.digest == now else None
    return run if run and run.passed else None


def changed(operator: str, part: str) -> bool:
    """No run of ``part`` that passed is recorded of the operator as it is."""
    return _recorded(operator, part) is None


def portion(operator: str, part: str, full: int, everything: bool = False) -> int:
    """How many of ``full`` cases of an operator are to run: all, or a tenth, at least 1, where as many have passed."""
    run = _recorded(operator, part)
    return full if everything or run is None or run.count < full else -(-full // SHARE)


def chosen(
    part: str, cases: Sequence[Case], operator_of: Callable[[Case], str], everything: bool, seed: int
) -> list[Case]:
    """The cases that are to run, in their order: each operator's `portion`, drawn with ``seed``."""
    by_operator = {}
    for i, case in enumerate(cases):
        by_operator.setdefault(operator_of(case), []).append(i)
    rng, numbers = random.Random(seed), []
    for operator, own in by_operator.items():
        numbers += rng.sample(own, portion(operator, part, len(own), everything))
    return [cases[i] for i in sorted(numbers)]


def whole(cases: Sequence[Case], ran: Sequence[Case], operator_of: Callable[[Case], str]) -> set[str]:
    """The operators all of whose ``cases`` are among those that ``ran``."""
    full, count = Counter(map(operator_of, cases)), Counter(map(operator_of, ran))
    return {operator for operator in full if count[operator] == full[operator]}


def counted(
    ran: Sequence[Case], operator_of: Callable[[Case], str], passes: Callable[[Case], bool]
) -> dict[str, tuple[int, bool]]:
    """What `write` takes, of the cases that ran."""
    found = {}
    for case in ran:
        count, passed = found.get(operator_of(case), (0, True))
        found[operator_of(case)] = (count + 1, passed and passes(case))
    return found


def new_seed() -> int:
    """Another one each time; print it with `explain`, so that the run can be repeated."""
    return int.from_bytes(os.urandom(4), "big") % 10**9


def explain(part: str, counts: Mapping[str, int], seed: int) -> str:
    """Which operators run in full and which in part, in one line. ``counts``: cases that are to run, by operator."""
    runs = {operator: _recorded(operator, part) for operator in counts}
    texts = (
        f"{operator} {count}" + (f" (recorded: {runs[operator].count})" if runs[operator] else "")
        for operator, count in sorted(counts.items())
    )
    return f"{', '.join(texts)}; drawn with --seed {seed}"


def add_arguments(parser) -> None:
    """``--all`` and ``--update``, which every part has; ``--seed`` is the part's own."""
    parser.add_argument("--all", action="store_true", help="run in full what is recorded as it is, too")
    parser.add_argument("--update", action="store_true", help="record what was run, to be committed")


def write(part: str, ran: Mapping[str, tuple[int, bool]]) -> Path:
    """Record a run of ``part``: by operator how many cases ran, and whether all passed.

    What is recorded of other sources goes. A smaller run that passed leaves a larger record that passed as it is; one
    that failed replaces it.

    Raises:
        BadInput: there is no such operator, or the file is damaged.
    """
    proofs = load()
    for operator, (count, passed) in ran.items():
        before, now = _recorded(operator, part), digest(operator)
        if before and passed and before.count >= count:
            continue
        old = proofs.get(operator)
        runs = old.runs if old and old.digest == now else {}
        proofs[operator] = Proof(now, runs | {part: Run(count, time.strftime("%Y-%m-%d"), passed)})
    lines = [
        json.dumps(
            {"operator": operator, "digest": proof.digest}
            | {part: asdict(proof.runs[part]) for part in PARTS if part in proof.runs}
        )
        for operator, proof in sorted(proofs.items())
    ]
    with tempfile.NamedTemporaryFile("w", dir=FILE.parent, suffix=".tmp", delete=False) as file:
        file.write("".join(f"{line}\n" for line in lines))
    os.chmod(file.name, 0o644)
    os.replace(file.name, FILE)
    return FILE
