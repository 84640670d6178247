"""Any file as a log: an exit code, one line, nothing half written, and the rows that the standard library reads."""

import contextlib
import csv
import importlib
import io
import re
import shutil
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitkern import cli
from vitkern.report import BadInput
from vitkern.strec import checkpoint
from vitkern.strec.log import read_log
from vitkern.strec.rows import COLUMNS

BOUNDED = settings(deadline=None, derandomize=True, database=None)
WHOLE = {".lock", checkpoint.ITEMS, checkpoint.STATE, checkpoint.WEIGHTS, checkpoint.METRICS}

# Mostly what a log holds, and what breaks a reader of tables.
HEADERS = st.sampled_from(
    ["user,item,timestamp", "timestamp,note,item,user", "uid:token,item_id:token,timestamp:float,x",
     'user,"item",TS,"a note, quoted"', "USER,item,time,"]
)  # fmt: skip
ODD_HEADERS = st.sampled_from(["user,item", "User,ITEM,ts,user", "", "user,item,timestamp,item", '"user,item,time'])
TAME = st.sampled_from("aaabc")
ODD = st.text(st.sampled_from('"",\t\n\r aé\u2028\x85;\\'), max_size=4)
NAMES = st.one_of(st.sampled_from(["a", "b", "c", "u1", " a ", "a b"]), ODD)
TIMES = st.one_of(
    st.integers(0, 2**31).map(str),
    st.sampled_from(
        ["1.5", "20240131", "1e3", "2024-01-31", "2024-01-31T10:00:00+01:00", "1_0", "nan", "", "9" * 30, "-1"]
    ),
)


@st.composite
def files(draw):
    """Bytes, and whether nothing is wrong with them: of a third of the tables nothing is, of one third one place."""
    faults = draw(st.sampled_from(["none", "one", "many"]))
    tame = faults != "many"
    header, delimiter = draw(HEADERS if tame else st.one_of(HEADERS, ODD_HEADERS)), draw(st.sampled_from(",,,\t"))
    end, width = draw(st.sampled_from(["\n", "\r\n", "\r"])), len(next(csv.reader([header]), []))
    name, time = (TAME, st.integers(0, 99).map(str)) if tame else (NAMES, TIMES)
    lines = [header.replace(",", delimiter)]
    for _ in range(draw(st.integers(5 if tame else 0, 9))):
        cells = [draw(name), draw(name), draw(time), draw(ODD)]
        if header.startswith("timestamp"):
            cells = [cells[2], cells[3], cells[0], cells[1]]
        cells = cells[: width if tame else draw(st.sampled_from([width, width, width, 2]))]
        text = io.StringIO()
        if tame or draw(st.booleans()):
            csv.writer(text, delimiter=delimiter).writerow(cells)
        else:
            text.write(delimiter.join(cells))
        lines.append(text.getvalue().removesuffix("\r\n"))
    content = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])) + (end.join(lines) + end).encode()
    if faults == "one" or (faults == "many" and draw(st.booleans())):
        cells = [match.end() for match in re.finditer(rb"[,\t]", content)]
        place = draw(st.one_of(st.integers(0, len(content)), st.sampled_from(cells or [0])))
        content = content[:place] + draw(st.sampled_from([b'"', b"\xff", b"\0", b"\n", b"", b',,"'])) + content[place:]
    content = content[: draw(st.integers(0, len(content)))] if not tame and draw(st.booleans()) else content
    return content, faults == "none"


def by_the_library(path: Path):
    """(row, user, item) of every row, where the header has one column of each kind; None where it has not."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        text = file.read()
    delimiter = "\t" if "\t" in re.split("[\r\n]", text, maxsplit=1)[0] else ","
    (_, header), *rows = enumerate(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter), 1)
    *_, last = csv.reader(io.StringIO(f"{text}\nlast", newline=""), delimiter=delimiter)
    assert last == ["last"]  # unless it is in a quote that was opened before
    heads = [cell.strip().split(":")[0].lower() for cell in header]
    places = [[i for i, head in enumerate(heads) if head in names] for names in COLUMNS.values()]
    if [len(found) for found in places] != [1, 1, 1]:
        return None
    return [(number, *(cells[found[0]].strip() for found in places[:2])) for number, cells in rows if cells]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of popularity, which trains at once."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "log.csv").write_text("user,item,timestamp\n" + "".join(f"a,{i},{t}\n" for t, i in enumerate("abcab")))
    assert command("train", folder / "log.csv", "--out", folder / "run", "--model", "popularity")[0] == 0
    return folder / "run"


def command(*arguments):
    """Exit code, stdout, and lines on stderr that are no notes. Any exception fails the test."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = cli.main(["strec", *map(str, arguments)])
    return code, out.getvalue(), [line for line in err.getvalue().splitlines() if not line.startswith("note: ")]


def test_rows_are_those_of_the_standard_library():
    found = Counter()

    @settings(BOUNDED, max_examples=500)
    @given(files(), st.sampled_from(["sort", "strict"]))
    def check(file, order):
        (content, right), path = file, Path(folder) / "log.csv"
        path.write_bytes(content)
        try:
            log = read_log(path, order=order)
        except BadInput as problem:
            found["refused"] += 1
            assert len(str(problem)) < 2000
            assert not right or "earlier than the event before" in str(problem)
            return
        found["read"] += 1
        found["lines"] += any("several lines" in note for note in log.notes)
        users = [log.users[u] for u in log.user_of()]
        items = [log.items[i] for i in log.item]
        assert sorted(zip(log.row.tolist(), users, items, strict=True)) == by_the_library(path)
        assert all(
            (log.time[a:b][1:] >= log.time[a:b][:-1]).all() for a, b in zip(log.starts, log.starts[1:], strict=False)
        )

    with tempfile.TemporaryDirectory() as folder:
        check()
    assert min(found[outcome] for outcome in ("refused", "read", "lines")) > 10, found


def test_a_command_ends_with_a_code_and_one_line(run, monkeypatch):
    monkeypatch.setattr(checkpoint.os, "fsync", lambda _: None)
    modules = {name: importlib.import_module(f"vitkern.commands.{name}") for name in cli.COMMANDS}
    built = cli.parser(modules)  # once: it takes longer than most commands
    monkeypatch.setattr(cli, "parser", lambda modules: built)
    found = Counter()

    @settings(BOUNDED, max_examples=250)
    @given(files(), st.sampled_from(["train", "evaluate", "recommend"]), st.sampled_from(["error", "skip"]))
    def check(file, action, unseen):
        path, new = Path(folder) / "log.csv", Path(folder) / "new"
        path.write_bytes(file[0])
        shutil.rmtree(new, ignore_errors=True)
        options = {
            "train": ("--out", new, "--model", "popularity"),
            "evaluate": ("--run", run, "--unseen", unseen, "--json", new),
            "recommend": ("--run", run, "--unseen", unseen, "--user", "a", "-k", 2),
        }[action]
        code, out, error = command(action, path, *options)
        found[action, code] += 1
        if code:
            assert code == 2 and len(error) == 1 and error[0].startswith("vitkern strec: ") and not out, (code, error)
            assert not new.exists()
        elif action == "train":
            assert {each.name for each in new.iterdir()} == WHOLE and not error
        new.unlink() if new.is_file() else None

    with tempfile.TemporaryDirectory() as folder:
        check()
    assert all(found[action, code] > 5 for action in ("train", "evaluate", "recommend") for code in (0, 2)), found
