"""The accuracy table: one harness for all models, seeds that are put together, and the record that is kept."""

import json
import os
from pathlib import Path

import pytest

from benchmarks import strec
from vitkern.report import BadInput
from vitkern.strec.settings import Settings
from vitkern.strec.synthetic import write_planted_log

RECORD = Path(strec.__file__).parent / "results" / "strec" / "ml-100k.json"
TINY = ["--epochs", "1", "--max-len", "8", "--d", "8", "--layers", "2", "--batch", "64"]


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


def test_all_models_have_the_same_budget(log, tmp_path):
    path = tmp_path / "0.json"
    strec.main([str(log), *TINY, "--save", str(path)])
    models = json.loads(path.read_text())["seeds"]["0"]["models"]
    assert {name: len(found["history"]) for name, found in models.items()} == {
        "popularity": 0, "sasrec": 2, "dense": 2, "strec": 1,
    }  # fmt: skip
    assert models["strec"]["test"]["count"] == models["sasrec"]["test"]["count"]


def test_fine_tuning_gets_as_many_rows_of_layers_as_pretraining():
    settings = Settings(max_len=20, layers=3, epochs=6, ks=(20, 5, 5))
    assert strec.tuning(settings, "updates").epochs == 6
    assert strec.tuning(settings, "rows").epochs == 12  # half the rows


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
    strec.main([log, "--epochs", "1", "--epoch-samples", "4000", "--save", str(path)])
    record = json.loads(path.read_text())
    means = record["means"]
    assert record["log"] == json.loads(RECORD.read_text())["log"]
    assert means["strec"]["ndcg@10"] > means["popularity"]["ndcg@10"]
