"""What the laboratory has to know of an operator, as one object, which `vitkern.lab.specimens` has a file for."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from random import Random

import torch

from vitkern.lab.addressing.offset_case import Case as OffsetCase
from vitkern.lab.breaking.checks import Checks
from vitkern.lab.breaking.survivor import Survivor
from vitkern.lab.compiling.exception import Excuse
from vitkern.lab.compiling.layer import Launch, Layer
from vitkern.lab.differentiating.gradient_case import GradientCase
from vitkern.lab.fuzzing.case import Case
from vitkern.lab.fuzzing.edge import Edge
from vitkern.lab.proving.integration import Integration, Module
from vitkern.lab.proving.problem import Problem

OPTIONAL = ("bounded", "exceptions", "turns", "survivors", "scratch", "properties", "modules")


@dataclass(frozen=True, kw_only=True)
class Specimen:
    """One operator of `vitkern.ops`, or a family of modules without a kernel of its own (see `View`).

    name: of the public function and of its files in every room.
    check: the problems of ``python -m vitkern check``, which the tests on a GPU run too: small and awkward.
    case: a problem as plain values; ``draw`` makes a random one, ``tiles`` is its price, about: turns of the inner
        loops of forward and backward; ``weight`` says how often one is drawn by the fuzz.
    edges: named edge cases.
    gradients: the problems of finite differences in double precision.
    offsets: launches with tensors beyond 2^31 elements, made when asked for, since that imports the kernels;
        ``bounded``: "kernel.pointer" patterns -> why the pointer cannot get there.
    layers: of models that people run, which the benchmarks time and, where they are named, `launches` compile.
    launches: what is compiled ahead of time; ``exceptions``: what is known to be imperfect in it; ``turns``: kernel ->
        turns of its loop, from its arguments by name and the number of programs, for the estimate of its time.
    judges: file of kernels/ -> what tells that it is broken; ``survivors``: mutants of these files that nothing can
        tell, or does.
    integration: registered operator -> what PyTorch's own tools are tried on.
    faults: problems during which kernels fail to build.
    scratch: "kernel.pointer" of what kernels need not fill.
    properties: what has no formula to compare with, by name: ``f(device)`` gives the problems found, a line each.
    modules: public name in `vitkern.nn` -> how it is built and called.
    """

    name: str
    check: tuple[Problem, ...]
    case: type[Case]
    draw: Callable[[Random], Case]
    tiles: Callable[[Case], int]
    weight: int
    edges: tuple[Edge, ...]
    gradients: tuple[GradientCase, ...]
    offsets: Callable[[], list[OffsetCase]]
    layers: tuple[Layer, ...]
    launches: tuple[Launch, ...]
    judges: Mapping[str, Checks]
    integration: Mapping[str, Integration]
    faults: tuple[Problem, ...]
    bounded: Mapping[str, str] = field(default_factory=dict)
    exceptions: Mapping[tuple[str, str, int], Excuse] = field(default_factory=dict)
    turns: Mapping[str, Callable] = field(default_factory=dict)
    survivors: Mapping[str, Survivor] = field(default_factory=dict)
    scratch: tuple[str, ...] = ()
    properties: Mapping[str, Callable[[torch.device], list[str]]] = field(default_factory=dict)
    modules: Mapping[str, Module] = field(default_factory=dict)

    @property
    def operators(self) -> tuple[str, ...]:
        """The registered operators that it stands for."""
        return tuple(self.integration)

    def lacks(self) -> list[str]:
        """Names of what is empty and may not be."""
        return [
            entry.name
            for entry in dataclasses.fields(self)
            if entry.name not in OPTIONAL and not getattr(self, entry.name)
        ]


@dataclass(frozen=True, kw_only=True)
class View:
    """A family of modules that calls the kernels of another operator, ``of``, in a way of its own.

    The meaning of the fields is that of `Specimen`; what it does not have is that of the operator.
    """

    name: str
    of: str
    check: tuple[Problem, ...]
    modules: Mapping[str, Module]
    layers: tuple[Layer, ...] = ()
    launches: tuple[Launch, ...] = ()
    edges: tuple[Edge, ...] = ()
    gradients: tuple[GradientCase, ...] = ()
