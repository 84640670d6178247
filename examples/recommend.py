"""STRec on your own log: train, test, recommend.

    python examples/recommend.py [--tiny] [--log LOG.csv]

A log has the columns user, item and timestamp; without one a small log is made.
"""

import argparse
import tempfile
from pathlib import Path

from vitkern.strec.distributed import Group, device
from vitkern.strec.log import read_log
from vitkern.strec.serve import load_run, recommend
from vitkern.strec.settings import Settings
from vitkern.strec.synthetic import write_planted_log
from vitkern.strec.train import Run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="a small log and model")
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        path = arguments.log or Path(folder) / "log.csv"
        if arguments.log is None:
            write_planted_log(path, users=40 if arguments.tiny else 400, seed=0)
        log = read_log(path)
        print(f"{len(log.users)} users, {len(log.items)} items")
        sizes = dict(d=16, layers=1, max_len=8) if arguments.tiny else dict(d=32, layers=3, max_len=16)
        settings = Settings(**sizes, stage="pretrain", lr=3e-3, epochs=1 if arguments.tiny else 6, batch=64)
        found = Run(settings, log, Path(folder) / "run", Group(0, 1, device())).train()
        print("test:", ", ".join(f"{name} {found['test'][name]:.3f}" for name in ("hit@10", "ndcg@10", "mrr@10")))
        model, _, _ = load_run(Path(folder) / "run")
        for user in range(3):
            print(f"next for {log.users[user]}: {recommend(model, log, user, 5)}")


if __name__ == "__main__":
    main()
