"""Results of other implementations, in tests/golden: which there are, and whether a module gives the same."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import vitkern

FOLDER = Path(__file__).parent / "golden"


def each(pattern: str):
    """Parametrizes a test by the ``path`` of every case that matches, of which there is one at least."""
    paths = sorted(FOLDER.glob(f"{pattern}.safetensors"))
    assert paths, pattern
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def read(path: Path, blocks: str = "") -> tuple[dict, dict[str, Tensor]]:
    """(configuration, tensors by name), with ``blocks`` for the ".block.conv" that cvnets wraps convolutions in."""
    with safe_open(path, "pt") as file:
        tensors = {name.replace(".block.conv", blocks): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return json.loads(file.metadata()["config"]), tensors


def load(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    weights = {name.removeprefix("weights."): t for name, t in tensors.items() if name.startswith("weights.")}
    module.load_state_dict(weights, strict=True)


def policy_softmax(attn: Tensor, policy: Tensor, eps: float) -> Tensor:
    """The weights of policy attention from its scores (B, H, N, N): products with unit keys, sums of unit values."""
    unit = torch.eye(attn.shape[-1])[None, :, None].expand(attn.shape[0], -1, attn.shape[1], -1)
    qkv = torch.stack([attn.transpose(1, 2), unit, unit], 2)
    return vitkern.policy_attention(qkv, policy, scale=1.0, eps=eps).transpose(1, 2)


def with_features(model: nn.Module):
    """A call of a classifier that gives its pooled features too."""
    return lambda x: {"features": model.forward_head(model.forward_features(x), pre_logits=True), "y": model(x)}


def assert_stored(
    module: nn.Module, tensors: dict[str, Tensor], call=None, graded: bool = True, inputs: tuple[str, ...] = ("x",)
) -> None:
    """``module`` with the stored weights gives the stored results, and, if ``graded``, gradients of the ``inputs`` and
    of every parameter.

    ``call``: what is called with the inputs, the module itself by default; it gives a tensor, y, or several by name.
    """
    load(module, tensors)
    given = [tensors[f"input.{name}"].clone().requires_grad_() for name in inputs]
    found = (call or module)(*given)
    found = {"y": found} if isinstance(found, Tensor) else found
    for name, result in found.items():
        assert_close(result, tensors[f"output.{name}"], name)
    if not graded:
        return
    parameters = {name: parameter for name, parameter in module.named_parameters() if parameter.numel()}
    gradients = torch.autograd.grad(found["y"], [*given, *parameters.values()], tensors["cotangent.y"])
    expected = {name: tensors[f"grad.input.{name}"] for name in inputs}
    expected |= {name: tensors[f"grad.weights.{name}"] for name in parameters}
    largest = max(gradient.abs().max().item() for gradient in expected.values())
    for (name, wanted), gradient in zip(expected.items(), gradients, strict=True):
        assert_close(gradient, wanted, name, largest)


def assert_close(actual: Tensor, expected: Tensor, what: str, largest: float | None = None) -> None:
    """To float32's rounding; ``largest``: of all that was computed beside it, for sums that cancel to nothing."""
    largest = expected.abs().max().item() if largest is None else largest
    torch.testing.assert_close(
        actual, expected, rtol=1e-5, atol=3e-6 * max(1.0, largest), msg=lambda text: f"{what}: {text}"
    )
