"""The kernels of local attention against float64: outputs and every gradient, for every kind of border."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import reach

from vitkern.dispatch import use_backend
from vitkern.kernels.loop.blocks import local_tile
from vitkern.kernels.machine.architecture import INTERPRETER
from vitkern.lab.proving.verify import verify
from vitkern.lab.specimens.local_attention import problem as local_problem
from vitkern.ops.attention import attention_qkvpacked
from vitkern.ops.local_attention import local_attention
from vitkern.ops.window_attention import window_attention

pytestmark = pytest.mark.interpreter

PROBLEMS = (
    local_problem("one row", (1, 9), (1, 1), (0, 2), "clamp", table=True, batch=2),
    local_problem(
        "classes of several lengths", (7, 10), (1, 1), (1, 1), "clamp", dilation=(2, 3), table=True, lse=True
    ),
    local_problem("window larger than the tile", (10, 5), (1, 1), (4, 1), "clamp", table=True, heads=1),
    local_problem("zeros outside", (5, 6), (1, 1), (1, 2), rel=True, heads=1),
    local_problem("blocks of unlike sides", (6, 8), (3, 4), (1, 2), rel=True, table=True, heads=1),
    local_problem("chunks", (5, 4), (2, 3), (2, 3), "exclude", table=True, lse=True),
    local_problem("exact chunks", (5, 4), (1, 1), (2, 3), "exclude", table=True, heads=1),
    local_problem("cyclic chunks, twice the same neighbour", (4, 5), (2, 3), (2, 3), "wrap", table=True),
    local_problem("a ring of single tokens", (1, 7), (1, 1), (0, 1), "wrap", table=True),
    local_problem("a chunk and the one below", (4, 6), (2, 3), (2, 3), "wrap", neighbor=(1, 0), heads=1),
    local_problem("windows that stick out", (3, 5), (2, 4), padding=True, rel=True),
    local_problem("grid", (4, 6), (2, 3), dilation=(2, 2), table=True),
)


@pytest.fixture(autouse=True)
def _kernels_or_error():
    with use_backend("interpreter"):
        yield


def check(problem, dtype):
    for result in verify(problem, dtype, torch.device("cpu")):
        assert result.comparison.passed, result


@pytest.mark.walk(3)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_against_float64(problem):
    check(problem, torch.float32)


# every kind of border, and every tensor that may be given
ROUNDED = "classes of several lengths", "exact chunks", "a ring of single tokens", "windows that stick out"


@pytest.mark.parametrize("problem", [one for one in PROBLEMS if one.name in ROUNDED], ids=str)
def test_in_bfloat16(problem):  # float16 too in fuzz and check
    check(problem, torch.bfloat16)


@pytest.mark.parametrize("near", reach.NEAR.values(), ids=reach.NEAR)
def test_how_far_a_nan_spreads(near):
    """A score that is not seen is replaced, where in PyTorch a mask is added; 0 times NaN is NaN in both."""
    own, seen, read = reach.reached(local_tile(1, 1, min(reach.IMAGE), False, False, INTERPRETER), near)
    for part, expected in enumerate(reach.spread(own, seen, read)):
        assert torch.equal(reach.spoiled(local_attention, part, near), expected), "qkv"[part]


def test_a_window_as_large_as_the_image_is_dense_attention():
    qkv = torch.randn(2, 5, 3, 3 * 32)
    dense = attention_qkvpacked(qkv.view(2, 15, 3, 2, 16)).view(2, 5, 3, 32)
    for options in (
        dict(block=(5, 3)),
        dict(block=(1, 1), halo=(2, 1), border="clamp"),
        dict(block=(6, 7), border="exclude"),
    ):
        torch.testing.assert_close(local_attention(qkv, num_heads=2, **options), dense)


def test_blocks_without_a_halo_are_windows():
    qkv, padding = torch.randn(1, 5, 6, 3 * 32), torch.randn(96)
    windows = window_attention(qkv, num_heads=2, window=(4, 4), padding=padding)
    torch.testing.assert_close(local_attention(qkv, num_heads=2, block=(4, 4), padding=padding), windows)


def test_gradients_that_are_not_needed_are_not_computed():
    table = torch.randn(2, 5, 5, requires_grad=True)
    options = dict(num_heads=2, block=(1, 1), halo=(1, 1), border="clamp")
    qkv = torch.randn(1, 4, 5, 96)
    (alone,) = torch.autograd.grad(local_attention(qkv, table=table, **options).sum(), table)
    qkv.requires_grad_()
    together = torch.autograd.grad(local_attention(qkv, table=table, **options).sum(), (qkv, table))
    assert torch.equal(alone, together[1])
