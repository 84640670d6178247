"""demo: a synthetic log with a planted time decay, and STRec from pre-training to recommendations."""

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from vitkern.report import BadInput, progress, table

_MOST_USERS = 10_000_000


def add_arguments(parser) -> None:
    parser.add_argument("--out", type=Path, help="new folder for the log and the runs; thrown away unless given")
    parser.add_argument("--users", type=int, default=600, help="of the log; the default is 600")
    parser.add_argument("--seed", type=int, default=0, help="of the log and of training; the default is 0")


def run(arguments) -> int:
    if arguments.users < 20:
        raise BadInput(f"--users is {arguments.users}; expected at least 20.")
    if arguments.users > _MOST_USERS:
        raise BadInput(f"--users is {arguments.users}; expected at most {_MOST_USERS:,}.")
    if not 0 <= arguments.seed < 2**64:
        raise BadInput(f"--seed is {arguments.seed}; expected 0 or more, and less than 2^64.")
    if arguments.out is not None:
        if arguments.out.exists() and (not arguments.out.is_dir() or any(arguments.out.iterdir())):
            raise BadInput(f"{arguments.out} is no empty folder; give a new one.")
        return _demo(arguments.out, arguments.users, arguments.seed)
    with tempfile.TemporaryDirectory() as folder:
        return _demo(Path(folder), arguments.users, arguments.seed)


def _demo(folder: Path, users: int, seed: int) -> int:
    from vitkern.strec import checkpoint, distributed
    from vitkern.strec.log import read_log
    from vitkern.strec.plots import save_curves
    from vitkern.strec.serve import load_run, recommend
    from vitkern.strec.settings import Settings
    from vitkern.strec.synthetic import recency, turn_to_old, write_planted_log
    from vitkern.strec.train import Run

    begun, group = time.monotonic(), distributed.Group(0, 1, distributed.device())
    path = folder / "log.csv"
    print(f"wrote {write_planted_log(path, users=users, seed=seed)} events of {users} users to {path}")
    log = read_log(path)
    settings = Settings(d=32, layers=3, max_len=16, dropout=0.1, lr=3e-3, epochs=4, patience=0, batch=64, seed=seed)

    progress("pre-training, from a sampler that was turned to prefer old items")
    first = Run(replace(settings, stage="pretrain"), log, folder / "pretrain", group)
    turn_to_old(first.model)
    before = recency(first.model)
    first.train()
    progress("fine-tuning: each layer computes the sampled rows alone")
    second = Run(replace(settings, epochs=2), log, folder / "finetune", group)
    second.initialise(checkpoint.read_tensors(folder / "pretrain" / checkpoint.WEIGHTS)[0])
    tuned = second.train()
    save_curves(folder / "finetune" / checkpoint.CURVES, tuned["history"])
    popular = Run(replace(settings, model="popularity"), log, folder / "popularity", group).train()

    names = ("hit@10", "ndcg@10", "mrr@10")
    found = {"strec": tuned["test"], "popularity": popular["test"]}
    print(table(("test", *names), [(name, *(f"{values[m]:.4f}" for m in names)) for name, values in found.items()]))
    model, _, _ = load_run(folder / "finetune")
    print(f"next for {log.users[0]}: {json.dumps(recommend(model, log, 0, 3))}")
    after = recency(model)
    print(f"score of recent items above that of old ones: {before:+.2f} at first, {after:+.2f} after training")
    passed = {
        "the sampler was turned round and prefers recent items": before < 0 < after,
        "STRec ranks better than popularity": tuned["test"]["ndcg@10"] > popular["test"]["ndcg@10"],
    }
    for what, holds in passed.items():
        print(f"{'ok    ' if holds else 'FAILED'}  {what}")
    print(f"verdict: {'everything holds' if all(passed.values()) else 'FAILED'}, in {time.monotonic() - begun:.0f} s")
    return 0 if all(passed.values()) else 1
