"""A model of another library, as the commands take it."""

import importlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from vitkern.commands.outcome import refused
from vitkern.report import BadInput, near_matches

RANDOM = "random weights and bias tables"
PUBLISHED = "published weights"


@dataclass
class Peer:
    """A third-party classifier. ``preprocess`` maps a PIL image to (3, img_h, img_w). ``weights``: whose they are."""

    name: str
    library: str
    model: nn.Module
    weights: str
    input_size: tuple[int, int]
    preprocess: Callable[[object], Tensor]
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        count = sum(parameter.numel() for parameter in self.model.parameters())
        size = " x ".join(map(str, self.input_size))
        version = importlib.import_module(self.library).__version__
        return f"{self.name} from {self.library} {version}: {count:,} parameters, input 3 x {size}, {self.weights}"

    def images(self, photographs: list) -> Tensor:
        """(images, 3, img_h, img_w) float32; two of noise where there are no photographs.

        Raises:
            BadInput: the model's own preprocessing refuses them, or gives something else.
        """
        if not photographs:
            return torch.randn(2, 3, *self.input_size, generator=torch.Generator().manual_seed(0))
        return torch.stack(list(self._prepared(photographs)))

    def _prepared(self, photographs: list) -> Iterator[Tensor]:
        shape = None
        for photograph in photographs:
            found = refused(self.name, lambda one=photograph: self.preprocess(one), "cannot take a photograph")
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            shape = shape or got
            if not isinstance(found, Tensor) or found.ndim != 3 or got != shape:
                raise BadInput(
                    f"{self.name} makes {got} of a photograph: expected (3, height, width), the same of each. Only "
                    "models of single images are compared."
                )
            yield found


def unknown(name: str, library: str, known: Iterable[str], hint: str = "") -> BadInput:
    return BadInput(f"no model is called {name!r} in {library}.{near_matches(name, known)}{hint}")
