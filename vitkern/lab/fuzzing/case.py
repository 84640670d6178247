"""Cases: everything that one run of an operator depends on, as plain values that print, compare and shrink.

A default is the simplest value of its field. A case is a `Problem` (shapes, options, special values) in a dtype, with
its operands laid out in some way, by the block sizes of some architecture.
"""

import dataclasses
import json
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitkern.lab.fuzzing.layouts import LAYOUTS, lay_out
from vitkern.lab.proving.problem import Problem

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Case:
    """What the cases of all operators have in common.

    dtype: of the operands, but for those in ``wide``, which are float32.
    arch: whose block sizes run; 0 the interpreter's own.
    backward: whether gradients are computed; ``frozen`` names operands that get none.
    without: operands left out.
    layouts: operand, or "grad out" -> one of `LAYOUTS`; contiguous where not named.
    factors: operand -> a number that it is multiplied by.
    values: operand -> ((index, value), ...); the part of it at ``index`` is set: a number or a (start, stop) for each
        dimension, the last ones may be missing.
    twice: whether another order of programs must give the same bits.
    """

    dtype: str = "fp32"
    arch: int = 0
    backward: bool = True
    twice: bool = False
    without: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    layouts: dict[str, str] = field(default_factory=dict)
    factors: dict[str, float] = field(default_factory=dict)
    values: dict[str, tuple] = field(default_factory=dict)

    @property
    def is_plain(self) -> bool:
        """Whether its numbers are random and of ordinary size, so that rule (b) speaks of them."""
        return not self.factors and not self.values

    def base(self) -> Problem:
        """The problem before operands are left out or changed."""
        raise NotImplementedError

    def problem(self) -> Problem:
        base = self.base()
        gradients = [name for name in base.gradients if name not in (*self.frozen, *self.without)]

        def inputs(generator):
            operands = base.inputs(generator)
            for name, factor in self.factors.items():
                operands[name] = operands[name] * factor
            for name, settings in self.values.items():
                for index, value in settings:
                    operands[name][place(index)] = float(value)
            return operands | dict.fromkeys(self.without)

        return dataclasses.replace(base, inputs=inputs, gradients=tuple(gradients) if self.backward else ())

    def arrange(self, name: str, tensor: Tensor) -> Tensor:
        """An operand as this case has it: see `vitkern.lab.proving.verify.Trial`."""
        if name in self.wide:
            tensor = tensor.float()
        return lay_out(tensor, self.layouts.get(name, "contiguous"))

    def described(self) -> dict:
        """Its fields that are not the simplest."""
        fields = ((entry, getattr(self, entry.name)) for entry in dataclasses.fields(self))
        return {entry.name: value for entry, value in fields if value != simplest(entry)}

    def __str__(self) -> str:
        return json.dumps(self.described())


def place(index) -> tuple:
    """Numbers and (start, stop) pairs as PyTorch indexes with them."""
    return tuple(one if isinstance(one, int) else slice(*one) for one in index)


def simplest(entry: dataclasses.Field):
    return entry.default if entry.default is not dataclasses.MISSING else entry.default_factory()


def read_case(kind: type[Case], text: str) -> Case:
    """The inverse of ``str(case)``, for cases of one ``kind``.

    Raises:
        ValueError: no JSON object of that kind's fields.
    """
    fields = json.loads(text)
    known = {entry.name for entry in dataclasses.fields(kind)}
    if not isinstance(fields, dict) or not fields.keys() <= known:
        raise ValueError(f"expected a JSON object with some of {', '.join(sorted(known))}")
    for name, layout in fields.get("layouts", {}).items():
        if layout not in LAYOUTS:
            raise ValueError(f"the layout of {name} is {layout!r}; expected one of {', '.join(LAYOUTS)}")
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})
