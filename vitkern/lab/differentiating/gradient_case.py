"""A problem of ``python -m vitkern lab gradients``.

Small, since a full Jacobian takes two launches for every input element, and one for every output element; yet each
kernel runs over several blocks or groups in some case. `full` cases get the whole Jacobian, the others random
directions through it.
"""

from dataclasses import dataclass, field

from vitkern.lab.proving.problem import Problem


@dataclass(frozen=True)
class GradientCase:
    """One problem, and how its gradients are checked.

    ``seeds`` inputs are drawn, each with its random directions; ``full``: every entry of the Jacobian instead.
    ``tied`` arguments are the same tensor as another: its gradient is the sum over both uses. ``ordered``: also run
    in float32, twice and with programs in several orders. ``constant``: inputs that the output does not depend on, by
    the formula. ``sample``: also a case of the tests.
    """

    problem: Problem
    full: bool = False
    seeds: int = 1
    tied: dict[str, str] = field(default_factory=dict)
    ordered: bool = False
    constant: tuple[str, ...] = ()
    sample: bool = False

    @property
    def operator(self) -> str:
        return self.problem.function or self.problem.op

    def __str__(self) -> str:
        return f"{self.operator}: {self.problem.name}"
