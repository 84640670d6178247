"""The attention function of a transformers model, exchanged in single modules: each is told another one's name, and the
model's configuration stays what it is."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vitkern.interop.attends import INTERFACE, asks_for, called_by
from vitkern.interop.transformers import NAME, attention_forward, unknown
from vitkern.ops.bypass import untouched, watched

EXCHANGED = "vitkern_exchanged"


class SeenConfig:
    """A model's configuration as an exchanged attention module sees it: all as it is, but for the attention function,
    while the model has the one that it had. Whoever sets something here sets it there."""

    def __init__(self, source: PretrainedConfig) -> None:
        vars(self).update(source=source, before=source._attn_implementation)

    @property
    def _attn_implementation(self) -> str | None:
        now = vars(self)["source"]._attn_implementation
        return EXCHANGED if now == vars(self)["before"] else now

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "source" not in vars(self):  # as copies ask
            raise AttributeError(name)
        return getattr(vars(self)["source"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(vars(self)["source"], name, value)


def obstacle(module: nn.Module, owner: nn.Module | None) -> str | None:
    """Why the attention function of ``module`` stays, or None. ``owner``: the model of transformers it belongs to."""
    kind, config = type(module), vars(module).get("config")
    if INTERFACE not in called_by(kind):
        return "no adapter for this class"
    if isinstance(config, SeenConfig):
        return "already swapped"
    if not isinstance(config, PretrainedConfig) or not isinstance(owner, PreTrainedModel) or owner is module:
        return "no adapter for this class outside a model of transformers"
    before = config._attn_implementation
    if before == NAME:
        return f'already swapped, by attn_implementation="{NAME}"'
    if before not in ("eager", "sdpa"):
        return f"its attention function is {before}, which somebody chose"
    if not owner._supports_sdpa:
        return f"transformers lets {type(owner).__name__} have eager attention alone"
    if config.output_attentions:
        return "config.output_attentions asks for the weights"
    if asks_for(kind, before):
        return f"its forward asks whether its attention function is {before}"
    if before == "sdpa" and ALL_ATTENTION_FUNCTIONS["sdpa"] is not sdpa_attention_forward:
        return "somebody replaced transformers' sdpa function"
    if before == "eager" and _eager_function(kind) is None:
        return "its eager attention function was not found"
    return None


def exchange(module: nn.Module, seen: dict[int, SeenConfig]) -> Callable[[], str | None]:
    """Exchange the attention function of ``module`` -> what puts it back. ``seen``: one for each configuration."""
    config = module.config
    module.config = seen.setdefault(id(config), SeenConfig(config))

    def put_back() -> None:
        if isinstance(module.config, SeenConfig):  # else somebody gave it another one
            module.config = config

    return put_back


def exchanged_forward(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **arguments: Any
) -> tuple[Tensor, Tensor | None]:
    """What an exchanged module calls: `attention_forward`, or what it called before where that may differ.

    Eager attention gives its weights to every hook, and knows causality by the mask alone.
    """
    eager = vars(module.config)["before"] == "eager"
    if eager and (arguments.get("output_attentions") or module.config.output_attentions or not untouched(module)):
        return _eager_function(type(module))(module, query, key, value, attention_mask, **arguments)
    if watched() or unknown(arguments):
        original = _eager_function(type(module)) if eager else ALL_ATTENTION_FUNCTIONS["sdpa"]
        return original(module, query, key, value, attention_mask, **arguments)
    if eager:
        arguments["is_causal"] = False
    return attention_forward(module, query, key, value, attention_mask, **arguments)


@functools.cache
def _eager_function(kind: type) -> Callable[..., tuple[Tensor, Tensor | None]] | None:
    """The function that ``kind`` calls by default, from the file that its forward is written in."""
    beside = inspect.unwrap(kind.forward).__globals__
    names = [name for name in called_by(kind) if name.endswith("eager_attention_forward") and name in beside]
    return beside[names[0]] if len(names) == 1 else None


AttentionInterface.register(EXCHANGED, exchanged_forward)
AttentionMaskInterface.register(EXCHANGED, sdpa_mask)
