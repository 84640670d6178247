"""The names of what `explanation.explain` does."""

from typing import Literal, get_args

Method = Literal["relevance", "rollout", "lrp", "attention"]
METHODS: tuple[str, ...] = get_args(Method)
