"""Problems: an operator on one set of inputs, and the formula that computes the same in float64."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

OPS = ("attention", "window_attention", "local_attention", "sparse_attention", "layernorm", "layernorm_mlp")
_FILES = {"layernorm_mlp": "mlp"}


@dataclass(frozen=True)
class Problem:
    """One operator on one set of inputs.

    ``inputs(generator)`` returns float64 (or bool, or int) CPU tensors by argument name; ``gradients`` names those that
    get one. ``outputs`` names what the operator returns, the first ``differentiable`` of which have a gradient.
    ``family``: the operator or module, without a kernel of its own, that calls ``op`` so.
    """

    op: str
    name: str
    inputs: Callable[[Generator], dict[str, Tensor]]
    gradients: tuple[str, ...]
    options: dict = field(default_factory=dict)
    function: str = ""
    outputs: tuple[str, ...] = ("out",)
    differentiable: int = 1
    formula: Callable | None = None
    family: str = ""

    def __str__(self) -> str:
        return f"{self.op}: {self.name}"

    @property
    def run(self) -> Callable:
        """The public function of `vitkern.ops`."""
        return self._function("ops")

    @property
    def reference(self) -> Callable:
        """The same function of `vitkern.reference`, or ``formula``; also takes ``low_precision``."""
        return self.formula or self._function("reference")

    def _function(self, layer: str) -> Callable:
        module = importlib.import_module(f"vitkern.{layer}.{_FILES.get(self.op, self.op)}")
        return getattr(module, self.function or self.op)


def normal(generator: Generator, *shape: int, std: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * std


def attention_problem(
    name: str,
    shape: tuple,
    *,
    keys: int | None = None,
    kv_heads: int = 0,
    bias=None,
    extra=None,
    outputs=("out",),
    **options,
) -> Problem:
    """``shape`` (B, H, N, D); ``bias`` a learned bias's shape; ``extra(generator)`` tensors without a gradient."""
    batch, heads, tokens, dim = shape

    def inputs(generator):
        kv = (batch, kv_heads or heads, tokens if keys is None else keys, dim)
        tensors = dict(q=normal(generator, *shape), k=normal(generator, *kv), v=normal(generator, *kv))
        if bias is not None:
            tensors["bias"] = normal(generator, *bias)
        return tensors | (extra(generator) if extra else {})

    gradients = ("q", "k", "v") if bias is None else ("q", "k", "v", "bias")
    return Problem("attention", name, inputs, gradients, options, outputs=outputs)


def packed_problem(
    name: str, batch: int, tokens: int, heads: int, dim: int, *, bias=None, extra=None, outputs=("out",), **options
) -> Problem:
    """As `attention_problem`, on the output (B, N, 3, H, D) of a joint projection."""

    def inputs(generator):
        tensors = dict(qkv=normal(generator, batch, tokens, 3, heads, dim))
        if bias is not None:
            tensors["bias"] = normal(generator, *bias)
        return tensors | (extra(generator) if extra else {})

    def formula(qkv, **arguments):
        from vitkern.reference.attention import attention

        found = attention(*qkv.permute(2, 0, 3, 1, 4).unbind(0), **arguments)
        return (found[0].transpose(1, 2), *found[1:]) if isinstance(found, tuple) else found.transpose(1, 2)

    gradients = ("qkv",) if bias is None else ("qkv", "bias")
    return Problem(
        "attention",
        name,
        inputs,
        gradients,
        options,
        function="attention_qkvpacked",
        outputs=outputs,
        formula=formula,
    )


def random_mask(*shape: int, empty_row: bool) -> Callable:
    def make(generator):
        mask = torch.rand(*shape, generator=generator) < 0.7
        if empty_row:
            mask[..., 3, :] = False
        return dict(mask=mask)

    return make


def key_padding(batch: int, keys: int) -> Callable:
    """Entry b keeps all but the last 7 b keys."""
    return lambda g: dict(key_padding_mask=torch.arange(keys)[None, :] < keys - 7 * torch.arange(batch)[:, None])


def window_problem(
    name: str, image: tuple, window: tuple, *, heads=2, dim=16, batch=1, shift=(0, 0), cosine=False, **options
) -> Problem:
    """``image`` (img_h, img_w); a padding vector is given where the window does not divide the image."""
    channels = heads * dim
    padded = any(side % cell for side, cell in zip(image, window, strict=True))
    rows = (2 * window[0] - 1) * (2 * window[1] - 1)

    def inputs(generator):
        tensors = dict(qkv=normal(generator, batch, *image, 3 * channels), table=normal(generator, rows, heads))
        if padded:
            tensors["padding"] = normal(generator, 3 * channels)
        if cosine:
            tensors["logit_scale"] = 2.0 + normal(generator, heads, std=0.2)
        return tensors

    names = ["qkv", "table"] + ["padding"] * padded + ["logit_scale"] * cosine
    return Problem(
        "window_attention", name, inputs, tuple(names), dict(num_heads=heads, window=window, shift=shift, **options)
    )


def local_problem(
    name: str, image: tuple, block: tuple, halo: tuple = (0, 0), border: str = "keep",
    *, heads=2, dim=16, batch=1, table=False, rel=False, padding=False, lse=False, of="", **options,
) -> Problem:  # fmt: skip
    """``image`` (img_h, img_w). ``table``, ``rel``, ``padding``: such operands are given; ``lse``: it is returned.
    ``of``: first word of its family."""
    channels, extent = heads * dim, [b + 2 * h for b, h in zip(block, halo, strict=True)]
    reach = [e - 1 if border == "clamp" else b + h - 1 for e, b, h in zip(extent, block, halo, strict=True)]

    def inputs(generator):
        tensors = dict(qkv=normal(generator, batch, *image, 3 * channels))
        if table:
            tensors["table"] = normal(generator, heads, *(2 * r + 1 for r in reach))
        if rel:
            tensors["rel_h"], tensors["rel_w"] = (normal(generator, batch, *image, heads, e) for e in extent)
        if padding:
            tensors["padding"] = normal(generator, 3 * channels)
        return tensors

    names = ("qkv",) + ("table",) * table + ("rel_h", "rel_w") * rel + ("padding",) * padding
    options |= dict(num_heads=heads, block=block, halo=halo, border=border)
    options |= dict(return_lse=True) if lse else {}
    outputs = ("out", "lse") if lse else ("out",)
    family = f"{of}_attention" if of else ""
    return Problem(
        "local_attention", name, inputs, names, options, outputs=outputs, differentiable=len(outputs), family=family
    )


def sparse_problem(
    name: str, batch: int, heads: int, queries: int, keys: int, dim: int,
    *, sampled: int = 0, gated: bool = False, padded: bool = False, **options,
) -> Problem:  # fmt: skip
    """``sampled`` of the queries attend, all with 0; ``padded``: random keys are padding, all of the first sequence."""

    def inputs(generator):
        shapes = (queries, keys, keys)
        tensors = {x: normal(generator, batch, heads, n, dim) for x, n in zip("qkv", shapes, strict=True)}
        if sampled:
            tensors["index"] = torch.stack(
                [torch.randperm(queries, generator=generator)[:sampled] for _ in range(batch)]
            )
        if gated:
            for gate, size in (("query_gate", sampled or queries), ("key_gate", keys)):
                tensors[gate] = torch.rand(batch, size, generator=generator, dtype=torch.float64)
        if padded:
            tensors["key_padding_mask"] = torch.rand(batch, keys, generator=generator) < 0.7
            tensors["key_padding_mask"][0] = batch == 1
        return tensors

    gradients = ("q", "k", "v") + ("query_gate", "key_gate") * gated
    return Problem("sparse_attention", name, inputs, gradients, dict(strength=10.0) | options)


def layernorm_problem(
    name: str, rows: int | tuple, channels: int, *, residual: bool = False, offset: float = 0.0, eps: float = 1e-6
) -> Problem:
    """``rows`` may be a tuple: all dimensions before the channels."""
    shape = (*(rows if isinstance(rows, tuple) else (rows,)), channels)

    def inputs(generator):
        tensors = dict(
            x=offset + normal(generator, *shape),
            weight=1 + normal(generator, channels, std=0.2),
            bias=normal(generator, channels),
        )
        return tensors | (dict(residual=normal(generator, *shape)) if residual else {})

    if residual:
        names, outputs = ("x", "weight", "bias", "residual"), ("out", "sum")
    else:
        names, outputs = ("x", "weight", "bias"), ("out",)
    return Problem("layernorm", name, inputs, names, dict(eps=eps), outputs=outputs, differentiable=len(outputs))


def mlp_problem(
    name: str, batch: int, tokens: int, channels: int, hidden: int, *, scales: bool = False, **options
) -> Problem:
    """``scales``: LayerScale and a DropPath factor that drops one sample."""

    def inputs(generator):
        tensors = dict(
            x=normal(generator, batch, tokens, channels),
            norm_weight=1 + normal(generator, channels, std=0.2),
            norm_bias=normal(generator, channels, std=0.2),
            fc1_weight=normal(generator, hidden, channels, std=channels**-0.5),
            fc1_bias=normal(generator, hidden, std=0.2),
            fc2_weight=normal(generator, channels, hidden, std=hidden**-0.5),
            fc2_bias=normal(generator, channels, std=0.2),
        )
        if scales:
            tensors["layer_scale"] = normal(generator, channels)
            tensors["row_scale"] = torch.tensor([1.25] * (batch - 1) + [0.0], dtype=torch.float64)
        return tensors

    names = ("x", "norm_weight", "norm_bias", "fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias") + (
        "layer_scale",
    ) * scales
    return Problem("layernorm_mlp", name, inputs, names, dict(eps=1e-5) | options)
