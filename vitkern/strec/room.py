"""Whether a model fits this machine, asked before its memory is taken."""

import os
from collections.abc import Callable

import torch
import torch.nn as nn

from vitkern import report
from vitkern.report import BadInput


def check_room(build: Callable[[], nn.Module]) -> None:
    """
    Raises:
        BadInput: the weights of what ``build`` makes are more than all memory of the machine, or beyond counting.
    """
    try:
        with torch.device("meta"):
            needed = sum(tensor.nbytes for tensor in build().state_dict().values())
    except (RuntimeError, OverflowError) as error:
        if not is_shortage(error):
            raise
        needed = float("inf")
    there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else float("inf")
    if needed > there or needed == float("inf"):
        got = f"{needed / 2**30:,.0f} GiB" if needed < float("inf") else "more bytes than can be counted"
        raise BadInput(f"the model does not fit this machine: its weights need {got}; give smaller sizes.")


def is_shortage(error: BaseException) -> bool:
    """Whether memory was refused, or a size asked for that no memory has."""
    return isinstance(error, OverflowError) or report.is_shortage(error)
