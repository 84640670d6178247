"""What Deformable DETR is trained with: each object has one query (DETR, Carion et al. 2020, arXiv 2005.12872, section
3.1), classes a focal loss (arXiv 1708.02002), boxes their L1 distance and generalised IoU."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.tokens.boxes import corners, generalized_iou
from vitkern.models.tokens.deformable_detr import Detections

Target = Mapping[str, Tensor]  # "class_labels" (M,) int64, "boxes" (M, 4): centre, width, height in sizes of the image


def focal(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Focal loss of each logit (arXiv 1708.02002, equation 5); ``target`` of the same shape is 1 or 0."""
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    share = logits.sigmoid()
    wrong = share + target - 2.0 * share * target
    return (alpha * target + (1.0 - alpha) * (1.0 - target)) * loss * wrong**gamma


class DetectionLoss(nn.Module):
    """The weighted sum over the layers of the decoder, and what a detector of two stages proposes.

    Queries are matched to objects by `scipy.optimize.linear_sum_assignment`, each layer's by themselves. Every loss is
    divided by the number of objects in the batch.

    Args:
        class_cost, bbox_cost, giou_cost: what a match costs; the terms are those of the loss.
        class_weight, bbox_weight, giou_weight: of the losses; the authors' are the defaults.
        alpha: of the focal loss.

    Raises:
        ImportError: scipy is not installed.
    """

    def __init__(
        self,
        *,
        class_cost: float = 2.0,
        bbox_cost: float = 5.0,
        giou_cost: float = 2.0,
        class_weight: float = 2.0,
        bbox_weight: float = 5.0,
        giou_weight: float = 2.0,
        alpha: float = 0.25,
    ) -> None:
        super().__init__()
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError:
            raise ImportError(
                "DetectionLoss: queries are matched to objects by scipy: got no module scipy; expected it installed. "
                "Run pip install scipy."
            ) from None
        self.assign = linear_sum_assignment
        self.costs = class_cost, bbox_cost, giou_cost
        self.weights = dict(classes=class_weight, boxes=bbox_weight, giou=giou_weight)
        self.alpha = alpha

    @torch.no_grad()
    def match(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> list[tuple[Tensor, Tensor]]:
        """Of each image the queries that have an object, in order, and which (both int64, of one length)."""
        labels, wanted = (torch.cat([target[name] for target in targets]) for name in ("class_labels", "boxes"))
        share = logits.sigmoid()
        yes = self.alpha * (1.0 - share) ** 2 * -(share + 1e-8).log()
        no = (1.0 - self.alpha) * share**2 * -(1.0 - share + 1e-8).log()
        of_class, of_box, of_iou = self.costs
        cost = of_class * (yes - no)[:, :, labels] + of_box * torch.cdist(boxes, wanted, p=1)  # (B, Q, M)
        cost = cost - of_iou * generalized_iou(corners(boxes)[:, :, None], corners(wanted))
        parts = cost.nan_to_num(nan=1e9, posinf=1e9, neginf=-1e9).split([len(t["boxes"]) for t in targets], 2)
        found = [self.assign(one[image].cpu().float().numpy()) for image, one in enumerate(parts)]
        return [(torch.as_tensor(a).to(boxes.device), torch.as_tensor(b).to(boxes.device)) for a, b in found]

    def terms(self, logits: Tensor, boxes: Tensor, targets: Sequence[Target]) -> dict[str, Tensor]:
        """ "classes", "boxes" and "giou" of Q boxes (B, Q, ...), without their weights."""
        pairs = self.match(logits, boxes, targets)
        image = torch.cat([torch.full_like(queries, i) for i, (queries, _) in enumerate(pairs)])
        query = torch.cat([queries for queries, _ in pairs])
        labels, wanted = (
            torch.cat([target[name][at] for target, (_, at) in zip(targets, pairs, strict=True)])
            for name in ("class_labels", "boxes")
        )
        count = max(1, sum(len(target["class_labels"]) for target in targets))
        objects = torch.zeros_like(logits)
        objects[image, query, labels] = 1.0
        own = boxes[image, query]
        return {
            "classes": focal(logits, objects, self.alpha).sum() / count,
            "boxes": (own - wanted).abs().sum() / count,
            "giou": (1.0 - generalized_iou(corners(own), corners(wanted))).sum() / count,
        }

    def forward(self, out: Detections, targets: Sequence[Target]) -> Tensor:
        """A number.

        Args:
            out: of a `DeformableDetr`; in training it has what every layer of the decoder says.
            targets: of each image "class_labels" (M,) int64 below num_classes and "boxes" (M, 4): x and y of the
                centre, width, height, in sizes of the image.

        Raises:
            ValueError: another number of targets than of images, or a label that is no class.
        """
        self._check(out, targets)
        terms = [self.terms(logits, boxes, targets) for logits, boxes in [(out.logits, out.boxes), *out.earlier]]
        if out.proposals is not None:
            objects = [{**t, "class_labels": torch.zeros_like(t["class_labels"])} for t in targets]
            terms.append(self.terms(*out.proposals, objects))
        return torch.stack([factor * one[name] for one in terms for name, factor in self.weights.items()]).sum()

    @staticmethod
    def _check(out: Detections, targets: Sequence[Target]) -> None:
        batch, _, classes = out.logits.shape
        if len(targets) != batch:
            raise ValueError(
                f"DetectionLoss: targets do not belong to the images: got {len(targets)} for {batch}; expected one of "
                "each."
            )
        for target in targets:
            labels, boxes = target["class_labels"], target["boxes"]
            if labels.dim() != 1 or boxes.shape != (len(labels), 4):
                raise ValueError(
                    f"DetectionLoss: labels and boxes do not belong together: got {tuple(labels.shape)} and "
                    f"{tuple(boxes.shape)}; expected (M,) and (M, 4)."
                )
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
                raise ValueError(
                    f"DetectionLoss: there is no such class: got labels {labels.tolist()}; expected 0 to {classes - 1}."
                )
