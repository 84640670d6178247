"""The accuracy table of the sequential recommenders: STRec, its dense backbone, SASRec and popularity on one log.

    python -m benchmarks.strec ml-100k.inter --save benchmarks/results/strec/ml-100k.json

One harness: the same samples, split, sizes, optimiser, batch and number of updates for all. STRec is pre-trained for
``--epochs`` and fine-tuned for as many; the others train for twice as many. Each keeps the weights of its best
validation.
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
from vitkern.report import BadInput, progress, table
from vitkern.strec import checkpoint, distributed
from vitkern.strec.log import read_log
from vitkern.strec.serve import weights_for
from vitkern.strec.settings import Settings
from vitkern.strec.train import Run

METRICS = ("hit@10", "ndcg@10", "mrr@10")
ALLOWED = 0.02


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="python -m benchmarks.strec", description=__doc__.splitlines()[0])
    found.add_argument("log", type=Path, help="CSV, TSV or .inter, for example RecBole's ml-100k.inter")
    found.add_argument("--epochs", type=int, default=5)
    found.add_argument("--epoch-samples", type=int, default=0, help="a random part of the log for each epoch; 0: all")
    found.add_argument("--max-len", type=int, default=20)
    found.add_argument("--d", type=int, default=64)
    found.add_argument("--layers", type=int, default=3)
    found.add_argument("--batch", type=int, default=128)
    found.add_argument("--lr", type=float, default=1e-3)
    found.add_argument("--dropout", type=float, default=0.1)
    found.add_argument("--form", default="log")
    found.add_argument("--split", default="ratio", choices=("ratio", "leave-last-out"))
    found.add_argument("--seeds", type=int, nargs="+", default=[0])
    found.add_argument("--save", type=Path, help="JSON to write")
    return found


def trained(log, settings: Settings, folder: Path, weights=None) -> dict:
    run = Run(settings, log, folder, distributed.Group(0, 1, distributed.device()))
    if weights is not None:
        run.initialise(weights)
    begun = time.monotonic()
    return run.train() | {"wall": round(time.monotonic() - begun)}


def contenders(log, settings: Settings, folder: Path) -> dict[str, dict]:
    """Every model of one seed, with test metrics, parameters and seconds."""
    long = replace(settings, epochs=2 * settings.epochs)
    progress(f"seed {settings.seed}: popularity")
    found = {"popularity": trained(log, replace(settings, model="popularity"), folder / "popularity")}
    for model in ("sasrec", "dense"):
        progress(f"seed {settings.seed}: {model}")
        found[model] = trained(log, replace(long, model=model), folder / model)
    progress(f"seed {settings.seed}: strec, pre-training")
    first = trained(log, replace(settings, stage="pretrain"), folder / "pretrain")
    progress(f"seed {settings.seed}: strec, fine-tuning")
    found["strec"] = trained(log, settings, folder / "finetune", weights_for(settings, log, folder / "pretrain"))
    found["strec"]["wall"] += first["wall"]
    return found


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    log = read_log(arguments.log)
    names = ("epochs", "epoch_samples", "max_len", "d", "layers", "batch", "lr", "dropout", "form", "split")
    settings = Settings(patience=0, **{name: getattr(arguments, name) for name in names})
    seeds = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in arguments.seeds:
            seeds[seed] = contenders(log, replace(settings, seed=seed), Path(folder) / str(seed))
    models = list(seeds[arguments.seeds[0]])
    means = {m: {name: mean(found[m]["test"][name] for found in seeds.values()) for name in METRICS} for m in models}
    rows = [
        (m, *(f"{means[m][name]:.4f}" for name in METRICS), f"{seeds[arguments.seeds[0]][m]['wall']} s") for m in models
    ]
    print(table((f"test, {settings.split}", *METRICS, "training"), rows))
    best = max(means["dense"]["ndcg@10"], means["sasrec"]["ndcg@10"])
    short = 1 - means["strec"]["ndcg@10"] / best
    passed = short <= ALLOWED and means["strec"]["ndcg@10"] > means["popularity"]["ndcg@10"]
    text = f"STRec is {abs(short):.1%} {'below' if short > 0 else 'above'} the better of dense and SASRec in NDCG@10"
    print(
        f"verdict: {'ok' if passed else 'FAILED'}: {text}; at most {ALLOWED:.0%} below, and above popularity, is asked"
    )
    if arguments.save:
        command = f"python -m benchmarks.strec {shlex.join(argv)}"
        environment = dict(
            processor=processor(), threads=torch.get_num_threads(), cores=os.cpu_count(), versions=versions()
        )
        kept = ("test", "valid", "best_epoch", "parameters", "history", "wall")
        results = {str(s): {m: {name: f[m][name] for name in kept} for m in models} for s, f in seeds.items()}
        record = dict(command=command, environment=environment, passed=passed, means=means, settings=settings.json())
        checkpoint.write_json(
            arguments.save, record | dict(log=seeds[arguments.seeds[0]]["strec"]["log"], seeds=results)
        )
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except BadInput as problem:
        sys.exit(f"benchmarks.strec: {problem}")
