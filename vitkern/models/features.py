"""A model as the backbone of another: images in, maps of its stages out (timm's ``features_only=True``)."""

from collections.abc import Sequence
from typing import Any

import torch.nn as nn
from torch import Tensor

from vitkern.models.backbone import Backbone


class FeatureInfo:
    """What the maps are, as `timm.models.FeatureInfo`: channels, reduction and module of each."""

    def __init__(self, info: Sequence[dict[str, Any]], out_indices: Sequence[int]) -> None:
        self.info = [dict(row, index=index) for index, row in enumerate(info)]
        self.out_indices = tuple(out_indices)

    def _column(self, key: str, index: int | Sequence[int] | None) -> Any:
        if isinstance(index, int):
            return self.info[index][key]
        return [self.info[i][key] for i in (self.out_indices if index is None else index)]

    def channels(self, index: int | Sequence[int] | None = None) -> Any:
        """Channels of each map, or of those of ``index``."""
        return self._column("num_chs", index)

    def reduction(self, index: int | Sequence[int] | None = None) -> Any:
        """Pixels of the image for one of the map, alike."""
        return self._column("reduction", index)

    def module_name(self, index: int | Sequence[int] | None = None) -> Any:
        """Names of the modules that yield them, alike."""
        return self._column("module", index)

    def get_dicts(self) -> list[dict[str, Any]]:
        """A row for each map."""
        return [self.info[i] for i in self.out_indices]

    def __len__(self) -> int:
        return len(self.info)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return self.info[item]


class FeatureMaps(nn.Module):
    """Image (B, in_chans, height, width) -> a list of maps (B, C_i, height / r_i, width / r_i).

    Args:
        model: what is after the last map is removed from it.
        out_indices: of the model's ``feature_info``; an int: so many of the last; None: all stages of a pyramid, the
            last three blocks of a model of one resolution.
        norm: the last norm follows each map.

    Raises:
        ValueError: an index out of range.
    """

    def __init__(self, model: Backbone, out_indices: int | Sequence[int] | None = None, norm: bool = False) -> None:
        super().__init__()
        if out_indices is None and len({row["reduction"] for row in model.feature_info}) == 1:
            out_indices = min(3, len(model.feature_info))
        info, self.norm = list(model.feature_info), norm
        self.out_indices = model.prune_intermediate_layers(out_indices, prune_norm=not norm)
        self.feature_info = FeatureInfo(info, self.out_indices)
        self.model = model

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.model.forward_intermediates(
            x, self.out_indices, norm=self.norm, stop_early=True, intermediates_only=True
        )

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each block's input for the backward pass, and compute the rest again."""
        self.model.set_grad_checkpointing(enable)
