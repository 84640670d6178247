"""Training runs: resuming after a kill, many processes, baselines, what the sampler learns, broken files."""

import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from vitkern.report import BadInput
from vitkern.strec import checkpoint
from vitkern.strec.distributed import Group
from vitkern.strec.log import read_log
from vitkern.strec.serve import load_run, recommend, weights_for
from vitkern.strec.settings import MODELS, Settings, build_model
from vitkern.strec.synthetic import recency, turn_to_old, write_planted_log
from vitkern.strec.train import Run

ROOT = Path(__file__).resolve().parent.parent
ALONE = Group(0, 1, torch.device("cpu"))
TINY = Settings(d=16, layers=2, max_len=8, batch=64, epochs=2, patience=0, dropout=0.2, lr=3e-3)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("log") / "log.csv"
    write_planted_log(path, users=80, items=40, events=10, seed=3)
    return path


@pytest.fixture(scope="module")
def log(path):
    return read_log(path)


def lasting(metrics):
    """What a run gives apart from how long it took."""
    return {name: value for name, value in metrics.items() if name != "seconds"}


def options(settings):
    found = []
    for name, value in settings.json().items():
        if value != Settings().json()[name]:
            found += [
                "--dim" if name == "d" else f"--{name.replace('_', '-')}",
                *map(str, value if isinstance(value, list) else [value]),
            ]
    return found


def environment():
    return os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def test_kill_and_resume_gives_the_same_metrics(path, log, tmp_path):
    settings = replace(TINY, stage="pretrain", epochs=4, loss="sampled", negatives=16)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = Run(settings, log, tmp_path / "whole", ALONE).train()
        folder = tmp_path / "killed"
        command = [sys.executable, "-m", "vitkern", "strec", "train", str(path), "--out", str(folder)]
        process = subprocess.Popen(
            [*command, *options(settings), "--checkpoint-every", "2"], env=environment(), cwd=ROOT,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        state = folder / checkpoint.STATE
        while process.poll() is None:
            if state.exists() and (found := checkpoint.read_tensors(state)[1]["state"])["epoch"] and found["step"]:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.002)
        assert process.wait() == -signal.SIGKILL, process.stderr.read()
        assert not (folder / checkpoint.METRICS).exists()
        found = checkpoint.read_tensors(state)[1]["state"]
        assert 1 <= found["epoch"] < settings.epochs
        resumed = Run(settings, log, folder, ALONE).train(proceed=True)
    finally:
        torch.set_num_threads(threads)
    assert lasting(resumed) == lasting(whole)
    assert json.loads((folder / checkpoint.METRICS).read_text())["test"] == whole["test"]


def test_a_checkpoint_within_an_epoch_holds_all_that_the_next_step_needs(log, tmp_path):
    """Resumed from the middle of an epoch: optimiser, generators, position, the loss so far."""
    settings = replace(TINY, stage="pretrain", epochs=1, decay=0.7, attention_dropout=0.1)
    whole = Run(settings, log, tmp_path / "whole", ALONE).train(every=3)
    middle = tmp_path / "middle"
    run, saved = Run(settings, log, middle, ALONE), []
    save = run._save

    def stop_at_the_third():
        save()
        saved.append(run.state["step"])
        raise KeyboardInterrupt

    run._save = stop_at_the_third
    with pytest.raises(KeyboardInterrupt):
        run.train(every=3)
    assert saved == [3]
    torch.manual_seed(12345)
    assert lasting(Run(settings, log, middle, ALONE).train(proceed=True, every=3)) == lasting(whole)


PROCESS = """
import sys, json, torch
from pathlib import Path
from dataclasses import replace
from vitkern.strec import distributed
from vitkern.strec.log import read_log
from vitkern.strec.settings import Settings
from vitkern.strec.train import Run
path, out, found = sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3])
group = distributed.start()
for sharding in ("ddp", "fsdp"):
    settings = replace(Settings.from_json(found), sharding=sharding)
    Run(replace(settings, epochs=1), read_log(path), out / sharding, group).train()
    Run(settings, read_log(path), out / sharding, group).train(proceed=True)
distributed.stop(group)
"""


def test_two_processes_equal_one(path, log, tmp_path):
    """Copies and pieces, with a resume between: noise and negatives are drawn for all processes alike."""
    # Batches of 63: the two processes get unequal parts.
    settings = replace(TINY, stage="pretrain", dropout=0.0, loss="sampled", negatives=16, batch=63)
    alone = Run(settings, log, tmp_path / "alone", ALONE).train()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = environment() | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", PROCESS, str(path), str(tmp_path), json.dumps(settings.json())]
    processes = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, cwd=ROOT,
                         stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]  # fmt: skip
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    expected, _ = checkpoint.read_tensors(tmp_path / "alone" / checkpoint.WEIGHTS)
    for sharding in ("ddp", "fsdp"):
        found = checkpoint.read_json(tmp_path / sharding / checkpoint.METRICS)
        assert found["processes"] == 2 and found["best_epoch"] == alone["best_epoch"]
        assert [row["loss"] for row in found["history"]] == pytest.approx(
            [row["loss"] for row in alone["history"]], rel=1e-5
        )
        assert found["test"] == pytest.approx(alone["test"], rel=1e-3)
        weights, _ = checkpoint.read_tensors(tmp_path / sharding / checkpoint.WEIGHTS)
        assert weights.keys() == expected.keys()
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("model", MODELS)
def test_every_model_learns_and_serves(model, log, tmp_path):
    epochs = {"gru4rec": 8, "bert4rec": 10}.get(model, 5)
    stage = "pretrain" if model == "strec" else "finetune"
    settings = replace(TINY, model=model, epochs=epochs, dropout=0.0, stage=stage, lr=1e-2)
    metrics = Run(settings, log, tmp_path, ALONE).train()
    chance = 4.5 / 40  # NDCG@10 of a random order of 40 items
    assert metrics["test"]["ndcg@10"] > (0.6 * chance if model == "popularity" else 2 * chance), metrics["test"]
    loaded, stored, items = load_run(tmp_path)
    assert stored == settings and items == log.items
    best = recommend(loaded, log, 0, 5)
    assert len(best) == 5 and all(a["score"] >= b["score"] for a, b in itertools.pairwise(best))
    seen = {log.items[i] for i in log.item[: log.starts[1]]}
    assert not seen & {row["item"] for row in best}


def test_sasrec_is_the_last_row_of_a_causal_encoder():
    torch.manual_seed(0)
    model = build_model(replace(TINY, model="sasrec", layers=3), 30).double().eval()
    seq = torch.randint(1, 30, (4, 8))
    seq[0, :5] = seq[1, :7] = 0
    mask = torch.ones(8, 8, dtype=torch.bool).triu(1)
    with torch.enable_grad():  # else PyTorch drops padded rows
        x = model.embed(seq)
        for row in range(4):
            real = slice(8 - int((seq[row] != 0).sum()), None)
            expected = model.encoder(x[row : row + 1, real], mask=mask[real, real])[:, -1]
            torch.testing.assert_close(model(seq, seq)[row : row + 1], expected, rtol=1e-12, atol=1e-12)


def test_attention_weights_of_every_transformer_are_dropped_alike():
    for model in ("strec", "sasrec", "bert4rec"):
        torch.manual_seed(0)
        settings = replace(TINY, model=model, dropout=0.0)
        plain, dropped = (build_model(replace(settings, attention_dropout=p), 30) for p in (0.0, 0.5))
        dropped.load_state_dict(plain.state_dict())
        seq = torch.randint(1, 30, (4, 8))
        noise = torch.zeros(4, 8)
        assert torch.equal(plain(seq, seq, noise), plain(seq, seq, noise)), model
        assert not torch.allclose(plain(seq, seq, noise), dropped(seq, seq, noise)), model


def test_the_sampler_learns_to_prefer_recent_items(tmp_path):
    """From a sampler that was turned to prefer old ones."""
    write_planted_log(tmp_path / "log.csv", users=150, items=60, events=24, seed=3)
    log = read_log(tmp_path / "log.csv")
    settings = replace(TINY, stage="pretrain", layers=3, d=32, max_len=12, epochs=4, dropout=0.0)
    run = Run(settings, log, tmp_path / "pretrain", ALONE)
    turn_to_old(run.model)
    assert recency(run.model) < 0
    run.train()
    assert recency(run.model) > 0.5
    tuned = Run(replace(settings, stage="finetune", epochs=1), log, tmp_path / "finetune", ALONE)
    tuned.initialise(weights_for(tuned.settings, log, tmp_path / "pretrain"))
    learned = recency(tuned.model)
    tuned.train()
    assert recency(tuned.model) == learned  # fine-tuning leaves the sampler alone


def test_an_epoch_takes_every_sample_once_in_an_order_of_its_own(log, tmp_path):
    run, steps = Run(replace(TINY, lr=1e-9), log, tmp_path, ALONE), []
    step = run._step
    run._step = lambda which, trained: steps.append(which) or step(which, trained)
    run.train()
    half, samples = len(steps) // 2, len(run.samples["train"])
    epochs = [torch.cat(steps[:half]), torch.cat(steps[half:])]
    assert all(torch.equal(order.sort().values, torch.arange(samples)) for order in epochs)
    assert not torch.equal(*epochs)


def test_the_learning_rate_falls_in_the_last_part_of_all_updates(log, tmp_path):
    run, rates = Run(replace(TINY, epochs=2, decay=0.5), log, tmp_path, ALONE), []
    step = run._step
    run._step = lambda which, trained: rates.append(run.optimizer.param_groups[0]["lr"]) or step(which, trained)
    run.train()
    half = len(rates) // 2
    assert rates[: half + 1] == [TINY.lr] * (half + 1)
    assert rates[half:] == pytest.approx([TINY.lr * (1 - i / half) for i in range(half)])


def test_early_stopping(log, tmp_path):
    settings = replace(TINY, epochs=50, patience=2, lr=1e-9, dropout=0.0, batch=1000)
    metrics = Run(settings, log, tmp_path, ALONE).train()
    assert len(metrics["history"]) == metrics["best_epoch"] + 2 < 50
    best = metrics["history"][metrics["best_epoch"] - 1]
    assert metrics["valid"]["ndcg@10"] == best["ndcg@10"]


def test_resuming_another_run_is_refused(log, tmp_path):
    Run(replace(TINY, epochs=1), log, tmp_path / "run", ALONE).train()
    with pytest.raises(BadInput, match="another lr"):
        Run(replace(TINY, lr=1e-4), log, tmp_path / "run", ALONE).train(proceed=True)
    write_planted_log(tmp_path / "other.csv", users=50, items=40, seed=9)
    other = read_log(tmp_path / "other.csv")
    with pytest.raises(BadInput, match="another log"):
        Run(TINY, other, tmp_path / "run", ALONE).train(proceed=True)
    with pytest.raises(BadInput, match="trained on other items"):
        weights_for(TINY, other, tmp_path / "run")
    with pytest.raises(BadInput, match="has form log, not official"):
        weights_for(replace(TINY, form="official"), log, tmp_path / "run")


def test_broken_and_missing_files(log, tmp_path):
    run = tmp_path / "run"
    Run(replace(TINY, epochs=1), log, run, ALONE).train()
    with pytest.raises(BadInput, match=r"there is no model\.safetensors"):
        load_run(tmp_path / "none")
    for name, keep in ((checkpoint.WEIGHTS, 1000), (checkpoint.WEIGHTS, 0), (checkpoint.ITEMS, 10)):
        broken = tmp_path / "broken"
        shutil.rmtree(broken, ignore_errors=True)
        shutil.copytree(run, broken)
        (broken / name).write_bytes((run / name).read_bytes()[:keep])
        with pytest.raises(BadInput, match="is damaged"):
            load_run(broken)


def test_a_folder_that_cannot_be_written_to_is_found_out_before_training(log, tmp_path):
    (tmp_path / "file").write_text("kept")
    run = Run(TINY, log, tmp_path / "file", ALONE)
    run._step = lambda *_: pytest.fail("trained in vain")
    with pytest.raises(BadInput, match="cannot be written"):
        run.train()
    assert (tmp_path / "file").read_text() == "kept"


def test_a_loss_that_is_not_finite(log, tmp_path):
    with pytest.raises(BadInput, match="lower the learning rate"):
        Run(replace(TINY, lr=1e30, clip=0.0), log, tmp_path, ALONE).train()
