"""What a classifier gives, whatever it wraps it in, and the class that is explained."""

from typing import Any

from torch import Tensor


def logits_of(result: Any) -> Tensor:
    """(1, classes) of what a model returned for one image.

    Raises:
        NotImplementedError: it has no logits.
    """
    logits = result if isinstance(result, Tensor) else getattr(result, "logits", None)
    if isinstance(logits, Tensor) and logits.dim() == 2 and logits.shape[0] == 1 and logits.shape[1] > 0:
        return logits
    got = tuple(logits.shape) if isinstance(logits, Tensor) else type(result).__name__
    raise NotImplementedError(
        f"explain: the model gives no logits: got {got}; expected (B, classes), or an object with such `logits`. "
        "Explain a classifier."
    )


def checked_target(target: int | None, logits: Tensor) -> int:
    """
    Raises:
        ValueError: there is no such class.
    """
    if target is None:
        return int(logits.argmax())
    if not 0 <= target < logits.shape[1]:
        raise ValueError(f"explain: there is no such class: got target={target}; expected 0 to {logits.shape[1] - 1}.")
    return target
