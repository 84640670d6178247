"""LayerNorm and MLP of another library's block as one op, where nothing is attached to the parts it bypasses."""

from collections.abc import Callable
from typing import NamedTuple, TypeGuard

import torch
from torch import Tensor, nn

from vitkern.dispatch import is_eager
from vitkern.interop.structure import like
from vitkern.ops.bypass import all_plain, ordinary, plain
from vitkern.ops.layernorm_glu import layernorm_glu
from vitkern.ops.layernorm_mlp import layernorm_mlp
from vitkern.ops.token_mixing import token_mixing

# Classes an adapter may look through, they and their copies. Each library's module adds its own.
LAYER_NORMS: list[type] = [nn.LayerNorm]
ACTIVATIONS: dict[type, str] = {nn.GELU: "gelu"}
GATES: dict[type, str] = {nn.Identity: "identity", nn.ReLU: "relu", nn.Sigmoid: "sigmoid", nn.SiLU: "silu"}
DROP_PATHS: list[type] = [nn.Identity]
WRAPPERS: list[type] = []  # what holds the linears of an MLP
LAYER_SCALES: list[type] = []  # with their factors as ``gamma``


def silent(module: nn.Module, training: bool | None = None) -> bool:
    """Passes its input on: an Identity, or a Dropout that drops nothing (in its own mode, or as if in ``training``)."""
    if type(module) is nn.Dropout:
        return plain(module, nn.Dropout) and (
            module.p == 0.0 or not (module.training if training is None else training)
        )
    return plain(module, nn.Identity)


class Mlp(NamedTuple):
    """The parts of ``x + drop_path(layer_scale(fc2(act(fc1(norm(x))))))``; post-norm has ``norm`` after ``fc2``.

    With a ``gate``, ``act(gate) * value`` stands for act: "first" or "last" of the halves of fc1, or "pair": fc1 gives
    it, and ``value`` is the linear of the values."""

    norm: nn.Module
    fc1: nn.Module
    act: nn.Module
    fc2: nn.Module
    between: tuple[nn.Module, ...] = ()  # must be silent: dropouts, an optional inner norm
    wrappers: tuple[nn.Module, ...] = ()  # containers that are not called any more
    layer_scale: nn.Module | Tensor | None = None  # or the factors themselves
    drop_path: nn.Module | None = None
    gate: str = ""
    value: nn.Module | None = None

    @property
    def linears(self) -> tuple[nn.Module, ...]:
        return (self.fc1, self.fc2) if self.value is None else (self.fc1, self.value, self.fc2)

    @property
    def activation(self) -> str | None:
        """The op's name for ``act``, None where it has none."""
        if self.gate and type(self.act) in GATES:
            return GATES[type(self.act)]
        name = activation(self.act)
        return None if self.gate and name == "quick_gelu" else name

    @property
    def op(self) -> str:
        return "layernorm_glu" if self.gate else "layernorm_mlp"


def obstacle(mlp: Mlp, training: bool | None = None) -> str | None:
    """Why the parts cannot be one op just now, or None. ``training``: as if the dropouts were in that mode."""
    norm, layer_scale, drop_path = mlp.norm, mlp.layer_scale, mlp.drop_path
    if not like(type(norm), *LAYER_NORMS):
        return f"its norm is a {type(norm).__name__}"
    if len(norm.normalized_shape) != 1 or getattr(norm, "_fast_norm", False):
        return "its LayerNorm is over several dimensions, or timm's fast one"
    if mlp.activation is None:
        return f"its activation is a {type(mlp.act).__name__}"
    for linear in mlp.linears:
        if type(linear) is not nn.Linear:
            return f"its linear is a {type(linear).__name__}"
        if not ordinary(linear.weight):
            return "its linear's weight is no ordinary floating-point tensor"
    for module in mlp.wrappers:
        if not like(type(module), *WRAPPERS):
            return f"it is a {type(module).__name__}"
    for module in mlp.between:
        if not silent(module, training):
            return _loud(module)
    if drop_path is not None and not like(type(drop_path), *DROP_PATHS):
        return f"its stochastic depth is a {type(drop_path).__name__}"
    if isinstance(layer_scale, Tensor):
        if not ordinary(layer_scale):
            return "its layer scale is no ordinary floating-point tensor"
        if layer_scale.shape != norm.normalized_shape:
            return "its layer scale is not one factor for each channel"
        layer_scale = None
    elif layer_scale is not None and not like(type(layer_scale), *LAYER_SCALES):
        return f"its layer scale is a {type(layer_scale).__name__}"
    if mlp.value is not None and (mlp.value.bias is None) != (mlp.fc1.bias is None):
        return "of gate and value one has a bias"
    parts = (norm, mlp.act, *mlp.linears, layer_scale, drop_path, *mlp.wrappers)
    if not all_plain(part for part in parts if part is not None):
        return "hooks, a forward or weights of its own are attached to one of its parts"
    return None


def fits(mlp: Mlp | None) -> TypeGuard[Mlp]:
    """Whether these are the parts of an MLP, and one op just now."""
    return mlp is not None and obstacle(mlp) is None


def _loud(module: nn.Module) -> str:
    if type(module) is nn.Dropout:
        return "its dropout is active or hooked"
    return f"it holds a {type(module).__name__}"


def activation(module: nn.Module) -> str | None:
    """The op's name for an activation module, None where it has none."""
    name = ACTIVATIONS.get(type(module))
    if name == "gelu" and getattr(module, "approximate", "none") == "tanh":
        return "gelu_tanh"
    return name


def run(x: Tensor, mlp: Mlp, post_norm: bool = False) -> Tensor:
    """``x`` (B, ..., C) with the MLP's residual branch added. Only where `obstacle` is None."""
    scale = mlp.layer_scale
    arguments = (x, mlp.norm.weight, mlp.norm.bias, mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    options = dict(
        eps=mlp.norm.eps,
        act=mlp.activation,
        layer_scale=scale.gamma if isinstance(scale, nn.Module) else scale,
        row_scale=_row_scale(x, mlp.drop_path),
    )
    if not mlp.gate:
        return layernorm_mlp(*arguments, **options, post_norm=post_norm)
    if mlp.value is not None:
        options |= dict(value_weight=mlp.value.weight, value_bias=mlp.value.bias)
    return layernorm_glu(*arguments, **options, gate_last=mlp.gate == "last")


def run_over_tokens(x: Tensor, mlp: Mlp) -> Tensor:
    """``x`` (B, N, C) with the residual branch of an MLP along the tokens added. Only where `obstacle` is None."""
    linears = (mlp.fc1.weight, mlp.fc1.bias, mlp.fc2.weight, mlp.fc2.bias)
    norm, row_scale = (mlp.norm.weight, mlp.norm.bias), _row_scale(x, mlp.drop_path)
    return token_mixing(x, *norm, *linears, eps=mlp.norm.eps, act=mlp.activation, row_scale=row_scale)


def _row_scale(x: Tensor, drop_path: nn.Module | None) -> Tensor | None:
    """Called on ones, stochastic depth gives its factors and takes from the generator what it always takes."""
    if drop_path is None or not drop_path.training or type(drop_path) is nn.Identity:
        return None
    return drop_path(x.new_ones(x.shape[0], 1, 1)).flatten()


def joined(x: Tensor, *linears: nn.Module) -> Callable[[Tensor], Tensor]:
    """The results of several linears of ``x`` (..., C) side by side, as one projection.

    Plain ones are joined by their weights where those are fewer than the results.
    """
    tokens = x.numel() // max(x.shape[-1], 1)
    if tokens < x.shape[-1] or not all(plain(linear, nn.Linear) for linear in linears):
        return lambda rows: torch.cat([linear(rows) for linear in linears], -1)
    weight = torch.cat([linear.weight for linear in linears])
    biases = [weight.new_zeros(n.out_features) if n.bias is None else n.bias for n in linears]
    bias = None if all(linear.bias is None for linear in linears) else torch.cat(biases)
    return lambda rows: nn.functional.linear(rows, weight, bias)


def residual(x: Tensor, branch: Tensor, source: nn.Module, *after: nn.Module) -> Tensor:
    """``x + branch``; without gradients on a CPU into ``branch``, if that is the fresh result of a plain ``source``,
    which nobody else holds.

    ``after``: the modules between ``source`` and here, which then must have passed it on untouched.
    """
    if (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and is_eager(x, branch)
        and branch.dtype == x.dtype
        and plain(source, nn.Linear, *LAYER_NORMS)
        and all(silent(module) or (_drops_paths(module) and not module.training) for module in after)
    ):
        return branch.add_(x)
    return x + branch


def _drops_paths(module: nn.Module) -> bool:
    return plain(module, type(module)) and like(type(module), *DROP_PATHS)


def mlp_fit(mlp: Mlp) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(ops, reasons) of the MLP for an adapter's `Fit`."""
    reason = obstacle(mlp, training=False)
    if reason is not None:
        return (), (f"MLP not fused: {reason}",)
    if obstacle(mlp, training=True) is not None:
        return (mlp.op,), ("MLP not fused in training: its dropout is active then",)
    return (mlp.op,), ()


def fit_of(mlp: Mlp | None, module: nn.Module) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`mlp_fit` of what ``module``, a block's MLP, was taken apart into; None where it is of another kind."""
    return mlp_fit(mlp) if mlp is not None else ((), (f"MLP not fused: it is a {type(module).__name__}",))
