"""The accuracy table of the sequential recommenders: STRec, its dense backbone, SASRec and popularity on one log.

    pip download --no-deps recbole==1.2.1 && unzip -j recbole-*.whl '*/ml-100k.inter'
    python -m benchmarks.strec ml-100k.inter --save benchmarks/results/strec/ml-100k.json

One harness: the same samples, split, sizes, optimiser, batch, schedule, patience and cap for all. A run stops when its
NDCG@10 in validation has not risen for ``--patience`` epochs, at the latest after ``--epochs``; the weights of its best
validation are tested, once. STRec is two such runs: pre-training, and fine-tuning from its weights at ``--tuning-lr``.
It computes 12 of 20 rows in its first layer and the last in its second: two thirds of the rows are left out, near the
sparsity at which its paper is best (69 %), and 12 is about what alpha_1 = -0.2 opens in pre-training.
Seeds may run apart and be put together: ``--with`` counts in those of other records. A run that was killed goes on
where ``--runs`` kept it.
"""

import argparse
import os
import shlex
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from statistics import mean

import torch

from vitkern.commands.info import processor, versions
from vitkern.commands.outcome import Parser, ended
from vitkern.report import BadInput, progress, table
from vitkern.strec import checkpoint, distributed
from vitkern.strec.log import read_log
from vitkern.strec.resume import fingerprint
from vitkern.strec.serve import weights_for
from vitkern.strec.settings import Settings
from vitkern.strec.train import Run

METRICS = ("hit@10", "ndcg@10", "mrr@10")
ALLOWED = 0.02


def parser() -> argparse.ArgumentParser:
    found = Parser(prog="python -m benchmarks.strec", description=__doc__.splitlines()[0])
    found.add_argument("log", type=Path, help="CSV, TSV or .inter, for example RecBole's ml-100k.inter")
    found.add_argument("--epochs", type=int, default=8, help="of a run, at most")
    found.add_argument("--patience", type=int, default=3, help="epochs without a better validation that end a run")
    found.add_argument("--epoch-samples", type=int, default=0, help="a random part of the log for each epoch; 0: all")
    found.add_argument("--max-len", type=int, default=20)
    found.add_argument("--d", type=int, default=64)
    found.add_argument("--layers", type=int, default=2)
    found.add_argument("--ks", type=int, nargs="*", default=[12, 1], metavar="K", help="k_1 .. k_L of STRec")
    found.add_argument("--batch", type=int, default=128)
    found.add_argument("--lr", type=float, default=2e-3)
    found.add_argument("--tuning-lr", type=float, default=2e-4, help="of STRec's fine-tuning")
    found.add_argument("--decay", type=float, default=1.0, help="last part of the cap in which the rate falls to 0")
    found.add_argument("--dropout", type=float, default=0.1)
    found.add_argument("--form", default="log")
    found.add_argument("--split", default="ratio", choices=("ratio", "leave-last-out"))
    found.add_argument("--seeds", type=int, nargs="*", default=[0])
    found.add_argument(
        "--with", dest="records", type=Path, nargs="+", default=[], help="records of other seeds to count in"
    )
    found.add_argument("--runs", type=Path, help="folder that keeps the runs; those that are there go on")
    found.add_argument("--save", type=Path, help="JSON to write")
    return found


def trained(log, settings: Settings, folder: Path, weights=None) -> dict:
    """The metrics of a run, which goes on where the folder holds a part of it."""
    run = Run(settings, log, folder, distributed.Group(0, 1, distributed.device()))
    begun = (folder / checkpoint.STATE).exists()
    if weights is not None and not begun:
        run.initialise(weights)
    return run.train(proceed=begun)


def contenders(log, settings: Settings, tuning_lr: float, folder: Path) -> dict[str, dict]:
    """Every model of one seed, with test metrics and parameters."""
    found = {}
    for model in ("popularity", "sasrec", "dense"):
        progress(f"seed {settings.seed}: {model}")
        found[model] = trained(log, replace(settings, model=model), folder / model)
    progress(f"seed {settings.seed}: strec, pre-training")
    first = trained(log, replace(settings, stage="pretrain"), folder / "pretrain")
    progress(f"seed {settings.seed}: strec, fine-tuning")
    weights = weights_for(settings, log, folder / "pretrain")
    found["strec"] = trained(log, replace(settings, lr=tuning_lr), folder / "finetune", weights)
    found["strec"]["pretraining"] = {name: first[name] for name in ("valid", "best_epoch", "history")}
    return found


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    log = read_log(arguments.log)
    own = {"log", "tuning_lr", "seeds", "records", "runs", "save", "ks"}
    settings = Settings(ks=tuple(arguments.ks), **{k: v for k, v in vars(arguments).items() if k not in own})
    shared = {name: value for name, value in settings.json().items() if name != "seed"}
    same = dict(settings=shared, tuning_lr=arguments.tuning_lr, log=fingerprint(log))
    seeds = {seed: found for path in arguments.records for seed, found in others(path, same).items()}
    command = f"python -m benchmarks.strec {shlex.join(argv)}"
    kept = ("test", "valid", "best_epoch", "parameters", "history", "pretraining")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.runs or Path(temporary)
        for seed in map(str, arguments.seeds):
            found = contenders(log, replace(settings, seed=int(seed)), arguments.tuning_lr, folder / seed)
            models = {m: {name: metrics[name] for name in kept if name in metrics} for m, metrics in found.items()}
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
         ", ".join(_epochs(found["models"][m]) for found in seeds.values()))
        for m in models
    ]  # fmt: skip
    count = f"{len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
    print(table((f"test, {split}, {count}", *METRICS, "range of ndcg@10", "best epochs"), rows))
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


def _epochs(found: dict) -> str:
    """The best epoch of a run and how many it had: ``5/8``; of both, where one came before."""
    runs = [*([found["pretraining"]] if "pretraining" in found else []), found]
    return " + ".join(f"{run['best_epoch']}/{len(run['history'])}" for run in runs)


if __name__ == "__main__":
    sys.exit(ended("benchmarks.strec", None, main))
