"""The accuracy table: one harness for all models, seeds that are put together, and the record that is kept."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import strec
from vitkern.report import BadInput
from vitkern.strec import checkpoint
from vitkern.strec.synthetic import write_planted_log

RECORD = Path(strec.__file__).parent / "results" / "strec" / "ml-100k.json"
TINY = ["--epochs", "1", "--max-len", "8", "--d", "8", "--ks", "4", "1", "--batch", "64"]


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.csv"
    write_planted_log(path, users=60, items=20, events=8, seed=0)
    return path


def test_seeds_of_two_runs_count_together(log, tmp_path, capsys):
    first, second, both = (tmp_path / name for name in ("0.json", "1.json", "both.json"))
    for seed, path in enumerate((first, second)):
        assert strec.main([str(log), *TINY, "--seeds", str(seed), "--save", str(path)]) in (0, 1)
    told = ["--with", str(first), str(second), "--save", str(both)]
    code = strec.main([str(log), *TINY, "--seeds", *told])
    record = json.loads(both.read_text())
    assert code == (0 if record["passed"] else 1) and "2 seeds" in capsys.readouterr().out
    assert list(record["seeds"]) == ["0", "1"] and record["seeds"]["1"]["command"].endswith(str(second))
    parts = [json.loads(path.read_text())["means"]["strec"]["ndcg@10"] for path in (first, second)]
    assert record["means"]["strec"]["ndcg@10"] == pytest.approx(sum(parts) / 2)
    with pytest.raises(BadInput, match="another settings"):
        strec.main([str(log), *TINY, "--lr", "0.1", "--seeds", *told])
    with pytest.raises(BadInput, match="no seed to run"):
        strec.main([str(log), *TINY, "--seeds"])


def test_every_run_has_the_same_patience_and_cap(log, tmp_path):
    path = tmp_path / "0.json"
    strec.main(
        [str(log), *TINY, "--epochs", "9", "--patience", "2", "--decay", "0", "--lr", "0.02", "--save", str(path)]
    )
    record = json.loads(path.read_text())
    models = record["seeds"]["0"]["models"]
    assert list(models) == ["popularity", "sasrec", "dense", "strec"]
    for run in (models["sasrec"], models["dense"], models["strec"], models["strec"]["pretraining"]):
        epochs, best = len(run["history"]), run["best_epoch"]
        assert epochs == min(9, best + 2) and best == 1 + max(
            range(epochs), key=lambda i: (run["history"][i]["ndcg@10"], -i)
        )
        assert run["valid"]["ndcg@10"] == pytest.approx(run["history"][best - 1]["ndcg@10"])
    assert models["strec"]["test"]["count"] == models["sasrec"]["test"]["count"]
    assert record["settings"]["patience"] == 2 and record["settings"]["ks"] == [4, 1]


def test_runs_that_are_kept_go_on(log, tmp_path):
    told = [str(log), *TINY, "--epochs", "2", "--runs", str(tmp_path / "runs")]
    strec.main([*told, "--save", str(tmp_path / "first.json")])
    finetune = tmp_path / "runs" / "0" / "finetune"
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob(checkpoint.STATE)}
    shutil.rmtree(finetune)
    strec.main([*told, "--save", str(tmp_path / "second.json")])
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("first.json", "second.json"))
    assert first["means"] == second["means"] and len(before) == 5
    assert [p.parent for p, time in before.items() if p.stat().st_mtime_ns != time] == [finetune]


def test_fine_tuning_starts_from_pre_training_at_its_own_rate(log, tmp_path, monkeypatch):
    started = {}

    def trained(log, settings, folder, weights=None):
        started[folder.name] = settings, weights
        return whole(log, settings, folder, weights)

    whole = strec.trained
    monkeypatch.setattr(strec, "trained", trained)
    strec.main([str(log), *TINY, "--tuning-lr", "0.003"])
    assert started["finetune"][0] == replace(started["pretrain"][0], stage="finetune", lr=0.003)
    assert all(weights is None for name, (_, weights) in started.items() if name != "finetune")
    assert started["finetune"][1] is not None


def test_the_record_of_movielens_says_what_its_seeds_say():
    record = json.loads(RECORD.read_text())
    assert strec.verdict(record["seeds"], record["settings"]["split"]) == (record["means"], record["passed"])
    assert all("ml-100k.inter" in found["command"] for found in record["seeds"].values())


@pytest.mark.skipif(
    "VITKERN_ML_100K" not in os.environ,
    reason="the log is no part of this project: VITKERN_ML_100K is the path of the ml-100k.inter in RecBole's wheel",
)
def test_movielens_from_the_log_to_the_table(tmp_path):
    path, log = tmp_path / "found.json", os.environ["VITKERN_ML_100K"]
    strec.main([log, "--epochs", "1", "--epoch-samples", "20000", "--tuning-lr", "2e-3", "--save", str(path)])
    record = json.loads(path.read_text())
    means = record["means"]
    assert record["log"] == json.loads(RECORD.read_text())["log"]
    assert means["strec"]["ndcg@10"] > means["popularity"]["ndcg@10"]
