"""fuzz: random problems over every kernel, forward and backward, under the memory sanitizer.

Per case the rules (a) and (c) of `vitkern.testing`, and over the run rule (b) for each operator, tensor and dtype. An
error of up to `DOUBTED` times its allowance counts only where it is seen with other values too, and is named. A case is
an operator and a seed, and nothing else: a failure prints both, and the smaller case that it shrinks to.
"""

import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING

from vitkern.lab import proofs, records
from vitkern.lab.fuzzing.case import Case, read_case
from vitkern.lab.fuzzing.drawing import draw
from vitkern.lab.processes import submitted
from vitkern.lab.proving.verify import POOLED_CASES, Result, pool_of, says_something
from vitkern.lab.specimens import specimens
from vitkern.report import BadInput, progress, table

if TYPE_CHECKING:
    from vitkern.lab.fuzzing.run_case import Outcome

CASES = 2000
TOGETHER = 8  # cases that a worker takes at a time
SHRUNK = 3  # failures that a process shrinks; each may take a minute
SEEDS = 10**9
DOUBTED = 4.0  # times its allowance, which is measured: an error up to here has to be seen with other values too


@dataclass(frozen=True)
class Verdict:
    """What one case showed. ``smaller``: the failing case it shrinks to, and its findings. ``doubted``: an error was
    above its allowance with these values, and not with others."""

    op: str
    seed: int
    case: Case
    findings: tuple[str, ...]
    results: tuple[Result, ...]
    seconds: float
    smaller: tuple[Case, tuple[str, ...]] | None = None
    doubted: bool = False

    @property
    def name(self) -> str:
        return f"{self.op}:{self.seed}"


def add_arguments(parser) -> None:
    parser.add_argument(
        "--cases", type=int, help=f"how many (default: {CASES}, of which a tenth for what is recorded as it is)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        help="of the run: which cases are drawn (default: 0; another each time for what is recorded)",
    )
    parser.add_argument("--op", help="only this operator: " + ", ".join(specimens()))
    parser.add_argument("--jobs", type=int, default=0, help="worker processes (default: one per core)")
    parser.add_argument("--replay", metavar="OP:SEED", help="run one case again, or OP:SEED:{case} with other fields")
    proofs.add_arguments(parser)


def run(arguments) -> int:
    if arguments.replay is not None:
        return _replay(arguments.replay)
    count = CASES if arguments.cases is None else arguments.cases
    if count < 1 or arguments.jobs < 0:
        raise BadInput(
            f"lab fuzz: cannot run: got --cases {count}, --jobs {arguments.jobs}; expected at least 1 case, "
            "and 0 jobs for one per core."
        )
    if arguments.op is not None:
        _known(arguments.op)
    started = time.perf_counter()
    chosen = choose(count, arguments.seed or 0, arguments.op)
    jobs = min(arguments.jobs or os.cpu_count() or 1, -(-len(chosen) // TOGETHER))
    if arguments.cases is None:
        chosen = _unproved(chosen, arguments)
    print(f"{len(chosen)} cases, in {jobs} processes", flush=True)
    try:
        verdicts = list(_watched(verdicts_of(chosen, jobs), len(chosen)))
    except BrokenProcessPool:
        print("verdict: a worker process died; --jobs 1 shows at which case", flush=True)
        return 1
    return _report(verdicts, arguments, time.perf_counter() - started)


def choose(count: int, seed: int, op: str | None = None) -> list[tuple[str, int]]:
    """The cases of a run, as operators and seeds."""
    rng = random.Random(seed)
    weights = {name: one.weight for name, one in specimens().items()}
    ops = [op] * count if op else rng.choices(list(weights), list(weights.values()), k=count)
    return [(name, rng.randrange(SEEDS)) for name in ops]


def _unproved(full: list[tuple[str, int]], arguments) -> list[tuple[str, int]]:
    """Of a ``full`` run all cases of what has changed, and for what has not a tenth as many others."""
    seed = proofs.new_seed() if arguments.seed is None else arguments.seed
    counts = {
        op: proofs.portion(op, "fuzz", count, arguments.all) for op, count in Counter(op for op, _ in full).items()
    }
    print(proofs.explain("fuzz", counts, seed), flush=True)
    others, chosen = choose(len(full), seed, arguments.op), []
    for op, count in counts.items():
        own = [case for case in full if case[0] == op]
        chosen += own if count == len(own) else [(op, number) for _, number in others[:count]]
    return sorted(chosen, key=itemgetter(1))


def verdicts_of(chosen: list[tuple[str, int]], jobs: int) -> Iterator[Verdict]:
    """In order of completion; in this process where ``jobs`` is 1."""
    if jobs == 1:
        shrunk = 0
        for op, seed in chosen:
            verdict = judge(op, seed, smaller=shrunk < SHRUNK)
            shrunk += verdict.smaller is not None
            yield verdict
        return
    portions = [chosen[i : i + TOGETHER] for i in range(0, len(chosen), TOGETHER)]
    with submitted(_judge_all, [(portion,) for portion in portions], jobs, _prepare) as calls:
        for done in as_completed(calls):
            yield from done.result()


def judge(op: str, seed: int, case: Case | None = None, *, smaller: bool = True) -> Verdict:
    """Draw a case (or take ``case``), run it, and where it fails look for a ``smaller`` one.

    Raises:
        Unusable: ``case`` is no problem.
    """
    from vitkern.lab.fuzzing.run_case import Unusable, run_case
    from vitkern.lab.fuzzing.shrink import shrink

    given, case = case, case or draw(op, seed)
    try:
        outcome = run_case(case, seed)
    except Unusable as error:
        if given is not None:
            raise
        return Verdict(op, seed, case, (f"drawn, but no problem: {error}",), (), 0.0)
    findings = tuple(str(finding) for finding in outcome.findings)
    kept = outcome.results if case.is_plain else ()
    if not findings:
        return Verdict(op, seed, case, findings, kept, outcome.seconds)
    if is_small(outcome) and not any(run_case(case, seed + other).findings for other in (1, 2)):
        return Verdict(op, seed, case, (), kept, outcome.seconds, doubted=True)
    if not smaller:
        return Verdict(op, seed, case, findings, (), outcome.seconds)
    kinds = {finding.kind for finding in outcome.findings}

    def fails(candidate: Case) -> bool:
        try:
            found = run_case(candidate, seed).findings
        except Unusable:
            return False
        return bool(kinds & {finding.kind for finding in found})

    least = shrink(case, fails)
    reasons = tuple(str(finding) for finding in run_case(least, seed).findings)
    return Verdict(op, seed, case, findings, (), outcome.seconds, (least, reasons))


def is_small(outcome: "Outcome") -> bool:
    """Whether all that was found are errors not far above their allowance: of one value, such as the gradient of a
    scale, PyTorch's own error in the same dtype, which allows for it, is small by chance now and then."""
    uses = [result.comparison.use for result in outcome.results]
    return {finding.kind for finding in outcome.findings} == {"value"} and max(uses) <= DOUBTED


_shrunk = 0  # by this worker


def _prepare() -> None:
    import torch

    torch.set_num_threads(1)


def _judge_all(portion: list[tuple[str, int]]) -> list[Verdict]:
    global _shrunk
    verdicts = []
    for op, seed in portion:
        verdicts.append(judge(op, seed, smaller=_shrunk < SHRUNK))
        _shrunk += verdicts[-1].smaller is not None
    return verdicts


def _watched(verdicts: Iterator[Verdict], total: int) -> Iterator[Verdict]:
    """Yields on; a line every ten seconds, and each failure at once."""
    started = beat = time.perf_counter()
    failed = 0
    for done, verdict in enumerate(verdicts, 1):
        if verdict.findings:
            failed += 1
            print(_described(verdict), flush=True)
        if time.perf_counter() - beat > 10 or done == total:
            beat = time.perf_counter()
            progress(f"[{done}/{total}] {failed} failed ({beat - started:.0f} s)")
        yield verdict


def _described(verdict: Verdict) -> str:
    lines = [f"FAILED  {verdict.name}", *(f"  {finding}" for finding in verdict.findings), f"  case: {verdict.case}"]
    lines.append(f"  again: python -m vitkern lab fuzz --replay {verdict.name}")
    if verdict.smaller and verdict.smaller[0] != verdict.case:
        case, findings = verdict.smaller
        lines += ["  it shrinks to", *(f"    {finding}" for finding in findings), f"    case: {case}"]
        lines.append(f"    again: python -m vitkern lab fuzz --replay '{verdict.name}:{case}'")
    return "\n".join(lines)


def pooled(verdicts: list[Verdict]) -> dict[str, list[tuple]]:
    """operator -> rule (b)'s rows (dtype, tensor, ratio, "" or why it fails), the worst tensor of each dtype first."""
    rows = {}
    for op in specimens():
        results = [r for v in verdicts if v.op == op for r in v.results if says_something(r)]
        counts = Counter((r.name, r.dtype) for r in results)
        pool = pool_of(r for r in results if counts[r.name, r.dtype] >= POOLED_CASES)
        failures = {line.split(":")[0]: line for line in pool.failures()}
        ordered = sorted(pool.ratios().items(), key=lambda item: (str(item[0][1]), -item[1]))
        rows[op] = [(dtype, name, ratio, failures.get(f"{name} in {dtype}", "")) for (name, dtype), ratio in ordered]
    return rows


def _report(verdicts: list[Verdict], arguments, seconds: float) -> int:
    failed = [verdict for verdict in verdicts if verdict.findings]
    counts = Counter(verdict.op for verdict in verdicts)
    rows = pooled(verdicts)
    worst, failures = [], [f"{op}: {row[3]}" for op in rows for row in rows[op] if row[3]]
    for op in rows:
        for dtype in dict.fromkeys(row[0] for row in rows[op]):
            _, name, ratio, _ = next(row for row in rows[op] if row[0] == dtype)
            worst.append((op, counts[op], str(dtype).removeprefix("torch."), name, f"{ratio:.3f}"))
    print("mean error over that of an ideal kernel of the dtype, all cases pooled:")
    print(table(("operator", "cases", "dtype", "worst", "ratio"), worst))
    for line in failures:
        print(f"FAILED  {line}")
    for name in (verdict.name for verdict in verdicts if verdict.doubted):
        print(f"{name}: a little above its allowance with one set of values, and with no other")
    count = len(failed) + len(failures)
    spent = sum(verdict.seconds for verdict in verdicts)
    summary = f"{len(verdicts)} cases, {len(failed)} failed; {len(failures)} pooled failures"
    records.write(
        "fuzz",
        passed=not count,
        summary=summary,
        seconds=seconds,
        cases=dict(counts),
        failed=[verdict.name for verdict in failed],
        pooled=failures,
        seconds_per_case=round(spent / len(verdicts), 3),
    )
    if arguments.update and arguments.cases is None:
        bad = {verdict.op for verdict in failed} | {line.split(":")[0] for line in failures}
        proofs.write("fuzz", {op: (number, op not in bad) for op, number in counts.items()})
    print(
        f"verdict: {count} failures in {len(verdicts)} cases" if count else f"verdict: all {len(verdicts)} cases passed"
    )
    return 1 if count else 0


def _known(op: str) -> str:
    if op not in specimens():
        raise BadInput(f"lab fuzz: unknown operator: got {op!r}; expected one of {', '.join(specimens())}.")
    return op


def _replay(text: str) -> int:
    op, _, rest = text.partition(":")
    number, _, fields = rest.partition(":")
    _known(op)
    if not number.isdecimal():
        raise BadInput(f"lab fuzz: --replay has no seed: got {text!r}; expected OP:SEED, as in {op}:17.")
    try:
        case = read_case(specimens()[op].case, fields) if fields else None
    except (TypeError, ValueError) as error:
        raise BadInput(f"lab fuzz: --replay has no readable case: got {fields!r}; {error}.") from None
    from vitkern.lab.fuzzing.run_case import Unusable

    try:
        verdict = judge(op, int(number), case)
    except Unusable as error:
        raise BadInput(f"lab fuzz: the formula refuses that case: {error}") from None
    if verdict.findings:
        print(_described(verdict))
        print(f"verdict: {verdict.name} fails")
        return 1
    print(f"{verdict.name}: {verdict.case}", file=sys.stderr)
    print(f"verdict: {verdict.name} passes")
    return 0
