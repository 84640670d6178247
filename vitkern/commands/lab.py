"""lab: prove the kernels without a GPU; without a part, what has been run and what it showed."""

import importlib

from vitkern import dispatch
from vitkern.commands.again import again
from vitkern.lab import records
from vitkern.report import BadInput, table

# part -> (package of vitkern.lab, what it shows)
PARTS = {
    "fuzz": ("fuzzing", "random problems, forward and backward, under the memory sanitizer"),
    "edges": ("fuzzing", "named edge cases"),
    "offsets": ("addressing", "offsets beyond 2^31 through every pointer"),
    "gradients": ("differentiating", "float64 gradcheck of every differentiable operator"),
    "compile": ("compiling", "what models launch, compiled for five architectures, against golden figures"),
    "mutants": ("breaking", "faults injected into kernels and launchers, and how many the laboratory finds"),
}
INTERPRETED = ("fuzz", "edges", "offsets", "gradients", "mutants")


def add_arguments(parser) -> None:
    parts = parser.add_subparsers(dest="part", metavar="{" + ",".join(PARTS) + "}")
    for name, (_, summary) in PARTS.items():
        _part(name).add_arguments(parts.add_parser(name, help=summary, description=summary))


def _part(name: str):
    return importlib.import_module(f"vitkern.lab.{PARTS[name][0]}.{name}")


def run(arguments) -> int:
    if arguments.part is None:
        return _sum_up()
    if not dispatch.HAS_TRITON:
        raise BadInput("Triton is not installed, so there is no kernel to prove. Install it: pip install triton.")
    interpreted = arguments.part in INTERPRETED
    if interpreted != dispatch.INTERPRETED:
        return again(arguments.argv, interpreted=interpreted)
    return _part(arguments.part).run(arguments)


def _sum_up() -> int:
    rows, failed = [], False
    for name in PARTS:
        try:
            record = records.read(name)
        except records.UnreadableRecord as error:
            raise BadInput(str(error)) from None
        if record is None:
            rows.append((name, "not run", "", "", f"python -m vitkern lab {name}"))
            continue
        try:
            passed, took, triton = record["passed"] is True, float(record["seconds"]), record["environment"]["triton"]
            rows.append(
                (name, "passed" if passed else "FAILED", f"{took:.0f} s", f"Triton {triton}", record["summary"])
            )
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            path = records.folder() / f"{name}.json"
            raise BadInput(
                f"{path} is no record of the laboratory: {error!r}. Remove it, or run the part again."
            ) from None
        failed |= not passed
    print(table(("part", "verdict", "took", "with", "figures"), rows))
    return 1 if failed else 0
