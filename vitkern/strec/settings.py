"""All that a run depends on beside its log, and the model that follows from it."""

from dataclasses import asdict, dataclass, fields

import torch.nn as nn

from vitkern.models.strec import STAGES, STRec
from vitkern.models.strec_form import FORMS
from vitkern.nn.strec import SAMPLERS
from vitkern.report import BadInput
from vitkern.strec.baselines import BERT4Rec, GRU4Rec, Popularity, SASRec
from vitkern.strec.losses import LOSSES

MODELS = ("strec", "dense", "sasrec", "bert4rec", "gru4rec", "popularity")
SHARDINGS = ("ddp", "fsdp")


@dataclass(frozen=True)
class Settings:
    """Of one training run; JSON holds them in checkpoints.

    model: of MODELS; stage: "pretrain" or "finetune", for strec and dense. d, layers, heads, hidden (0: 4 d), dropout,
    max_len: of the model; attention_dropout: of the attention weights of strec and dense. ks, alphas, form, sampler,
    noise: see `vitkern.models.strec.STRec`; empty: its defaults.
    loss: "full", "sampled", "bpr" or "bce"; negatives: how many the last three draw a step. lr, decay (the last part of
    all updates, in which lr falls linearly to 0), weight_decay, batch (sequences a step, all processes together),
    epochs, epoch_samples (a fresh random part of the log for each epoch; 0: all of it), patience (epochs without a
    better NDCG@10 in validation; 0: never stop early), clip (largest norm of the gradient, 0: none), seed. split,
    ratio: see `vitkern.strec.data.split`.
    exclude_seen: rank no item of the history. sharding: "ddp" or "fsdp", among many processes.
    """

    model: str = "strec"
    stage: str = "finetune"
    max_len: int = 50
    d: int = 64
    layers: int = 8
    heads: int = 2
    hidden: int = 0
    dropout: float = 0.2
    attention_dropout: float = 0.0
    ks: tuple[int, ...] = ()
    alphas: tuple[float, ...] = ()
    form: str = "log"
    sampler: str = "mlp"
    noise: str = "form"
    loss: str = "full"
    negatives: int = 256
    lr: float = 1e-3
    decay: float = 0.0
    weight_decay: float = 0.0
    batch: int = 256
    epochs: int = 30
    epoch_samples: int = 0
    patience: int = 3
    clip: float = 5.0
    seed: int = 0
    split: str = "leave-last-out"
    ratio: tuple[float, float, float] = (0.8, 0.1, 0.1)
    exclude_seen: bool = False
    sharding: str = "ddp"

    def __post_init__(self):
        for name, known in (
            ("model", MODELS), ("stage", STAGES), ("form", tuple(FORMS)), ("sampler", SAMPLERS),
            ("noise", ("form", "normal", "uniform", "none")), ("loss", LOSSES), ("sharding", SHARDINGS),
        ):  # fmt: skip
            if getattr(self, name) not in known:
                raise BadInput(f"unknown {name} {getattr(self, name)!r}; expected one of {', '.join(known)}.")
        for name in ("max_len", "d", "layers", "batch", "negatives"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("epochs", "epoch_samples", "patience", "clip", "weight_decay"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} is {getattr(self, name)}; expected 0 or more.")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}; expected 0 <= {name} < 1.")
        if not 0 <= self.decay <= 1:
            raise BadInput(f"decay is {self.decay}; expected 0 <= decay <= 1.")
        if not 0 < self.lr < float("inf"):
            raise BadInput(f"lr is {self.lr}; expected a finite number above 0.")

    @classmethod
    def from_json(cls, found: dict) -> "Settings":
        known = {field.name for field in fields(cls)}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in known})

    def json(self) -> dict:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def build_model(settings: Settings, n_items: int) -> nn.Module:
    """The model with fresh weights, drawn from torch's generator.

    Raises:
        BadInput: sizes that the model refuses.
    """
    sizes = dict(d=settings.d, n_layers=settings.layers, n_heads=settings.heads)
    common = dict(hidden=settings.hidden or None, dropout=settings.dropout)
    try:
        if settings.model in ("strec", "dense"):
            dense = settings.model == "dense"
            ks = (settings.max_len,) * settings.layers if dense else settings.ks or None
            model = STRec(
                n_items, settings.max_len, **sizes, ks=ks, alphas=settings.alphas or None, sampler=settings.sampler,
                noise=None if settings.noise == "none" else settings.noise, form=settings.form,
                attention_dropout=settings.attention_dropout, **common,
            )  # fmt: skip
            return model.set_stage("finetune" if dense else settings.stage)
        if settings.model == "popularity":
            return Popularity(n_items, settings.max_len)
        return {"sasrec": SASRec, "bert4rec": BERT4Rec, "gru4rec": GRU4Rec}[settings.model](
            n_items, settings.max_len, **sizes, **common
        )
    except (ValueError, AssertionError) as error:
        raise BadInput(str(error)) from None
