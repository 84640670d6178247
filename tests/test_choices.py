"""What chooses for a kernel is known by name, and others can answer in its place."""

import pytest

pytest.importorskip("triton", reason="kernels/ is imported with it")

import torch

import vitkern.kernels
from vitkern.kernels.loop.heads import head_parts, one_tile
from vitkern.kernels.machine.blocks import Config, dot_precision, first_row
from vitkern.kernels.machine.choices import answered, choice, choices, replaced
from vitkern.kernels.rows import matmul
from vitkern.kernels.rows.blocks import pointwise_config


def test_every_config_function_is_a_choice():
    found = {name: value for module in vitkern.kernels.modules() for name, value in vars(module).items()}
    configs = {name: value for name, value in found.items() if name.endswith("_config")}
    assert configs and configs == {name: value for name, value in choices().items() if name in configs}


def test_another_answer_reaches_who_imported_the_choice_by_name_and_ends_with_the_block():
    usual, other = pointwise_config(90), Config(1, 2, 3, 4)
    with pytest.raises(RuntimeError), replaced({"pointwise_config": lambda arch: other}):
        assert matmul.pointwise_config(90) == choices()["pointwise_config"](90) == other
        raise RuntimeError
    assert matmul.pointwise_config(90) == usual


def test_the_inner_of_two_blocks_asks_the_outer():
    def wider(choice, *args, **kwargs):
        found = choice(*args, **kwargs)
        return found._replace(num_warps=2 * found.num_warps) if choice.__name__ == "pointwise_config" else found

    with replaced({"pointwise_config": lambda arch: Config(1, 2, 3, arch)}), answered(wider):
        assert pointwise_config(90) == Config(1, 2, 6, 90)
        with answered(wider):
            assert pointwise_config(arch=80) == Config(1, 2, 12, 80)
        with one_tile():
            assert head_parts(80, 90, False) == (128, 0)
        assert head_parts(80, 90, False) == (64, 16)


def test_a_name_is_given_once():
    with pytest.raises(ValueError, match="got pointwise_config; expected another"):
        choice(pointwise_config)


def test_the_first_row_whose_conditions_hold_counts():
    both, one, none, beyond = (Config(n, n, n, n) for n in (1, 7, 8, 9))
    families = {80: 2, 86: 2, 89: 2, 120: 3, 121: 3, 90: 4, 100: 5, 942: 6}
    rows = {"a b": both, "b": tuple((n,) * 4 for n in range(2, 7)), "a": one, "": none}
    for arch, n in families.items():
        assert first_row({64: rows}, 64, arch, a=False, b=True) == (n,) * 4
    asked = ((1, 1, 1, both), (64, 1, 0, one), (64, 0, 0, none), (65, 1, 1, beyond), (999, 0, 1, beyond))
    for size, a, b, row in asked:
        assert first_row({64: rows, 128: {"": beyond}}, size, 90, a=a, b=b) is row


NEWER = hasattr(torch.backends.cuda.matmul, "fp32_precision")  # of PyTorch's switches: it came with 2.9


@pytest.fixture
def switches():
    """PyTorch's switches, put back after the test; while the newer one is set, the older cannot be read."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32
    if NEWER:
        matmul.fp32_precision = "none"  # whoever set and restored the older switch left it at "ieee"
    yield matmul
    for switch in (torch.backends, matmul) if NEWER else ():
        switch.fp32_precision = "none"
    matmul.allow_tf32 = before
    if NEWER:
        matmul.fp32_precision = "none"


@pytest.mark.skipif(not NEWER, reason="an older torch")
@pytest.mark.parametrize("where", ["all", "matmul"])
def test_products_are_as_the_newer_switch_says(where, switches):
    switch = switches if where == "matmul" else torch.backends
    for precision in ("tf32", "ieee"):
        switch.fp32_precision = precision
        assert dot_precision(torch.float32) == precision
        assert dot_precision(torch.float16) == "ieee"


@pytest.mark.parametrize(("allowed", "precision"), [(True, "tf32"), (False, "ieee")])
def test_products_are_as_the_older_switch_says(allowed, precision, switches):
    switches.allow_tf32 = allowed
    assert dot_precision(torch.float32) == precision
