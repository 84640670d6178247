"""What DynamicViT is trained with (Rao et al. 2021, arXiv 2106.02034, section 3.4), as in the authors' code."""

from collections.abc import Callable, Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from vitkern.models.plain.vit import VisionTransformer
from vitkern.models.tokens.dynamic_vit import Pruned


class PruningLoss(nn.Module):
    """Classification, distillation of the teacher's logits and of its tokens where they are kept, and how far each
    stage is from the share of tokens that it should keep (equations 10 to 14).

    Args:
        token_ratio: that share, of each stage.
        clf_weight, distill_weight, ratio_weight: of the terms; the second of logits and tokens alike.
        mse_token: tokens are compared by their squared distance (equation 11 as published), else as logits are.
        dynamic: a share is that of the whole batch, not of every image.
        criterion: (logits, labels) -> a number; for soft labels, for example, `torch.nn.functional.cross_entropy` too.
    """

    def __init__(
        self,
        token_ratio: Sequence[float] = (0.7, 0.7**2, 0.7**3),
        *,
        clf_weight: float = 1.0,
        distill_weight: float = 0.5,
        ratio_weight: float = 2.0,
        mse_token: bool = True,
        dynamic: bool = False,
        criterion: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
    ) -> None:
        super().__init__()
        self.token_ratio, self.criterion = tuple(token_ratio), criterion
        self.clf_weight, self.distill_weight, self.ratio_weight = clf_weight, distill_weight, ratio_weight
        self.mse_token, self.dynamic = mse_token, dynamic

    def terms(self, out: Pruned, labels: Tensor, teacher: tuple[Tensor, Tensor] | None = None) -> dict[str, Tensor]:
        """The terms without their weights: "classes", "ratio", and of a teacher "logits" and "tokens".

        Args:
            out: of a `DynamicVisionTransformer` in training.
            labels: what ``criterion`` takes, (B,) for classes.
            teacher: (logits (B, num_classes), patch tokens after the last norm (B, N, C)) of the same images; see
                `taught`. None: there is no distillation.

        Raises:
            ValueError: other stages than there are shares.
        """
        if len(out.decisions) != len(self.token_ratio):
            raise ValueError(
                f"PruningLoss: stages differ: got {len(out.decisions)} decisions for token_ratio={self.token_ratio}; "
                "expected a share for each. Give token_ratio of the model."
            )
        shares = [keep.mean() if self.dynamic else keep.mean(1) for keep in out.decisions]
        away = [(share - wanted).square().mean() for share, wanted in zip(shares, self.token_ratio, strict=True)]
        found = {"classes": self.criterion(out.logits, labels), "ratio": torch.stack(away).sum()}
        if teacher is not None:
            logits, tokens = (part.detach() for part in teacher)
            found |= {"logits": divergence(out.logits, logits), "tokens": self._tokens(out, tokens)}
        return found

    def _tokens(self, out: Pruned, tokens: Tensor) -> Tensor:
        kept = out.mask > 0.5
        if not kept.any():
            return out.tokens.new_zeros(())
        compare = F.mse_loss if self.mse_token else divergence
        return compare(out.tokens[kept], tokens[kept])

    def forward(self, out: Pruned, labels: Tensor, teacher: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """The sum; arguments as those of `terms`."""
        found = self.terms(out, labels, teacher)
        loss = self.clf_weight * found["classes"] + self.ratio_weight / len(self.token_ratio) * found["ratio"]
        return loss if teacher is None else loss + self.distill_weight * (found["logits"] + found["tokens"])


def divergence(rows: Tensor, teacher: Tensor) -> Tensor:
    """The mean over rows (B, K) of KL(softmax(teacher) || softmax(rows))."""
    return F.kl_div(rows.log_softmax(-1), teacher.log_softmax(-1), reduction="batchmean", log_target=True)


@torch.no_grad()
def taught(teacher: VisionTransformer, images: Tensor) -> tuple[Tensor, Tensor]:
    """(logits, patch tokens) of a `VisionTransformer`, without a gradient: what `PruningLoss` takes of a teacher."""
    tokens = teacher.forward_features(images)
    return teacher.forward_head(tokens), tokens[:, teacher.num_prefix_tokens :]
