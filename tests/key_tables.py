"""A table of another library's names, the other way round."""

import torch
from torch import Tensor

from vitkern.models.convert import convert_state_dict
from vitkern.models.tables import detect_family


def back(own: dict[str, Tensor], like: dict[str, Tensor]) -> dict[str, Tensor]:
    """What converts to ``own``, under the names and in the shapes of ``like``, another library's state dict."""
    sizes = [value.numel() for value in like.values()]
    numbers = torch.arange(sum(sizes)).split(sizes)
    numbered = {key: number.view(value.shape) for (key, value), number in zip(like.items(), numbers, strict=True)}
    places = convert_state_dict(numbered, detect_family(like))
    assert places.keys() == own.keys()
    values = torch.full((sum(sizes),), torch.nan, dtype=torch.float64)
    for name, place in places.items():
        values[place.flatten()] = own[name].double().flatten()
    return {key: values[number].to(like[key].dtype) for key, number in numbered.items()}


def assert_both_ways(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Every name of one library has its place in the other: what goes there and back is what it was."""
    state = theirs.state_dict()
    converted = convert_state_dict(state, detect_family(state))
    ours.load_state_dict(converted, strict=True)
    again = back(ours.state_dict(), state)
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)
