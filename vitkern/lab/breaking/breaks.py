"""Ten deliberate breaks of the kernels, by name: what the laboratory must find at once."""

from dataclasses import dataclass

from vitkern.lab.breaking.checklists import checks_of
from vitkern.lab.breaking.mutations import kernels_folder
from vitkern.lab.breaking.nursery import Job


@dataclass(frozen=True)
class Break:
    """``before``, which stands once in kernels/``file``.py, becomes ``after``."""

    file: str
    before: str
    after: str


BREAKS = {
    "a key mask is dropped": Break(
        "loop/stream",
        's = tl.where(ki[None, :] < M, s, float("-inf"))',
        "s = s",
    ),
    "an index is shifted by one": Break(
        "loop/tokens",
        "window_x = (group - line * cols) * WINDOW_W",
        "window_x = (group - line * cols) * WINDOW_W + 1",
    ),
    "two strides are swapped": Break(
        "loop/tokens",
        "group.to(tl.int64) * strides[0] + i.to(tl.int64) * strides[1]",
        "group.to(tl.int64) * strides[1] + i.to(tl.int64) * strides[0]",
    ),
    "the wrong head is read": Break(
        "tile/short_attention",
        "k += head.to(tl.int64) * k_strides[0] * ALIGN",
        "k += (heads - 1 - head).to(tl.int64) * k_strides[0] * ALIGN",
    ),
    "the running sum is not rescaled": Break(
        "machine/tiles",
        "total = total * shrink + tl.sum(weights, 1)",
        "total = total + tl.sum(weights, 1)",
    ),
    "a gradient misses the scale": Break(
        "tile/short_attention_backward",
        "dk_sum *= scale",
        "dk_sum *= 1.0",
    ),
    "a table is read transposed": Break(
        "tile/relative_table",
        "entry = dy * (2 * WINDOW_W - 1) + dx",
        "entry = dx * (2 * WINDOW_H - 1) + dy",
    ),
    "a store has no mask": Break(
        "rows/tiles",
        "tl.store(where, tile.to(pointer.dtype.element_ty), mask=mask)",
        "tl.store(where, tile.to(pointer.dtype.element_ty))",
    ),
    "a slope lacks its second term": Break(
        "rows/activations",
        "return x * gate, gate + x * bell * DENSITY_AT_ZERO",
        "return x * gate, gate",
    ),
    "a launch is one program short": Break(
        "rows/matmul",
        "_matmul, (triton.cdiv(rows, config.block_m) * triton.cdiv(cols, config.block_n),)",
        "_matmul, (triton.cdiv(rows, config.block_m) * triton.cdiv(cols, config.block_n) - 1,)",
    ),
}
FIRST = 5  # so many problems of a file's list judge its breaks


def broken_sources(name: str) -> dict[str, str]:
    """File -> its source with the break in it.

    Raises:
        ValueError: the file has changed, and what the break replaces does not stand in it once.
    """
    one = BREAKS[name]
    source = (kernels_folder() / f"{one.file}.py").read_text()
    if source.count(one.before) != 1:
        raise ValueError(
            f"breaks: {name}: the place in kernels/{one.file}.py occurs {source.count(one.before)} times: "
            f"got {one.before!r}; expected once. Adapt the break."
        )
    return {one.file: source.replace(one.before, one.after)}


def break_jobs() -> list[Job]:
    """The kernels as they are, once for each list of problems that is used, then every break."""
    lists = {tuple(map(id, checks_of(one.file).trials[:FIRST])): one.file for one in BREAKS.values()}
    unbroken = [Job(f"unbroken, as {file}", file, first=FIRST) for file in lists.values()]
    return unbroken + [Job(name, one.file, broken_sources(name), first=FIRST) for name, one in BREAKS.items()]
