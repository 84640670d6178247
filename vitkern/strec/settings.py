"""All that a run depends on beside its log, and the model that follows from it."""

from dataclasses import asdict, dataclass, field, fields
from numbers import Integral, Real

import torch.nn as nn

from vitkern.nn.strec import SAMPLERS
from vitkern.report import BadInput
from vitkern.strec.baselines import BERT4Rec, GRU4Rec, Popularity, SASRec
from vitkern.strec.data import SPLITS
from vitkern.strec.form import FORMS
from vitkern.strec.losses import LOSSES
from vitkern.strec.model import STAGES, STRec
from vitkern.strec.room import check_room

MODELS = ("strec", "dense", "sasrec", "bert4rec", "gru4rec", "popularity")
SHARDINGS = ("ddp", "fsdp")


_MOST = 2**31 - 1  # of whole numbers
_MOST_LAYERS = 1000
_KINDS = {bool: "true or false", str: "a name", int: "a whole number", float: "a number"}


def _setting(default, meaning: str, known: tuple[str, ...] = ()):
    return field(default=default, metadata={"meaning": meaning, "known": known})


@dataclass(frozen=True)
class Settings:
    """Of one training run; the command line shows what each means, and JSON holds them in checkpoints.

    Raises:
        BadInput: a value that is out of range, or not known.
    """

    model: str = _setting("strec", "what is trained; dense is strec with every row in every layer", MODELS)
    stage: str = _setting("finetune", "of strec: soft masks that train the sampler, or its chosen rows alone", STAGES)
    max_len: int = _setting(50, "newest events of a history that count")
    d: int = _setting(64, "channels")
    layers: int = _setting(8, "layers")
    heads: int = _setting(2, "heads of attention")
    hidden: int = _setting(0, "width of the feed-forward part; 0: four times the channels")
    dropout: float = _setting(0.2, "of the embedding and of both branches of a layer")
    attention_dropout: float = _setting(0.0, "of the attention weights, where the model has any")
    ks: tuple[int, ...] = _setting((), "k_1 .. k_L, the rows that strec's layers compute; the authors' unless given")
    alphas: tuple[float, ...] = _setting((), "alpha_0 .. alpha_L of pre-training; the authors' unless given")
    form: str = _setting("log", "reading of the paper, see vitkern.strec.model.STRec", tuple(FORMS))
    sampler: str = _setting("mlp", "what strec chooses rows by; mlp and hash: their ages", SAMPLERS)
    noise: str = _setting("form", "of the choice, in training", ("form", "normal", "uniform", "none"))
    loss: str = _setting("full", "cross-entropy over all items or sampled ones, pairs of items, or binary", LOSSES)
    negatives: int = _setting(256, "items that the losses but full draw for a step")
    lr: float = _setting(1e-3, "learning rate of Adam")
    decay: float = _setting(0.0, "last part of all updates, in which the learning rate falls linearly to 0")
    weight_decay: float = _setting(0.0, "of Adam")
    batch: int = _setting(256, "sequences of a step, all processes together")
    epochs: int = _setting(30, "at most")
    epoch_samples: int = _setting(0, "a fresh random part of the log for each epoch; 0: all of it")
    patience: int = _setting(3, "epochs without a better NDCG@10 in validation that end the run; 0: none do")
    clip: float = _setting(5.0, "largest norm of the gradient; 0: any")
    seed: int = _setting(0, "of weights, order, noise and dropout")
    split: str = _setting("leave-last-out", "what validates and tests: the last two events, or parts", SPLITS)
    ratio: tuple[float, float, float] = _setting((0.8, 0.1, 0.1), "parts of that split: training, validation, test")
    exclude_seen: bool = _setting(False, "rank no item of the history")
    sharding: str = _setting("ddp", "many processes have copies of the model, or pieces of it", SHARDINGS)

    def __post_init__(self):
        for each in fields(self):
            known, value = each.metadata["known"], getattr(self, each.name)
            _check_kind(each.name, value, each.default)
            if known and value not in known:
                raise BadInput(f"unknown {each.name} {value!r}; expected one of {', '.join(known)}.")
        for name in ("max_len", "d", "layers", "heads", "batch", "negatives"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}; expected at least 1.")
        for name in ("hidden", "epochs", "epoch_samples", "patience", "clip", "weight_decay", "seed"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise BadInput(f"{name} is {getattr(self, name)}; expected a finite number, 0 or more.")
        for name in (
            "max_len",
            "d",
            "layers",
            "heads",
            "batch",
            "negatives",
            "hidden",
            "epochs",
            "epoch_samples",
            "patience",
        ):
            most = _MOST_LAYERS if name == "layers" else _MOST
            if getattr(self, name) > most:
                raise BadInput(f"{name} is {getattr(self, name)}; expected at most {most:,}.")
        if self.seed >= 2**64:
            raise BadInput(f"seed is {self.seed}; expected less than 2^64.")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise BadInput(f"{name} is {getattr(self, name)}; expected 0 <= {name} < 1.")
        if not 0 <= self.decay <= 1:
            raise BadInput(f"decay is {self.decay}; expected 0 <= decay <= 1.")
        if not 0 < self.lr < float("inf"):
            raise BadInput(f"lr is {self.lr}; expected a finite number above 0.")

    @classmethod
    def from_json(cls, found) -> "Settings":
        """
        Raises:
            BadInput: what JSON gave is no mapping, or holds a value of another kind, unknown or out of range.
        """
        if not isinstance(found, dict):
            raise BadInput(f"settings are {found!r:.60}; expected names and values.")
        known = {each.name for each in fields(cls)}
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in known})

    def json(self) -> dict:
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


def _check_kind(name: str, value, default) -> None:
    """A tuple holds numbers, those of ``ks`` whole."""
    many = isinstance(default, tuple)
    kind = (int if name == "ks" else float) if many else type(default)
    wanted = {bool: bool, str: str, int: Integral, float: Real}[kind]
    fits = isinstance(value, tuple) or not many
    for each in value if many and fits else (value,):
        if not fits or not isinstance(each, wanted) or (kind is not bool and isinstance(each, bool)) or _endless(each):
            expected = f"a list of {_KINDS[kind].removeprefix('a ')}s" if many else _KINDS[kind]
            raise BadInput(f"{name} is {value!r:.60}; expected {expected}.")


def _endless(value) -> bool:
    """A whole number that no float reaches."""
    return isinstance(value, Integral) and abs(value) > 2**1000


def build_model(settings: Settings, n_items: int) -> nn.Module:
    """The model with fresh weights, drawn from torch's generator.

    Raises:
        BadInput: sizes that the model refuses, or that this machine has no memory for.
    """
    check_room(lambda: _built(settings, n_items))
    return _built(settings, n_items)


def _built(settings: Settings, n_items: int) -> nn.Module:
    sizes = dict(d=settings.d, n_layers=settings.layers, n_heads=settings.heads)
    common = dict(hidden=settings.hidden or None, dropout=settings.dropout)
    if settings.model != "gru4rec":
        common["attention_dropout"] = settings.attention_dropout
    try:
        if settings.model in ("strec", "dense"):
            dense = settings.model == "dense"
            ks = (settings.max_len,) * settings.layers if dense else settings.ks or None
            model = STRec(
                n_items, settings.max_len, **sizes, ks=ks, alphas=settings.alphas or None, sampler=settings.sampler,
                noise=None if settings.noise == "none" else settings.noise, form=settings.form,
                **common,
            )  # fmt: skip
            return model.set_stage("finetune" if dense else settings.stage)
        if settings.model == "popularity":
            return Popularity(n_items, settings.max_len)
        return {"sasrec": SASRec, "bert4rec": BERT4Rec, "gru4rec": GRU4Rec}[settings.model](
            n_items, settings.max_len, **sizes, **common
        )
    except (ValueError, AssertionError) as error:
        raise BadInput(str(error)) from None
