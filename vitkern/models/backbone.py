"""What an image model offers besides its logits, in timm's words: features, maps of its blocks, another head."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from vitkern.models.head import ClassifierHead, check_pool, init_linear


class Results:
    """Results of blocks as they come, of which those numbered in ``taken`` are ``found``."""

    def __init__(self, taken: Collection[int], stop_early: bool) -> None:
        self.taken, self.stop_early = taken, stop_early
        self.found: list[Tensor] = []

    def take(self, index: int, x: Tensor) -> bool:
        """Keeps result ``index`` if it is asked for; whether what follows need not run."""
        if index in self.taken:
            self.found.append(x)
        return self.stop_early and len(self.found) == len(self.taken)


class Checkpointed(nn.Module):
    """A module that runs others as blocks, and can keep their inputs alone for the backward pass."""

    grad_checkpointing = False

    def run(self, block: nn.Module, *inputs: Any) -> Any:
        """``block`` of ``inputs``; a stage runs its own blocks so."""
        if self.grad_checkpointing and self.training and not isinstance(block, Checkpointed):
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep only each block's input for the backward pass, and compute the rest again. A BatchNorm in a block then
        counts a batch twice in its running statistics."""
        for module in self.modules():
            if isinstance(module, Checkpointed):
                module.grad_checkpointing = enable


class Backbone(Checkpointed):
    """An image model. A family gives `encode` and `forward_head`, and says in ``feature_info`` what it yields.

    Attributes:
        num_classes: logits; 0: the head gives pooled features.
        num_features: channels of what the head reads.
        feature_info: for each block or stage that `forward_intermediates` numbers ``num_chs`` (channels),
            ``reduction`` (pixels of the image a pixel of the map) and ``module`` (its name).
    """

    num_classes: int
    num_features: int
    feature_info: list[dict[str, Any]]

    POOLS: tuple[str, ...] = ("avg", "")  # which the head knows
    global_pool: str
    norm: nn.Module
    head: nn.Module
    patch_embed: Any

    def encode(self, x: Tensor, taken: Collection[int] = (), stop_early: bool = False) -> tuple[Tensor, list[Tensor]]:
        """Image -> (what the last norm reads, results of the blocks or stages numbered in ``taken``, in order).

        ``stop_early``: nothing after the last of ``taken`` runs. `walk` does both for a list of blocks, `Results` for
        any loop.
        """
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits (B, num_classes); ``pre_logits``: pooled features (B, C)."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        """Image -> features of the last block after the last norm, in the layout of the family."""
        return self.norm(self.encode(x)[0])

    def forward(self, x: Tensor) -> Tensor:
        """Image (B, in_chans, height, width) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def walk(
        self, blocks: Iterable[nn.Module], x: Tensor, taken: Collection[int] = (), stop_early: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """Each of ``blocks`` on the result of the one before, as `encode` returns it."""
        results = Results(taken, stop_early)
        for index, block in enumerate(blocks):
            x = self.run(block, x)
            if results.take(index, x):
                break
        return x, results.found

    def as_map(self, x: Tensor, size: tuple[int, int], index: int) -> tuple[Tensor, Tensor | None]:
        """Result ``index`` of `encode` -> (map (B, C, img_h, img_w), tokens beside it (B, P, C) or None).

        ``size``: (height, width) of the image in pixels. Families of tokens or of (B, C, img_h, img_w) override it.
        """
        return x.permute(0, 3, 1, 2), None

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        return_prefix_tokens: bool = False,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Any:
        """Features of the last block and maps of others, as timm's method of the same name.

        Args:
            x: (B, in_chans, height, width).
            indices: of `feature_info`; negative ones count from the end; an int: so many of the last; None: all.
            return_prefix_tokens: pairs (map, tokens beside it) for families that have such tokens.
            norm: the last norm follows them too: all that have one resolution, of a pyramid the last stage.
            stop_early: nothing after the last of them runs; for ``intermediates_only``.
            output_fmt: "NCHW", or "NLC" for tokens (B, N, C) without those beside the map.
            intermediates_only: return the list alone.

        Returns:
            (features after the last norm, list of maps), or the list.

        Raises:
            ValueError: an index out of range, or another format.
        """
        if output_fmt not in ("NCHW", "NLC"):
            raise ValueError(
                f"{type(self).__name__}: unknown format: got output_fmt={output_fmt!r}; expected 'NCHW' or 'NLC'."
            )
        taken = self.take_indices(indices)
        size = x.shape[-2], x.shape[-1]
        x, found = self.encode(x, taken, stop_early and intermediates_only)
        maps: list[Any] = []
        last = self.feature_info[-1]["reduction"]
        for index, value in zip(taken, found, strict=True):
            normed = norm and self.feature_info[index]["reduction"] == last
            image, prefix = self.as_map(self.norm(value) if normed else value, size, index)
            if output_fmt == "NLC":
                image = image.flatten(2).transpose(1, 2)
            maps.append((image, prefix) if return_prefix_tokens and prefix is not None else image)
        return maps if intermediates_only else (self.norm(x), maps)

    def take_indices(self, indices: int | Sequence[int] | None) -> list[int]:
        """Which of `feature_info` are meant, in order."""
        count = len(self.feature_info)
        wanted = range(count) if indices is None else indices
        if isinstance(wanted, int):
            wanted = range(count - wanted, count) if 0 < wanted <= count else ()
        taken = sorted({index + count if index < 0 else index for index in wanted})
        if not taken or not 0 <= taken[0] <= taken[-1] < count:
            raise ValueError(
                f"{type(self).__name__}: there is no such feature: got indices={indices!r}; "
                f"expected some of 0 to {count - 1}."
            )
        return taken

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Removes the blocks after the last of ``indices``, and the norm and the head if asked; returns the indices."""
        taken = self.take_indices(indices)
        for info in reversed(self.feature_info[taken[-1] + 1 :]):
            parent, _, name = info["module"].rpartition(".")
            container = self.get_submodule(parent)
            if isinstance(container, (nn.Sequential, nn.ModuleList)):
                del container[int(name)]
            else:
                setattr(container, name, nn.Identity())
        if prune_norm:
            self.norm = nn.Identity()
        if prune_head:
            self.reset_classifier(0)
        return taken

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Another head, with random weights: ``num_classes`` logits (0: none); and another pooling, if one is given."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.set_pool(global_pool)
        self.head = self.linear(num_classes)

    def set_pool(self, global_pool: str) -> None:
        """Another of `POOLS`."""
        check_pool(type(self).__name__, global_pool, self.POOLS)
        self.global_pool = global_pool

    def linear(self, num_classes: int) -> nn.Module:
        """A classifier with random weights, where the model's parameters are and of their dtype."""
        if num_classes <= 0:
            return nn.Identity()
        like: Tensor = next(p for p in self.parameters() if p.is_floating_point())
        layer = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        init_linear(layer)
        return layer

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are not decayed in training."""
        return set()

    @property
    def input_size(self) -> tuple[int, int, int]:
        """(channels, height, width) of the image it was built for."""
        channels = next(part.in_channels for part in self.patch_embed.modules() if isinstance(part, nn.Conv2d))
        return (channels, *self.patch_embed.img_size)

    @property
    def input_rule(self) -> str:
        """What the model takes, on one line."""
        return f"image {' x '.join(map(str, self.input_size))}"

    def example_inputs(self, batch: int = 1) -> tuple[Tensor, ...]:
        """Inputs that the model takes, where its parameters are."""
        like = next(self.parameters())
        return (torch.zeros(batch, *self.input_size, device=like.device, dtype=like.dtype),)


class PooledBackbone(Backbone):
    """A backbone whose head pools, and may norm, what it projects to logits."""

    POOLS = ClassifierHead.POOLS
    head: ClassifierHead

    def get_classifier(self) -> nn.Module:
        """The layer that gives the logits."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Another head, with random weights: ``num_classes`` logits (0: none); and another pooling, if one is given."""
        self.num_classes = num_classes
        if global_pool is not None:
            self.set_pool(global_pool)
        self.head.fc = self.linear(num_classes)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] | None = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """As of every backbone; the norm of the pooled features goes with the head."""
        if prune_head:
            self.head.norm = nn.Identity()
        return super().prune_intermediate_layers(indices, prune_norm, prune_head)

    def set_pool(self, global_pool: str) -> None:
        """Another of `POOLS`."""
        super().set_pool(global_pool)
        self.head.pool_type = global_pool
