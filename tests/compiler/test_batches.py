"""Kernels of other batches and image sizes than those that are compiled: which there are, without compiling any."""

import functools
import random
from collections import defaultdict
from dataclasses import replace

import pytest
import torch

import vitkern
from vitkern.lab.compiling import digest
from vitkern.lab.compiling.layer import BATCH, HALF, MANY, backward, leaf
from vitkern.lab.compiling.matrix import archs_of, launches

pytestmark = pytest.mark.compiler
MOST = 4  # kernels of one source over all sizes
SOURCES = digest.Sources()


@functools.cache
def _keys(name: str, arch: int, batch: int) -> frozenset[str]:
    one = launches()[name]
    per_sample = {"biases": batch} if "biases" in one.options else {}
    options = one.options | dict(batch=batch) | per_sample if batch != BATCH else one.options
    return frozenset(kernel.key for kernel in digest.launches_of(replace(one, options=options).run, arch, SOURCES))


def _lacking(names, recorded) -> list[str]:
    """Launches that are another kernel at a batch of `MANY`, which ``recorded``, of an architecture, does not have."""
    varied = {launches()[name].of for name in launches()}
    return [
        name
        for name in names
        if name not in varied and not _keys(name, archs_of(name)[0], MANY) <= recorded[archs_of(name)[0]]
    ]


def test_every_launch_is_compiled_at_many_images_too():
    recorded = defaultdict(set)
    asked = {archs_of(name)[0] for name, one in launches().items() if "batch" not in one.options}
    for name, one in launches().items():
        for arch in asked.intersection(archs_of(name)) if "batch" in one.options else archs_of(name)[:1]:
            recorded[arch] |= _keys(name, arch, BATCH)
    fixed = [name for name, one in launches().items() if "batch" not in one.options]
    assert not _lacking(fixed, recorded)
    assert _lacking(fixed, defaultdict(set)) == [n for n in fixed if n not in {one.of for one in launches().values()}]


def test_a_launch_at_many_images_is_another_kernel():
    for name, one in launches().items():
        if one.of:
            arch = archs_of(name)[0]
            assert arch in archs_of(one.of) or one.everywhere, name
            assert _keys(name, arch, BATCH) != _keys(one.of, arch, BATCH), f"{name} compiles what {one.of} does"


def _counted(sizes, run) -> dict[str, int]:
    """Kernels that ``run(*size)`` launches over all sizes, for sm_90, by label."""
    found = defaultdict(set)
    for size in sizes:
        for kernel in digest.launches_of(functools.partial(run, *size), 90, SOURCES):
            found[kernel.label].add(kernel.key)
    return {label: len(keys) for label, keys in found.items()}


def _drawn(count, low, high, step=1):
    drawing = random.Random(0)
    return [tuple(drawing.randrange(low, high + 1, step) for _ in range(2)) for _ in range(count)]


def _local(height, width, *, channels, heads, block=1, halo=0, border="keep", rel=False, table=False):
    """``block`` 0: the image."""
    block = (block, block) if block else (height, width)
    extents = {"rel_h": block[0], "rel_w": block[1]} if rel else {}
    terms = {name: leaf(1, height, width, heads, extent, dtype=HALF) for name, extent in extents.items()}
    if table:
        terms["table"] = leaf(heads, 4 * halo + 1, 4 * halo + 1, dtype=torch.float32)
    if border == "keep" and (height % block[0] or width % block[1]):
        terms["padding"] = leaf(3 * channels, dtype=HALF)
    options = dict(num_heads=heads, block=block, halo=(halo, halo), border=border)
    backward(vitkern.local_attention(leaf(1, height, width, 3 * channels, dtype=HALF), **terms, **options))


def _swin(height, width, *, stage, shift):
    """A stage of Swin-T in a detector, which pads images to whole patches."""
    channels, heads, patch = 96 * 2**stage, 3 * 2**stage, 4 * 2**stage
    height, width = -(-height // patch), -(-width // patch)
    padding = leaf(3 * channels, dtype=HALF) if height % 7 or width % 7 else None
    options = dict(num_heads=heads, window=(7, 7), shift=(shift, shift), wrap="padded", padding=padding)
    qkv, table = leaf(2, height, width, 3 * channels, dtype=HALF), leaf(169, heads, dtype=torch.float32)
    backward(vitkern.window_attention(qkv, table=table, **options))


def _vit(tokens):
    backward(vitkern.attention_qkvpacked(leaf(2, tokens, 3, 6, 64, dtype=HALF)))


SAM = functools.partial(_local, channels=768, heads=12, rel=True)
CASES = {
    "SAM, the image": (_drawn(80, 24, 64), functools.partial(SAM, block=0)),
    "SAM, windows": (_drawn(40, 24, 64), functools.partial(SAM, block=14)),
    "NAT": (_drawn(80, 14, 72), functools.partial(_local, channels=64, heads=2, halo=3, border="clamp", table=True)),
    "ViT": ([(height * width + 1,) for height, width in _drawn(80, 14, 40)], _vit),
    **{
        f"Swin detection, stage {stage + 1}, shift {shift}": (
            _drawn(40, 480, 1344, 32) + _drawn(40, 480, 1344),
            functools.partial(_swin, stage=stage, shift=shift),
        )
        for stage in range(4)
        for shift in (0, 3)
    },
}


@pytest.mark.walk(2)
@pytest.mark.parametrize("case", CASES)
def test_few_kernels_serve_all_image_sizes(case):
    counts = _counted(*CASES[case])
    assert counts and max(counts.values()) <= MOST, counts
