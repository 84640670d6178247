"""The digest of a kernel changes with all that its machine code follows from, and with nothing else."""

import importlib.util
import json
import linecache
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from vitkern.kernels.machine.launch import launch
from vitkern.lab import trees
from vitkern.lab.compiling import digest, recorded

pytestmark = pytest.mark.compiler
ROOT = Path(__file__).resolve().parents[2]
SOURCE = '''
import math
from typing import NamedTuple

import triton
import triton.language as tl

FACTOR = tl.constexpr(0.5)
SIZES = (tl.constexpr(2), ("nested", 7))


class Pair(NamedTuple):
    first: int
    second: int = 3


@triton.jit
def twice(value):
    """Of a value."""
    return value * 2  # not three times


@triton.jit
def far(value, OFFSET: tl.constexpr = FACTOR):
    if SIZES[0] == 2:
        value = twice(value)
    return tl.exp2(value) * OFFSET


@triton.jit
def near(value):
    return far(value) + Pair(1, 2).first


@triton.jit
def kernel(x, out, strides, columns, HOOK: tl.constexpr, SHIFTS: tl.constexpr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    value = HOOK(tl.load(x + i * strides[1], mask=i < columns))
    tl.store(out + i * strides[0], near(value) + SHIFTS[0], mask=i < columns)


@triton.jit
def other(x, out, columns, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(out + i, tl.load(x + i, mask=i < columns), mask=i < columns)
'''


def _module(source, folder, name):
    """``source`` as a module in a file."""
    path = folder / f"{name}.py"
    path.write_text(source)
    linecache.checkcache(str(path))
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def digests(tmp_path):
    """digests(source, arguments) -> those of ``kernel`` and ``other``."""
    made = []

    def get(
        source=SOURCE, arch=80, strides=(64, 128), columns=4096, dtype=torch.float32, hook="twice", shifts=(1, (2,)),
        block=64, offset=0, num_warps=4, num_stages=1, masked=True,
    ):  # fmt: skip
        made.append(_module(source, tmp_path, f"written_{len(made)}"))
        written, options = made[-1], dict(num_warps=num_warps, num_stages=num_stages)

        def run():
            x, out = (torch.empty(80, dtype=dtype)[offset:] for _ in range(2))
            constants = dict(HOOK=getattr(written, hook), SHIFTS=shifts, BLOCK=block)
            launch(written.kernel, (4,), x, out, strides, columns if masked else None, **constants, **options)
            launch(written.other, (4,), torch.empty(4096), torch.empty(4096), 4096, BLOCK=64, num_warps=4, num_stages=1)

        found = {one.name: one.key for one in digest.launches_of(run, arch, digest.Sources())}
        return found["kernel"], found["other"]

    return get


@pytest.mark.parametrize(
    "old, new",
    [
        ("", ""),
        ("import math\n", "import math\n" + 10 * "\n"),
        ("@triton.jit\ndef twice", 10 * "\n" + "@triton.jit\ndef twice"),
        ("  # not three times", ""),
        ('    """Of a value."""\n', '    """Of two values."""\n'),
        ('    """Of a value."""\n', ""),
        ("x, out, strides, columns, HOOK", "\n    x,\n    out,\n    strides, columns, HOOK"),
        ("value * 2", "(value*2)"),
        ("def other(", "def another():\n    return 3\n\n\n@triton.jit\ndef other("),
    ],
)
def test_what_says_the_same_has_the_same_digest(digests, old, new):
    changed = SOURCE.replace(old, new, 1)
    assert (changed == SOURCE) == (old == new) and digests(changed) == digests()


@pytest.mark.parametrize(
    "old, new",
    [
        ("return value * 2", "return value * 3"),  # two calls away, and a hook
        ("tl.exp2(value)", "tl.math.exp2(value)"),
        ("OFFSET: tl.constexpr = FACTOR", "OFFSET: tl.constexpr = 0.5"),
        ("FACTOR = tl.constexpr(0.5)", "FACTOR = tl.constexpr(0.25)"),
        ("FACTOR = tl.constexpr(0.5)", "FACTOR = tl.constexpr(True)"),
        ("SIZES = (tl.constexpr(2), (", "SIZES = (tl.constexpr(2.0), ("),
        ('("nested", 7)', '("nested", 8)'),
        ("second: int = 3", "second: int = 4"),
        ("@triton.jit\ndef near", "@triton.jit(noinline=True)\ndef near"),
        ("SHIFTS[0], mask=i < columns", "SHIFTS[0], mask=i <= columns"),
    ],
)
def test_a_changed_source_changes_the_digest_of_what_reaches_it(digests, old, new):
    changed = SOURCE.replace(old, new, 1)
    kernel, other = digests(changed)
    assert changed != SOURCE and kernel != digests()[0] and other == digests()[1]


@pytest.mark.parametrize(
    "given",
    [
        dict(block=128),
        dict(strides=(64, 129)),
        dict(strides=(64, 1)),
        dict(strides=(64, 2**40)),
        dict(columns=4097),
        dict(masked=False),
        dict(dtype=torch.float16),
        dict(offset=1),
        dict(hook="near"),
        dict(shifts=(1, (3,))),
        dict(shifts=(1, (2, 2))),
        dict(num_warps=8),
        dict(num_stages=2),
    ],
    ids=str,
)
def test_a_changed_launch_changes_its_digest(digests, given):
    kernel, other = digests(**given)
    assert kernel != digests()[0] and other == digests()[1]


def test_what_triton_does_not_specialise_on_is_no_part(digests):
    assert digests(columns=8192, strides=(48, 160)) == digests()


def test_every_architecture_and_version_has_its_own(digests, monkeypatch):
    found = [digests(arch=arch) for arch in (80, 90, 942)]
    monkeypatch.setattr("triton.__version__", "3.9.77")
    found.append(digests())
    assert len({kernel for pair in found for kernel in pair}) == 8


def test_a_constant_without_a_text_is_refused():
    with pytest.raises(TypeError, match="a constant without a text: got <object"):
        digest.Sources().value((1, object()))


def test_texts_have_bounds_and_an_order():
    assert len({trees.digest(*texts) for texts in (("ab",), ("a", "b"), ("b", "a"), ("", "ab"), ())}) == 5


PLANTED = """
import json, sys
from vitkern.lab.breaking import planting
from vitkern.lab.compiling import digest, recorded
planting.plant(json.loads(sys.argv[1]))
found, unknown = recorded.launched([tuple(cell) for cell in json.loads(sys.argv[2])])
print(json.dumps([[one.key for one in found[cell]] for cell in found]))
"""


def test_kernels_that_reach_a_changed_file_and_others():
    cells = [("attention-d64-vit-s-384", 80), ("layernorm-96", 80), ("short-d32-window-49", 90), ("mlp-96", 90)]
    heads, tiles = ((ROOT / f"kernels/{file}.py").read_text() for file in ("loop/heads", "machine/tiles"))
    broken = heads.replace("tl.trans(b[0]), input_precision", "tl.trans(b[0]) * 1, input_precision")
    assert broken != heads

    def planted(sources):
        command = [sys.executable, "-c", PLANTED, json.dumps(sources), json.dumps(cells)]
        return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)

    now, _ = recorded.launched(cells)
    before = [[one.key for one in launches] for launches in now.values()]
    moved = {"loop/heads": f"# Moved.\n\n\n\n{heads}", "machine/tiles": f"{tiles}\n\nNOTHING = None\n"}
    assert planted(moved) == before
    after = planted({"loop/heads": broken})
    streams, layernorm, short, mlp = (
        [old != new for old, new in zip(*both, strict=True)] for both in zip(before, after, strict=True)
    )
    assert streams == [True] * 3 and len(short) == 2 and not any(layernorm + short + mlp)
