"""Training: the loop, validation, early stopping and checkpoints."""

import math
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor

from vitkern.report import BadInput, progress
from vitkern.strec import checkpoint, distributed, resume
from vitkern.strec.baselines import Popularity
from vitkern.strec.data import Samples, split
from vitkern.strec.lock import alone_in
from vitkern.strec.log import Log
from vitkern.strec.objective import Objective, evaluate
from vitkern.strec.settings import Settings, build_model


def generator_for(*numbers: int) -> torch.Generator:
    """The same random numbers for the same ``numbers``, whatever ran before."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


class Run:
    """One training run in a folder: `train` to the end, from the start or from the last checkpoint."""

    def __init__(self, settings: Settings, log: Log, folder: Path, group: distributed.Group):
        self.settings, self.log, self.folder, self.group = settings, log, folder, group
        parts = split(log, settings.split, settings.ratio)
        self.samples = {name: Samples(log, events, settings.max_len) for name, events in parts.items()}
        torch.manual_seed(settings.seed)
        self.model = build_model(settings, len(log.items)).to(group.device)
        if isinstance(self.model, Popularity):
            held = np.concatenate([parts["valid"], parts["test"]])
            counts = np.bincount(np.delete(log.item, held), minlength=len(log.items))
            self.model.count.copy_(torch.from_numpy(counts)[:, None])
        sampler = getattr(self.model, "ffn", None)
        if sampler is not None:  # the order of items has no gradient: only a soft mask trains the sampler
            sampler.requires_grad_(self.model.stage == "pretrain" and not self.model.dense)
        self.state = dict(epoch=0, step=0, loss=0.0, best=-1.0, best_epoch=0, history=[], seconds=0.0)

    def initialise(self, weights: dict[str, Tensor]) -> None:
        """Start from the weights of another run of the same sizes.

        Raises:
            BadInput: names or shapes differ.
        """
        try:
            self.model.load_state_dict(weights, strict=True)
        except RuntimeError as error:
            first = " ".join(str(error).split("\n")[1:2]).strip() or str(error)
            raise BadInput(f"the weights do not fit the model: {first}") from None

    def train(self, *, proceed: bool = False, every: int = 0, fresh: bool = False) -> dict:
        """To the last epoch or an early stop; writes files and returns the metrics. A run that is killed after its
        first file can be resumed.

        Args:
            proceed: go on from the last checkpoint.
            every: steps between checkpoints within an epoch; 0: at the end of epochs alone.
            fresh: refuse a folder that holds a run.

        Raises:
            BadInput: another run is at work in the folder, it cannot be written to, its checkpoint is of another run,
                or the loss is not finite.
        """
        with ExitStack() as held:
            with self.group.as_one():
                if self.group.first:
                    held.enter_context(alone_in(self.folder))
                    if fresh and not proceed:
                        checkpoint.refuse_a_run(self.folder)
                    if not proceed:
                        checkpoint.write_json(self.folder / checkpoint.ITEMS, self.log.items)
            return self._train(proceed, every)

    def _train(self, proceed: bool, every: int) -> dict:
        settings, self.optimizer = self.settings, None
        objective = Objective(self.model, settings.loss)
        trained = [p for p in objective.parameters() if p.requires_grad]
        self.objective = distributed.spread(objective, self.group, settings.sharding) if trained else objective
        if trained:
            trained = [p for p in self.objective.parameters() if p.requires_grad]
            self.optimizer = torch.optim.Adam(trained, lr=settings.lr, weight_decay=settings.weight_decay, fused=True)
        torch.manual_seed((settings.seed + 1 + self.group.rank) % 2**64)
        if proceed:
            self.state = resume.load(*self._place(), settings, self.log, self.group)
            self._check_best()
        else:
            # Before the first step: from here on a run that is killed can go on.
            resume.save(*self._place(), self.state, settings, self.log, self.group)
        if not trained or (settings.epochs == 0 and not self.state["history"]):
            self._save_best()
        while trained and self.state["epoch"] < settings.epochs and not self._stopped():
            self._epoch(trained, every)
        return self._finish()

    def _check_best(self) -> None:
        """The best weights are those of the checkpoint, or of the epoch after it, which is then computed anew."""
        if self.state["best_epoch"]:
            path, done = self.folder / checkpoint.WEIGHTS, self.state["epoch"]
            epoch = checkpoint.read_tensors(path)[1].get("epoch")
            if epoch != self.state["best_epoch"] and not epoch == done + 1 <= self.settings.epochs:
                best = f"the best is {self.state['best_epoch']} of the checkpoint's {done}"
                raise BadInput(f"{path} is of epoch {epoch!r:.20}, and {best}; give it more epochs, or another run.")

    def _stopped(self) -> bool:
        waited = self.state["epoch"] - self.state["best_epoch"]
        return 0 < self.settings.patience <= waited and bool(self.state["history"])

    def _epoch(self, trained: list[Tensor], every: int) -> None:
        epoch, batch = self.state["epoch"], self.settings.batch
        order = torch.randperm(len(self.samples["train"]), generator=generator_for(self.settings.seed, epoch, 0))
        order = order[: self.settings.epoch_samples or None]
        steps = math.ceil(len(order) / batch)
        begun = noted = time.monotonic()
        self.objective.train()
        while self.state["step"] < steps:
            rate = self._rate((epoch + self.state["step"] / steps) / self.settings.epochs)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            which = order[self.state["step"] * batch :][:batch]
            self.state["loss"] += self._step(which, trained) * len(which)
            self.state["step"] += 1
            if self.group.first and time.monotonic() - noted > 10:
                noted = time.monotonic()
                progress(f"epoch {epoch + 1}: step {self.state['step']}/{steps}")
            if every and self.state["step"] % every == 0 and self.state["step"] < steps:
                self.state["seconds"] += time.monotonic() - begun
                begun = time.monotonic()
                self._save()
        loss = self.group.sum(torch.tensor(self.state["loss"], dtype=torch.float64)).item() / len(order)
        valid = self._metrics("valid")
        self.state["epoch"] = epoch + 1
        self.state["history"].append(dict(epoch=self.state["epoch"], loss=loss, **valid))
        if valid["ndcg@10"] > self.state["best"]:
            self.state["best"], self.state["best_epoch"] = valid["ndcg@10"], self.state["epoch"]
            self._save_best()
        self.state |= dict(step=0, loss=0.0, seconds=self.state["seconds"] + time.monotonic() - begun)
        self._save()
        if self.group.first:
            progress(
                f"epoch {self.state['epoch']}/{self.settings.epochs}: loss {loss:.4f}, "
                f"valid ndcg@10 {valid['ndcg@10']:.4f} (best {self.state['best']:.4f}), {self.state['seconds']:.0f} s"
            )

    def _rate(self, done: float) -> float:
        """The learning rate after the part ``done`` of all updates."""
        decay = self.settings.decay
        return self.settings.lr * (min(1.0, (1 - done) / decay) if decay else 1.0)

    def _step(self, which: Tensor, trained: list[Tensor]) -> float:
        """One update; returns this process's part of the mean loss. What is random is drawn for all processes alike."""
        settings, group = self.settings, self.group
        generator = generator_for(settings.seed, self.state["epoch"], self.state["step"] + 1)
        own, weight = group.share(which)
        data = self.samples["train"].batch(own).to(group.device)
        noise = negatives = None
        if hasattr(self.model, "draw_noise"):
            noise = self.model.draw_noise((len(which), settings.max_len), "cpu", generator)
        if noise is not None:
            noise = group.share(noise)[0][:, settings.max_len - data.seq.shape[1] :].to(group.device)
        if settings.loss != "full":
            negatives = torch.randint(1, len(self.log.items), (settings.negatives,), generator=generator).to(
                group.device
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.objective(data.seq, data.timestamps, data.target, noise, negatives) * weight
        loss.backward()
        if settings.clip:
            nn.utils.clip_grad_norm_(trained, settings.clip)
        if not math.isfinite(value := loss.item()):
            raise BadInput(f"the loss is {value} in epoch {self.state['epoch'] + 1}; lower the learning rate.")
        self.optimizer.step()
        return value / group.size

    def _place(self) -> tuple:
        return self.folder / checkpoint.STATE, self.objective, self.optimizer

    def _save(self) -> None:
        resume.save(*self._place(), self.state, self.settings, self.log, self.group)

    def _save_best(self) -> None:
        weights = distributed.whole_model(self.objective)
        if self.group.first:
            weights = {name.removeprefix("model."): value for name, value in weights.items()}
            found = dict(settings=self.settings.json(), n_items=len(self.log.items), epoch=self.state["best_epoch"])
            checkpoint.write_tensors(self.folder / checkpoint.WEIGHTS, weights, found)

    def _finish(self) -> dict:
        self.group.wait()  # the first process has written the best weights
        weights, _ = checkpoint.read_tensors(self.folder / checkpoint.WEIGHTS)
        distributed.load_model(self.objective, {f"model.{name}": value for name, value in weights.items()})
        metrics = dict(
            settings=self.settings.json(),
            log=dict(
                fingerprint=resume.fingerprint(self.log), events=len(self.log), users=len(self.log.users),
                items=len(self.log.items) - 1, notes=self.log.notes,
                samples={name: len(samples) for name, samples in self.samples.items()},
            ),
            parameters=sum(p.numel() for p in self.model.parameters()),
            history=self.state["history"],
            best_epoch=self.state["best_epoch"],
            **{name: self._metrics(name) for name in ("valid", "test")},
            seconds=round(self.state["seconds"], 1),
            processes=self.group.size,
            torch=torch.__version__,
        )  # fmt: skip
        if self.group.first:
            checkpoint.write_json(self.folder / checkpoint.METRICS, metrics)
        return metrics

    def _metrics(self, part: str) -> dict[str, float]:
        return evaluate(self.objective, self.samples[part], self.group, exclude_seen=self.settings.exclude_seen)
