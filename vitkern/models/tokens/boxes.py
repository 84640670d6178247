"""Boxes of a detector: their corners, how far two overlap, and what is shown of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from vitkern.models.tokens.deformable_detr import Detections


def corners(boxes: Tensor) -> Tensor:
    """(..., 4): centre, width, height -> left, top, right, bottom."""
    centre, size = boxes.chunk(2, -1)
    return torch.cat([centre - size / 2, centre + size / 2], -1)


def generalized_iou(a: Tensor, b: Tensor) -> Tensor:
    """Boxes by their corners, (..., 4) that broadcast -> (...): intersection over union, less the share of the smallest
    box around both that neither covers (Rezatofighi et al. 2019, arXiv 1902.09630, algorithm 1)."""
    areas = [(one[..., 2:] - one[..., :2]).clamp(min=0).prod(-1) for one in (a, b)]
    inner = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
    outer = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).prod(-1)
    union = areas[0] + areas[1] - inner
    return inner / union - (outer - union) / outer


def detected(
    out: Detections, sizes: Sequence[tuple[int, int]] | Tensor, threshold: float = 0.5, top_k: int = 100
) -> list[dict[str, Tensor]]:
    """What is found in each image, the likeliest first: "scores" (K,), "labels" (K,) and "boxes" (K, 4), left, top,
    right, bottom in pixels, as transformers' ``post_process_object_detection``. A box may come under several labels.

    Args:
        out: of a detector.
        sizes: (height, width) of each image in pixels, without padding.
        threshold: scores are above it. top_k: at most so many of an image.

    Raises:
        ValueError: another number of sizes than of images.
    """
    if len(sizes) != len(out.logits):
        raise ValueError(
            f"detected: sizes do not belong to the images: got {len(sizes)} for {len(out.logits)}; expected (height, "
            "width) of each."
        )
    classes = out.logits.shape[2]
    scores, at = out.logits.sigmoid().flatten(1).topk(min(top_k, out.logits[0].numel()), dim=1)  # (B, K)
    pixels = torch.as_tensor(sizes).to(out.boxes).flip(1).repeat(1, 2)  # (B, 4): width, height, twice
    boxes = (corners(out.boxes) * pixels[:, None]).gather(1, (at // classes)[:, :, None].expand(-1, -1, 4))
    found = []
    for score, label, box in zip(scores, at % classes, boxes, strict=True):
        keep = score > threshold
        found.append(dict(scores=score[keep], labels=label[keep], boxes=box[keep]))
    return found
