"""What `vitkern.accelerate` did: printable, iterable, reversible."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitkern import dispatch, faults
from vitkern.interop.adapter import path_of
from vitkern.interop.graphs import Graphs
from vitkern.interop.side_by_side import SideBySide
from vitkern.ops.bypass import watched

# Where a module's attention runs.
KERNEL, PYTORCH, ORIGINAL = "on a kernel", "on vitkern's PyTorch path", "as before"
WAITING = "as before until a kernel runs"
RECORDED = (
    "but no kernel is in what torch.jit.trace or torch.fx makes of it; in torch.compile and torch.export they are"
)


@dataclass(frozen=True)
class Swapped:
    """One module that now runs on vitkern.

    name: its name in the model, "" for the model itself.
    original: the class it had, or has still where only its attention function was exchanged.
    ops: the ops of vitkern that it calls.
    notes: what of it stays as it was, and when.
    needs_kernel: the original runs where no kernel does.
    """

    name: str
    original: type
    ops: tuple[str, ...]
    notes: tuple[str, ...] = ()
    needs_kernel: bool = False


@dataclass(frozen=True)
class Kept:
    """One module that stays as it was, and why."""

    name: str
    kind: type
    reason: str


@dataclass(frozen=True)
class Attention:
    """One module that computes attention.

    name, kind: its name in the model, and its class.
    by: name of the module that does this on vitkern, itself or one around it; None: it stays as it was, and an entry of
        `Report.kept`, its own or that of a module around it, says why.
    """

    name: str
    kind: type
    by: str | None


@dataclass
class Report:
    """The result of `vitkern.accelerate`. Iterating gives the `Swapped` entries; `kept` holds the others, and
    ``attention`` every module of the model that computes attention. ``graphs``: its CUDA graphs, where they were asked
    for. ``side_by_side``: how images of a batch are shared out over threads, or why they are not; None where this is
    switched off, or the model is on no CPU.

    As a context manager it restores the model on exit.
    """

    model: nn.Module
    swapped: list[Swapped] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    attention: list[Attention] = field(default_factory=list)
    undo: list[Callable[[], str | None]] = field(default_factory=list, repr=False)
    graphs: Graphs | None = field(default=None, repr=False)
    side_by_side: SideBySide | None = field(default=None, repr=False)

    def restore(self) -> None:
        """Put back what this call of accelerate exchanged. Calling it again does nothing.

        Raises:
            RuntimeError: the class of some module was changed again since, by fully_shard for example; all others
                are restored.
        """
        left = []
        while self.undo:
            problem = self.undo.pop()()
            if problem is not None:
                left.append(problem)
        if left:
            raise RuntimeError(
                f"restore: {len(left)} modules stay as they are: {'; '.join(left)}. Undo what changed them first."
            )

    def __enter__(self) -> "Report":
        return self

    def __exit__(self, *exception: object) -> None:
        self.restore()

    def __iter__(self) -> Iterator[Swapped]:
        return iter(self.swapped)

    def __len__(self) -> int:
        return len(self.swapped)

    def __str__(self) -> str:
        total = len(self.swapped) + len(self.kept)
        if self.swapped:
            lines = [f"swapped {len(self.swapped)} of {total} modules"]
        elif total:
            lines = [f"swapped nothing: {total} modules were looked at, and all are as they were"]
        else:
            lines = ["swapped nothing: no module here is of a class that vitkern knows, and all are as they were"]
        lines += _counted((path_of(entry.original), "->", ", ".join(entry.ops)) for entry in self.swapped)
        notes = [(path_of(entry.original), note) for entry in self.swapped for note in entry.notes]
        if notes:
            lines += ["of these, in part", *_counted(notes)]
        if self.kept:
            lines += ["kept", *_counted((path_of(entry.kind), entry.reason) for entry in self.kept)]
        around = [str(runner) for runner in (self.side_by_side, self.graphs) if runner is not None]
        return "\n".join(lines + self.who_attends() + self.where() + around)

    def who_attends(self) -> list[str]:
        """One line: how many modules compute attention, and how many do it on a kernel, on vitkern's PyTorch path, and
        as they did before, here and now."""
        if not self.attention:
            return []
        modules, entries = dict(self.model.named_modules()), {entry.name: entry for entry in self.swapped}
        by = [each.by for each in self.attention]
        places = Counter(ORIGINAL if name is None else _place(modules.get(name), entries.get(name)) for name in by)
        counts = [f"{places[place]} {place}" for place in (KERNEL, PYTORCH, ORIGINAL, WAITING) if places[place]]
        return [f"attention is computed by {len(self.attention)} modules: {', '.join(counts)}"]

    def where(self) -> list[str]:
        """One line for each device and dtype of the model: where the ops will run, and why not on a kernel."""
        if not self.swapped:
            return []
        modules = dict(self.model.named_modules())
        places: dict[tuple[torch.device, torch.dtype], Tensor] = {}
        for entry in self.swapped:
            module = modules.get(entry.name)
            for tensor in module.parameters() if module is not None else ():
                if tensor.is_floating_point():
                    places.setdefault((tensor.device, tensor.dtype), tensor)
        lines, on_kernels = [], False
        if watched():
            lines.append("but everything runs as it was just now: a hook or a mode watches all modules")
        for (device, dtype), tensor in places.items():
            what = f"{device}, {str(dtype).removeprefix('torch.')}"
            reasons = _obstacles(tensor)
            if reasons:
                lines.append(f"runs in PyTorch here ({what}): {'; '.join(reasons)}")
            else:
                place = "Triton's interpreter" if dispatch.INTERPRETED else "Triton kernels"
                lines.append(f"runs on {place} here ({what})")
                on_kernels = True
        if on_kernels:
            lines.append(RECORDED)
        for device in dict.fromkeys(device for device, _ in places):
            lines += [f"but {op} runs in PyTorch on {device}: {reason}" for op, reason in faults.faulted(device)]
        return lines


def _place(module: nn.Module | None, entry: Swapped | None) -> str:
    """Where the attention of a swapped module runs, here and now."""
    if module is None or watched():
        return ORIGINAL
    tensor = next((t for t in module.parameters() if t.is_floating_point()), None)
    if tensor is not None and not _obstacles(tensor):
        return KERNEL
    return WAITING if entry is not None and entry.needs_kernel else PYTORCH


def _obstacles(tensor: Tensor) -> list[str]:
    """Why no kernel runs where ``tensor`` is."""
    if dispatch.current_backend() == "torch":
        return ["the backend is set to torch"]
    return dispatch.why_not([tensor])


def _counted(rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Equal rows as one line each, with their number in front and their columns aligned."""
    counts = Counter(tuple(row) for row in rows)
    if not counts:
        return []
    number = max(len(str(count)) for count in counts.values()) + 2
    first = max(len(row[0]) for row in counts)
    return [f"{count:>{number}}  {row[0]:<{first}}  {'  '.join(row[1:])}".rstrip() for row, count in counts.items()]
