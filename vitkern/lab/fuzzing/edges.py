"""edges: named edge cases, forward and gradients, under the memory sanitizer."""

import time
from collections import Counter

import torch
from torch import Tensor

from vitkern.lab import proofs, records
from vitkern.lab.fuzzing.case import place
from vitkern.lab.fuzzing.edge import Edge, Exactly
from vitkern.lab.specimens import owned
from vitkern.report import BadInput, near_matches, progress

SEED = 1


def add_arguments(parser) -> None:
    parser.add_argument("name", nargs="*", help="only the cases whose name has one of these in it")
    parser.add_argument("--list", action="store_true", help="print the names and run nothing")
    parser.add_argument("--seed", type=int, help="of the choice among what is recorded (default: another each time)")
    proofs.add_arguments(parser)


def run(arguments) -> int:
    chosen = choose(arguments.name)
    if arguments.list:
        print("\n".join(edge.name for edge in chosen))
        return 0
    if not arguments.name:
        seed = proofs.new_seed() if arguments.seed is None else arguments.seed
        chosen = proofs.chosen("edges", chosen, _operator, arguments.all, seed)
        print(proofs.explain("edges", Counter(map(_operator, chosen)), seed), flush=True)
    torch.set_num_threads(1)
    started = beat = time.perf_counter()
    failed = []
    for done, edge in enumerate(chosen, 1):
        if problems := check(edge):
            failed.append(edge.name)
            print("\n  ".join([f"FAILED  {edge.name}", *problems, f"case: {edge.case}"]), flush=True)
        if time.perf_counter() - beat > 10 or done == len(chosen):
            beat = time.perf_counter()
            progress(f"[{done}/{len(chosen)}] {len(failed)} failed ({beat - started:.0f} s)")
    summary = f"{len(chosen)} of {len(choose([]))} named cases, {len(failed)} failed"
    seconds = time.perf_counter() - started
    records.write("edges", passed=not failed, summary=summary, seconds=seconds, cases=len(chosen), failed=failed)
    if arguments.update and not arguments.name:
        proofs.write("edges", proofs.counted(chosen, _operator, lambda edge: edge.name not in failed))
    print(f"verdict: {summary}" if failed else f"verdict: all {len(chosen)} cases passed")
    return 1 if failed else 0


def _operator(edge: Edge) -> str:
    return next(operator for operator, other in owned("edges") if other is edge)


def choose(parts: list[str]) -> list[Edge]:
    """The cases whose name has one of ``parts`` in it; all without any.

    Raises:
        BadInput: a part that is in no name.
    """
    edges = [edge for _, edge in owned("edges")]
    for part in parts:
        if not any(part in edge.name for edge in edges):
            near = near_matches(part, [edge.name for edge in edges])
            raise BadInput(f"lab edges: no case has that name: got {part!r}; expected part of one (--list).{near}")
    return [edge for edge in edges if not parts or any(part in edge.name for part in parts)]


def check(edge: Edge) -> list[str]:
    """What is wrong with one case."""
    from vitkern.lab.fuzzing.run_case import run_case

    outcome = run_case(edge.case, SEED)
    problems = [str(finding) for finding in outcome.findings]
    if outcome.tensors:
        problems += [text for rule in edge.expected if (text := _broken(rule, outcome.tensors))]
    return problems


def _broken(rule: Exactly, tensors: dict[str, Tensor]) -> str | None:
    tensor = tensors[rule.tensor].float()
    inside = torch.zeros(tensor.shape, dtype=torch.bool)
    inside[place(rule.index)] = True
    holds = tensor.isnan() if rule.value != rule.value else tensor == rule.value
    if not holds[inside].all():
        count = int((~holds[inside]).sum())
        return f"{rule.tensor} is not {rule.value:g} in {count} elements at {rule.index}, where it must be"
    if rule.only and holds[~inside].any():
        return f"{rule.tensor} is {rule.value:g} in {int(holds[~inside].sum())} elements beyond {rule.index}"
    return None
