"""docs/models.md is what its command makes of the record, and names every model."""

import json
from fnmatch import fnmatch

import models_page
import pytest
import torch
from systems import SYSTEMS

from vitkern.models import list_models

HEAD, NOTES, LINES = models_page.head(), models_page.notes(), models_page.PAGE.read_text().splitlines()


def test_the_page_has_a_row_for_each_system():
    assert LINES[: len(HEAD)] == HEAD and LINES[-len(NOTES) :] == NOTES, "run python tests/models_page.py"
    assert [line.split(" | ")[0] for line in LINES[len(HEAD) : -len(NOTES)]] == [
        f"| {system.title}" for system in SYSTEMS
    ]


@pytest.mark.walk(6)
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.title)
def test_a_row_is_made_of_the_record(system):
    record = json.loads(models_page.RECORD.read_text())
    assert LINES[len(HEAD) + SYSTEMS.index(system)] == models_page.row(system, record[system.title])


def test_every_model_has_a_row_and_every_row_a_measured_agreement():
    globs = [glob for system in SYSTEMS for glob in system.names.split()]
    assert [name for name in list_models() if not any(fnmatch(name, glob) for glob in globs)] == []
    record = json.loads(models_page.RECORD.read_text())
    assert set(record) == {system.title for system in SYSTEMS}
    for title, found in record.items():
        assert found, f"{title}: nothing was compared"
        assert all(0 <= value < 1e-4 for value in found.values()), title


def test_the_largest_difference_of_a_kind_is_kept():
    differences = models_page.Differences()

    class Item:
        name = "test_gradients_agree[x]"

    for error in (1e-3, 2e-3):
        differences.pytest_runtest_setup(Item)
        with models_page.watching(differences):
            torch.testing.assert_close([torch.tensor([4.0])], [torch.tensor([4.0 + error])], rtol=1, atol=1)
        differences.pytest_runtest_teardown()
    assert list(differences.found) == ["gradients"] and 4.9e-4 < differences.found["gradients"] < 5.1e-4
