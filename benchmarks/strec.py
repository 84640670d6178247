"""The accuracy table of the sequential recommenders: STRec, its dense backbone, SASRec and popularity on one log.

    pip download --no-deps recbole==1.2.1 && unzip -j recbole-*.whl '*/ml-100k.inter'
    python -m benchmarks.strec ml-100k.inter --save benchmarks/results/strec/ml-100k.json

One harness: the same samples, split, sizes, optimiser, batch and number of updates for all. STRec is pre-trained for
``--epochs`` and fine-tuned for as many; the others train for twice as many. In the second half of all updates, STRec's
fine-tuning, the learning rate falls to 0. ``--budget rows`` counts rows of layers in place of updates: fine-tuning
computes fewer and gets as many more epochs as cost the same. Each keeps the weights of its best validation. Seeds may
run apart and be put together: ``--with`` counts in those of other records.
"""

import argparse
import os
import shlex
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch

from vitkern.commands.info import processor, versions
from vitkern.models.strec_form import density
from vitkern.report import BadInput, progress, table
from vitkern.strec import checkpoint, distributed
from vitkern.strec.log import read_log
from vitkern.strec.resume import fingerprint
from vitkern.strec.serve import weights_for
from vitkern.strec.settings import Settings, build_model
from vitkern.strec.train import Run

METRICS = ("hit@10", "ndcg@10", "mrr@10")
ALLOWED = 0.02


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.strec", description=__doc__.splitlines()[0])
    found.add_argument("log", type=Path, help="CSV, TSV or .inter, for example RecBole's ml-100k.inter")
    found.add_argument("--epochs", type=int, default=5)
    found.add_argument("--epoch-samples", type=int, default=0, help="a random part of the log for each epoch; 0: all")
    found.add_argument(
        "--budget", choices=("updates", "rows"), default="updates", help="what STRec's fine-tuning gets as much of"
    )
    found.add_argument("--max-len", type=int, default=20)
    found.add_argument("--d", type=int, default=64)
    found.add_argument("--layers", type=int, default=3)
    found.add_argument("--batch", type=int, default=128)
    found.add_argument("--lr", type=float, default=1e-3)
    found.add_argument("--dropout", type=float, default=0.1)
    found.add_argument("--form", default="log")
    found.add_argument("--split", default="ratio", choices=("ratio", "leave-last-out"))
    found.add_argument("--seeds", type=int, nargs="*", default=[0])
    found.add_argument(
        "--with", dest="records", type=Path, nargs="+", default=[], help="records of other seeds to count in"
    )
    found.add_argument("--save", type=Path, help="JSON to write")
    return found


def trained(log, settings: Settings, folder: Path, weights=None) -> dict:
    run = Run(settings, log, folder, distributed.Group(0, 1, distributed.device()))
    if weights is not None:
        run.initialise(weights)
    begun = time.monotonic()
    return run.train() | {"wall": round(time.monotonic() - begun)}


def tuning(settings: Settings, budget: str) -> Settings:
    """Of STRec's fine-tuning: as many epochs as pre-training has, or as many as compute its number of rows."""
    part = density(build_model(settings, 2).ks, settings.max_len) if budget == "rows" else 1.0
    return replace(settings, epochs=round(settings.epochs / part), decay=1.0)


def contenders(log, settings: Settings, budget: str, folder: Path) -> dict[str, dict]:
    """Every model of one seed, with test metrics, parameters and seconds."""
    long = replace(settings, epochs=2 * settings.epochs, decay=0.5)
    progress(f"seed {settings.seed}: popularity")
    found = {"popularity": trained(log, replace(settings, model="popularity"), folder / "popularity")}
    for model in ("sasrec", "dense"):
        progress(f"seed {settings.seed}: {model}")
        found[model] = trained(log, replace(long, model=model), folder / model)
    progress(f"seed {settings.seed}: strec, pre-training")
    first = trained(log, replace(settings, stage="pretrain"), folder / "pretrain")
    progress(f"seed {settings.seed}: strec, fine-tuning")
    weights = weights_for(settings, log, folder / "pretrain")
    found["strec"] = trained(log, tuning(settings, budget), folder / "finetune", weights)
    found["strec"]["wall"] += first["wall"]
    return found


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    log = read_log(arguments.log)
    names = ("epochs", "epoch_samples", "max_len", "d", "layers", "batch", "lr", "dropout", "form", "split")
    settings = Settings(patience=0, **{name: getattr(arguments, name) for name in names})
    shared = {name: value for name, value in settings.json().items() if name != "seed"}
    same = dict(settings=shared, budget=arguments.budget, log=fingerprint(log))
    seeds = {seed: found for path in arguments.records for seed, found in others(path, same).items()}
    command = f"python -m benchmarks.strec {shlex.join(argv)}"
    kept = ("test", "valid", "best_epoch", "parameters", "history", "wall")
    with tempfile.TemporaryDirectory() as folder:
        for seed in map(str, arguments.seeds):
            found = contenders(log, replace(settings, seed=int(seed)), arguments.budget, Path(folder) / seed)
            models = {m: {name: metrics[name] for name in kept} for m, metrics in found.items()}
            seeds[seed] = dict(command=command, environment=environment(), models=models)
    if not seeds:
        raise BadInput("no seed to run and no record to count in.")
    means, passed = verdict(seeds, settings.split)
    if arguments.save:
        checkpoint.write_json(arguments.save, dict(passed=passed, means=means) | same | dict(seeds=seeds))
    return 0 if passed else 1


def others(path: Path, same: dict) -> dict[str, dict]:
    """The seeds of another record.

    Raises:
        BadInput: there is none, or it is of other settings or of another log.
    """
    record = checkpoint.read_json(path)
    for name, value in same.items():
        if record.get(name) != value:
            raise BadInput(f"{path} has another {name}; only seeds of the same settings and log count together.")
    return record["seeds"]


def environment() -> dict:
    return dict(processor=processor(), threads=torch.get_num_threads(), cores=os.cpu_count(), versions=versions())


def verdict(seeds: dict[str, dict], split: str) -> tuple[dict, bool]:
    """Prints the table and what it says: the means over seeds, and whether STRec's are as good as is asked."""
    models = list(next(iter(seeds.values()))["models"])
    values = {
        m: {name: [found["models"][m]["test"][name] for found in seeds.values()] for name in METRICS} for m in models
    }
    means = {m: {name: mean(all_seeds) for name, all_seeds in values[m].items()} for m in models}
    rows = [
        (m, *(f"{means[m][name]:.4f}" for name in METRICS), _range(values[m]["ndcg@10"]),
         f"{mean(found['models'][m]['wall'] for found in seeds.values()):.0f} s")
        for m in models
    ]  # fmt: skip
    count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    print(table((f"test, {split}, {count}", *METRICS, "range of ndcg@10", "training"), rows))
    best = max(means["dense"]["ndcg@10"], means["sasrec"]["ndcg@10"])
    short = 1 - means["strec"]["ndcg@10"] / best
    passed = short <= ALLOWED and means["strec"]["ndcg@10"] > means["popularity"]["ndcg@10"]
    text = f"STRec is {abs(short):.1%} {'below' if short > 0 else 'above'} the better of dense and SASRec in NDCG@10"
    print(
        f"verdict: {'ok' if passed else 'FAILED'}: {text}; at most {ALLOWED:.0%} below, and above popularity, is asked"
    )
    return means, passed


def _range(values: list[float]) -> str:
    return f"{min(values):.4f} to {max(values):.4f}"


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BadInput as problem:
        sys.exit(f"benchmarks.strec: {problem}")
