"""One measurement: a contender on a case."""

from dataclasses import asdict, dataclass, field

OURS = "vitkern"
MODES = ("forward", "backward", "training")  # training is a forward and its backward together
WRONG = "WRONG"
FAILED = "FAILED"


@dataclass(frozen=True)
class Row:
    """One contender on one case.

    ``seconds`` is the median on the device, None where ``note`` says why, ``spread`` the interquartile range over it,
    of ``samples``. ``host``: seconds of CPU time of a call, and ``latency``: from the call to its result on an idle
    device; both of GPUs only. ``peak``: bytes. ``flops`` and ``moved`` (bytes): what the case cannot do without;
    ``padded``: FLOPs of the compiled kernels, padding and recomputation with them. ``estimates``: "GPU dtype" ->
    lower bound in seconds, not calibrated. A ``note`` that begins with WRONG marks a result that differs, with
    FAILED an error in the measuring or in our own code.
    """

    op: str
    case: str
    mode: str
    dtype: str
    batch: int
    contender: str
    seconds: float | None
    spread: float = 0.0
    samples: int = 0
    host: float | None = None
    latency: float | None = None
    peak: int | None = None
    flops: int | None = None
    moved: int | None = None
    padded: int | None = None
    estimates: dict[str, float] = field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> tuple:
        """What rows of one comparison have in common."""
        return self.op, self.case, self.mode, self.dtype, self.batch

    @property
    def is_wrong(self) -> bool:
        return self.note.startswith(WRONG)

    @property
    def is_bad(self) -> bool:
        """Whether it is ours and a run with it has failed."""
        return self.contender == OURS and self.note.startswith((WRONG, FAILED))

    @property
    def counts(self) -> bool:
        """Whether its time may be compared: it was timed, and its result is right."""
        return self.seconds is not None and not self.is_wrong

    def record(self) -> dict:
        return asdict(self)


def peers_of_row(row: Row, rows: list[Row]) -> list[Row]:
    """The other contenders on the case of ``row`` whose times count, the fastest first."""
    others = (other for other in rows if other.key == row.key and other.contender != row.contender and other.counts)
    return sorted(others, key=lambda other: other.seconds)
