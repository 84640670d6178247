"""Writes docs/models.md: every system, its variants, what it agrees with, and by how much.

    python tests/models_page.py [--measure [TITLE ...]]

``--measure`` runs the parity tests of each family, or of the named rows, and keeps the largest difference that they
saw, relative to the largest value, in tests/agreement.json; without it the page is made anew of what was measured.
tests/test_models_page.py holds the page to this.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from systems import SYSTEMS, System

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "models.md"
RECORD = HERE / "agreement.json"
KINDS = ("results", "gradients")


PARITY = re.compile("agree|against_the_authors_code|those_of|^test_logits")


class Differences:
    """A pytest plugin: of each parity test the largest difference that it compared, relative to the largest value."""

    def __init__(self) -> None:
        self.found: dict[str, float] = {}
        self.kinds: list[str] = []
        self.far = self.size = 0.0

    def pytest_runtest_setup(self, item: Any) -> None:
        graded = "gradients" in item.name or "training_step" in item.name
        asked = [not graded or "logits" in item.name, graded]
        self.kinds = [
            kind for kind, is_asked in zip(KINDS, asked, strict=True) if is_asked and PARITY.search(item.name)
        ]
        self.far = self.size = 0.0

    def pytest_runtest_teardown(self) -> None:
        for kind in self.kinds if self.size else ():
            self.found[kind] = max(self.found.get(kind, 0.0), self.far / self.size)

    def see(self, actual: Any, expected: Any) -> None:
        if isinstance(actual, (list, tuple)):
            for one, other in zip(actual, expected, strict=True):
                self.see(one, other)
        elif isinstance(actual, torch.Tensor) and actual.is_floating_point() and actual.numel():
            one, other = actual.detach().double(), expected.detach().double()
            self.far = max(self.far, float((one - other).abs().max()))
            self.size = max(self.size, float(other.abs().max()))


@contextlib.contextmanager
def watching(differences: Differences) -> Iterator[None]:
    plain = torch.testing.assert_close

    def assert_close(actual: Any, expected: Any, *args: Any, **kwargs: Any) -> None:
        plain(actual, expected, *args, **kwargs)
        differences.see(actual, expected)

    torch.testing.assert_close = assert_close
    try:
        yield
    finally:
        torch.testing.assert_close = plain


def measure(titles: list[str]) -> None:
    import pytest

    found = json.loads(RECORD.read_text()) if titles else {}
    for system in [system for system in SYSTEMS if not titles or system.title in titles]:
        differences = Differences()
        command = [
            "-q",
            "-p",
            "no:cacheprovider",
            "-x",
            *(str(HERE / f"test_{file}.py") for file in system.tests.split()),
        ]
        with watching(differences):
            code = pytest.main([*command, *(["-k", system.chosen] if system.chosen else [])], plugins=[differences])
        if code:
            sys.exit(f"models_page: the tests of {system.title} do not pass; nothing is written.")
        found[system.title] = {kind: float(f"{value:.1e}") for kind, value in sorted(differences.found.items())}
    RECORD.write_text(json.dumps(found, indent=1) + "\n")


def _parameters(names: list[str]) -> str:
    import vitkern

    counts = sorted({vitkern.describe(name).parameters for name in names})
    shown = [f"{count / 1e6:.1f}" if count < 1e9 else f"{count / 1e6:,.0f}" for count in counts]
    return ", ".join(dict.fromkeys(shown))


def _operators(name: str) -> str:
    import vitkern.models as models

    with torch.device("meta"):
        found = models.count_costs(models.create_model(name)).kernels
    return ", ".join(sorted(found))


def row(system: System, agreement: dict[str, float]) -> str:
    import vitkern

    names = [name for glob in system.names.split() for name in vitkern.list_models(glob)]
    if not names:
        raise SystemExit(f"models_page: no model is called {system.names!r}.")
    agrees = [f"{agreement[kind]:.0e}" if kind in agreement else "-" for kind in KINDS]
    cells = [system.title, f"`{system.names}` ({len(names)})", _parameters(names), system.published, system.peer]
    return "| " + " | ".join([*cells, *agrees, _operators(min(names, key=len)), system.weights]) + " |"


def head() -> list[str]:
    columns = ["system", "names", "parameters here, M", "published, M", "peer", *KINDS, "operators", "weights"]
    return [
        "# Models",
        "",
        "`vitkern.create_model(name)` builds them; `python -m vitkern models --describe NAME` says what one costs.",
        "Made by `python tests/models_page.py`. Results, gradients: the largest difference from the peer, relative to",
        "the largest value of a test, with random weights on the CPU, in float32 (some in float64), at small sizes and",
        "at least one odd one; where both are stored in one file, they are under results. Operators: those",
        "of vitkern that the forward pass calls.",
        "",
        "| " + " | ".join(columns) + " |",
        "|" + " --- |" * len(columns),
    ]


def notes() -> list[str]:
    return ["", *(f"{system.title}: {system.note}" for system in SYSTEMS if system.note)]


if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if "--measure" in sys.argv[1:]:
        measure(sys.argv[sys.argv.index("--measure") + 1 :])
    agreement = json.loads(RECORD.read_text())
    rows = [row(system, agreement.get(system.title, {})) for system in SYSTEMS]
    PAGE.write_text("\n".join([*head(), *rows, *notes()]) + "\n")
