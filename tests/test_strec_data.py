"""Logs, splits, metrics and losses of the recommender."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from vitkern.report import BadInput
from vitkern.strec.data import Samples, newest, split
from vitkern.strec.log import read_log
from vitkern.strec.losses import bce, bpr, full_softmax, sampled_softmax
from vitkern.strec.metrics import Ranking
from vitkern.strec.times import parse_time


def written(tmp_path, text, name="log.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def rows_of(log, user):
    u = log.users.index(user)
    events = slice(log.starts[u], log.starts[u + 1])
    return [log.items[i] for i in log.item[events]], log.time[events].tolist(), log.row[events].tolist()


def test_csv(tmp_path):
    log = read_log(written(tmp_path, "item,user,rating,timestamp\na,x,5,30\nb,y,1,5\nc,x,2,10\nd,y,3,9\n"))
    assert log.items[0] == "" and len(log) == 4
    assert rows_of(log, "x") == (["c", "a"], [10, 30], [4, 2])
    assert rows_of(log, "y") == (["b", "d"], [5, 9], [3, 5])
    assert log.time.dtype == np.int64 and any("row 4" in note for note in log.notes)


def test_recbole_header_and_tabs(tmp_path):
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t7\t3\t881250949\n1\t8\t3\t881250950\n"
    log = read_log(written(tmp_path, text, "small.inter"))
    assert rows_of(log, "1") == (["7", "8"], [881250949, 881250950], [2, 3]) and log.time.dtype == np.int64


def test_own_column_names_quotes_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "log.csv"
    path.write_bytes('\ufeffwho,"what",when\nu,"a,b",1\nu,c,2\n'.encode())
    log = read_log(path, columns=dict(user="who", item="what", timestamp="when"))
    assert rows_of(log, "u")[0] == ["a,b", "c"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12", 12), ("1e3", 1000), ("12.5", 12.5), ("-3", -3), ("", None), ("soon", None), ("nan", None), ("inf", None),
        ("1970-01-01T00:01:00", 60), ("1970-01-01 01:01:00+01:00", 60), ("1970-01-01T00:01:00Z", 60), ("9" * 17, None),
    ],
)  # fmt: skip
def test_timestamps(text, value):
    assert parse_time(text) == value


def test_ties_keep_the_order_of_the_file(tmp_path):
    log = read_log(written(tmp_path, "user,item,timestamp\nu,a,5\nu,b,5\nu,c,1\nu,d,5\n"))
    assert rows_of(log, "u")[0] == ["c", "a", "b", "d"] and any("2 events have the time" in n for n in log.notes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("user,item,timestamp\n", "no events"),
        ("user,thing,timestamp\nu,a,1\n", "row 1: no item column: got user, thing, timestamp"),
        ("user,item\nu,a\n", "row 1: no timestamp column"),
        ("user,item,timestamp\nu,a,1\nu,b,soon\nu,c,nan\n", "rows 3, 4: a timestamp that cannot be read: 'soon'"),
        ("user,item,timestamp\nu,a,1\n,b,2\n", "row 3: an empty user or item"),
        (
            "user,item,timestamp\nu,a,x\n,b,2\nu,c,y\n",
            "rows 2, 4: a timestamp that cannot be read: 'x'; row 3: an empty",
        ),
        ("user,item,timestamp\nu,a,1\nu,b\n", "row 3: another number of fields than the header: '2 for 3'"),
    ],
)
def test_bad_logs_name_their_rows(tmp_path, text, message):
    with pytest.raises(BadInput) as problem:
        read_log(written(tmp_path, text))
    assert message in str(problem.value) and "\n" not in str(problem.value)


def test_many_bad_rows_are_counted(tmp_path):
    text = "user,item,timestamp\n" + "u,a,x\n" * 9
    with pytest.raises(BadInput, match="rows 2, 3, 4, 5, 6 and 4 more"):
        read_log(written(tmp_path, text))


def test_order_can_be_demanded(tmp_path):
    path = written(tmp_path, "user,item,timestamp\nu,a,5\nv,a,1\nu,b,4\nv,b,2\n")
    with pytest.raises(BadInput, match="row 4: earlier than the event before of the same user"):
        read_log(path, order="strict")


def test_unreadable_files(tmp_path):
    with pytest.raises(BadInput, match="cannot be read"):
        read_log(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"user,item,timestamp\n\xff\xfe,1,2\n")
    with pytest.raises(BadInput, match="UTF-8"):
        read_log(tmp_path / "b.csv")


def test_items_that_the_model_does_not_know(tmp_path):
    path = written(tmp_path, "user,item,timestamp\nu,a,1\nu,new,2\nu,b,3\n")
    with pytest.raises(BadInput, match=r"row 3: an item that the model does not know: 'new'"):
        read_log(path, items=["", "a", "b"])
    log = read_log(path, items=["", "b", "a"], unseen="skip")
    assert log.item.tolist() == [2, 1] and any("skipped 1 events" in note and "row 3" in note for note in log.notes)


def test_users_with_one_event_are_named(tmp_path):
    log = read_log(written(tmp_path, "user,item,timestamp\nu,a,1\nv,a,1\nv,b,2\nv,c,3\n"))
    assert any("1 users have one event" in note and "row 2" in note for note in log.notes)


def log_of(tmp_path, counts):
    lines = [f"u{u},i{u}_{e},{e * 10}" for u, count in enumerate(counts) for e in range(count)]
    return read_log(written(tmp_path, "user,item,timestamp\n" + "\n".join(lines) + "\n"))


def test_leave_last_out(tmp_path):
    log = log_of(tmp_path, [1, 2, 3, 6])
    parts = split(log)
    assert {name: [log.items[log.item[e]] for e in events] for name, events in parts.items()} == {
        "train": ["i1_1", "i3_1", "i3_2", "i3_3"], "valid": ["i2_1", "i3_4"], "test": ["i2_2", "i3_5"],
    }  # fmt: skip


def test_ratio_split_is_ordered_in_time(tmp_path):
    log = log_of(tmp_path, [11, 21, 2])
    parts = split(log, "ratio", (0.6, 0.2, 0.2))
    assert [len(parts[name]) for name in ("train", "valid", "test")] == [6 + 12 + 1, 2 + 4, 2 + 4]
    for user in range(3):
        events = slice(log.starts[user], log.starts[user + 1])
        times = [log.time[e[(e >= events.start) & (e < events.stop)]] for e in parts.values()]
        times = [t for t in times if len(t)]
        assert all(a.max() < b.min() for a, b in itertools.pairwise(times))


def test_users_of_one_event_cannot_be_split(tmp_path):
    log = read_log(written(tmp_path, "user,item,timestamp\nu,a,1\nv,b,2\n"))
    for how in ("leave-last-out", "ratio"):
        with pytest.raises(BadInput, match=r"every user has one event \(rows 2, 3\)"):
            split(log, how)


def test_splits_that_cannot_be(tmp_path):
    log = log_of(tmp_path, [2, 2])
    for arguments, message in (
        (("leave-last-out",), "no event to valid"),
        (("ratio", (0.8, 0.1, 0.2)), "sum 1"),
        (("other",), "unknown split"),
    ):
        with pytest.raises(BadInput, match=message):
            split(log, *arguments)


def test_samples_are_right_aligned_histories(tmp_path):
    log = log_of(tmp_path, [3, 6])
    samples = Samples(log, np.array([1, 8]), 4)
    batch = samples.batch(torch.tensor([0, 1]))
    names = [[log.items[i] for i in row] for row in batch.seq]
    assert names == [["", "", "", "i0_0"], ["i1_1", "i1_2", "i1_3", "i1_4"]]
    assert batch.timestamps.tolist() == [[0, 0, 0, 0], [10, 20, 30, 40]]
    assert [log.items[i] for i in batch.target] == ["i0_1", "i1_5"]
    assert samples.batch(torch.tensor([0])).seq.shape == (1, 1)
    seq, times = newest(log, 1, 4)
    assert [log.items[i] for i in seq[0]] == ["i1_2", "i1_3", "i1_4", "i1_5"] and times[0].tolist() == [20, 30, 40, 50]


def by_hand(scores, target, excluded, k):
    """Mean over every order of equal scores of the metrics of one ranking."""
    items = [i for i in range(1, len(scores)) if i == target or i not in excluded]
    ties = [i for i in items if scores[i] == scores[target] and i != target]
    above = sum(scores[i] > scores[target] for i in items)
    values = []
    for place in range(len(ties) + 1):
        rank = above + place + 1
        values.append([rank <= k, (rank <= k) / math.log2(1 + rank), (rank <= k) / rank])
    return np.mean(values, axis=0)


@pytest.mark.parametrize("exclude", [False, True])
def test_metrics_against_brute_force(exclude):
    generator = np.random.default_rng(0)
    scores = torch.from_numpy(generator.integers(0, 6, (200, 30)).astype(np.float32))
    target = torch.from_numpy(generator.integers(1, 30, 200))
    seen = torch.from_numpy(generator.integers(0, 30, (200, 7)))
    ranking = Ranking(10)
    for part in (slice(0, 50), slice(50, 200)):
        ranking.add(scores[part], target[part], seen[part] if exclude else None)
    expected = np.mean(
        [by_hand(s.tolist(), int(t), set(e.tolist()) if exclude else set(), 10)
         for s, t, e in zip(scores, target, seen, strict=True)], axis=0
    )  # fmt: skip
    found = ranking.result()
    assert found["count"] == 200
    assert [found["hit@10"], found["ndcg@10"], found["mrr@10"]] == pytest.approx(expected.tolist(), rel=1e-12)


def test_equal_scores_are_worth_chance():
    ranking = Ranking(10)
    ranking.add(torch.zeros(3, 101), torch.tensor([1, 50, 100]))
    assert ranking.result()["hit@10"] == pytest.approx(0.1)


def test_scores_that_are_not_finite():
    with pytest.raises(BadInput, match="not finite"):
        Ranking().add(torch.tensor([[0.0, math.nan]]), torch.tensor([1]))


def test_losses_against_their_formulas():
    state, table = torch.randn(6, 5).double(), torch.randn(9, 5).double()
    target = torch.tensor([1, 2, 3, 4, 5, 8])
    logits = state @ table.T
    torch.testing.assert_close(full_softmax(state, table, target), F.cross_entropy(logits, target))
    # Every other item once: the sampled softmax is the full one over the items 1 ...
    others = torch.tensor([[i for i in range(1, 9) if i != t] for t in target.tolist()])
    torch.testing.assert_close(
        sampled_softmax(state, table, target, others), F.cross_entropy(logits[:, 1:], target - 1)
    )
    few = torch.tensor([6, 7])  # two stand for the seven others of each target
    weight = torch.tensor([7 / 2]).double().log()
    expected = torch.logsumexp(torch.cat([logits[:5, few] + weight, own := logits[range(5), target[:5], None]], 1), 1)
    torch.testing.assert_close(sampled_softmax(state[:5], table, target[:5], few), (expected - own[:, 0]).mean())
    shared = torch.tensor([1, 3, 7])
    pairs = [(b, n) for b in range(6) for n in shared.tolist() if n != target[b]]
    expected = -sum(F.logsigmoid(logits[b, target[b]] - logits[b, n]) for b, n in pairs) / len(pairs)
    torch.testing.assert_close(bpr(state, table, target, shared), expected)
    expected = -sum(
        F.logsigmoid(logits[b, target[b]])
        + torch.stack([F.logsigmoid(-logits[b, n]) for n in shared.tolist() if n != target[b]]).mean()
        for b in range(6)
    )
    torch.testing.assert_close(bce(state, table, target, shared), expected / 6)
