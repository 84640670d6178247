"""Ten deliberate breaks of the kernels, by name: what the laboratory must find at once."""

from dataclasses import dataclass

from vitkern.lab.breaking.mutations import file_of, kernels_folder
from vitkern.lab.breaking.nursery import Job


@dataclass(frozen=True)
class Break:
    """``before``, which stands once in all files of kernels/, becomes ``after``."""

    before: str
    after: str


BREAKS = {
    "a key mask is dropped": Break(
        's = tl.where(ki < M, s, float("-inf"))',
        "s = s",
    ),
    "an index is shifted by one": Break(
        "window_x = (group - line * cols) * WINDOW_W",
        "window_x = (group - line * cols) * WINDOW_W + 1",
    ),
    "two strides are swapped": Break(
        "group.to(tl.int64) * strides[0] + i.to(tl.int64) * strides[1]",
        "group.to(tl.int64) * strides[1] + i.to(tl.int64) * strides[0]",
    ),
    "the wrong head is read": Break(
        "queries, keys = of_head(q, head, TILE.ALIGN), of_head(k, head, TILE.ALIGN)",
        "queries, keys = of_head(q, head, TILE.ALIGN), of_head(k, heads - 1 - head, TILE.ALIGN)",
    ),
    "the running sum is not rescaled": Break(
        "total = total * shrink + tl.sum(counted, 1)",
        "total = total + tl.sum(counted, 1)",
    ),
    "a gradient misses the scale": Break(
        "dk_sum *= scale",
        "dk_sum *= 1.0",
    ),
    "a table is read transposed": Break(
        "entry = dy * (2 * WINDOW_W - 1) + dx",
        "entry = dx * (2 * WINDOW_H - 1) + dy",
    ),
    "a store has no mask": Break(
        "tl.store(where, tile.to(pointer.dtype.element_ty), mask=mask)",
        "tl.store(where, tile.to(pointer.dtype.element_ty))",
    ),
    "a slope lacks its second term": Break(
        "return x * gate, gate + x * bell * DENSITY_AT_ZERO",
        "return x * gate, gate",
    ),
    "a launch is one program short": Break(
        "_matmul, (triton.cdiv(rows, config.block_m) * triton.cdiv(cols, config.block_n),)",
        "_matmul, (triton.cdiv(rows, config.block_m) * triton.cdiv(cols, config.block_n) - 1,)",
    ),
}
FIRST = 5  # so many problems of a file's list judge its breaks


def broken_sources(name: str) -> dict[str, str]:
    """The file of the break -> its source with the break in it.

    Raises:
        ValueError: kernels have changed, and what the break replaces does not stand in them once.
    """
    one = BREAKS[name]
    sources = {file_of(path): path.read_text() for path in sorted(kernels_folder().rglob("*.py"))}
    places = [file for file, source in sources.items() for _ in range(source.count(one.before))]
    if len(places) != 1:
        raise ValueError(
            f"breaks: {name}: what it replaces stands in {', '.join(places) or 'no file'}: got {one.before!r}; "
            "expected once in all of kernels/. Adapt the break."
        )
    return {places[0]: sources[places[0]].replace(one.before, one.after)}


def break_jobs() -> list[Job]:
    """The kernels as they are, once for each list of problems that is used, then every break."""
    breaks = []
    for name in BREAKS:
        sources = broken_sources(name)
        breaks.append(Job(name, *sources, sources, first=FIRST))
    lists = {tuple(map(id, job.checks().trials)): job.file for job in breaks}
    return [Job(f"unbroken, as {file}", file, first=FIRST) for file in lists.values()] + breaks
