"""Logs that look right and are not: rows that would vanish, columns that could be two, numbers that mean dates."""

import pytest

from vitkern.report import BadInput
from vitkern.strec.log import read_log
from vitkern.strec.times import parse_time


def written(tmp_path, text):
    path = tmp_path / "log.csv"
    path.write_text(text, newline="")
    return path


def refused(tmp_path, text, **options):
    with pytest.raises(BadInput) as problem:
        read_log(written(tmp_path, text), **options)
    assert "\n" not in str(problem.value)
    return str(problem.value)


HEADER = "user,item,timestamp,title\n"


def test_an_open_quote_does_not_swallow_the_rows_after_it(tmp_path):
    text = HEADER + 'u,a,1,x\nu,b,2,"x\nu,c,3,x\nv,d,4,x\n'
    assert "row 3: a quote is opened and never closed. Close it" in refused(tmp_path, text)
    assert "row 1: a quote is opened" in refused(tmp_path, 'user,item,timestamp,"title\nu,a,1,x\n')
    loose = read_log(written(tmp_path, HEADER + 'u,a,1,x\nu,b,2,"x"y\nend,end,3,"end"'))  # as the library reads it
    assert loose.row.tolist() == [2, 3, 4] and not loose.notes[1:]
    assert "row 2: it is no row of a table: field larger" in refused(tmp_path, HEADER + f"u,a,1,{'x' * 200_000}\n")


def test_rows_of_several_lines_are_noted(tmp_path):
    log = read_log(written(tmp_path, HEADER + 'u,a,1,"x\ny\nz"\nu,b,2,"say ""x"""\nu,c,3,5" disk\nu,d,4,"x\n"\n'))
    assert [log.items[i] for i in log.item] == ["a", "b", "c", "d"] and log.row.tolist() == [2, 3, 4, 5]
    assert "2 rows have line ends in quotes and go over several lines: rows 2, 5" in log.notes
    plain = read_log(written(tmp_path, '"user\nof the shop",user,item,timestamp\nx,u,a,1\nx,u,b,2\n'))
    assert plain.row.tolist() == [2, 3] and not plain.notes


@pytest.mark.parametrize(
    ("header", "columns", "message"),
    [
        ("user,item,timestamp,item", {}, "row 1: 2 columns may be the item: got item, item. Name one (--item-column)."),
        ("user,user_id,item,timestamp", {}, "2 columns may be the user: got user, user_id. Name one (--user-column)."),
        ("user,item,timestamp,date", {}, "2 columns may be the timestamp: got timestamp, date."),
        ("user,item,TIME,time", {}, "2 columns may be the timestamp: got TIME, time."),
        ("item_id:token,item_id:float,user,time", {}, "2 columns may be the item: got item_id:token, item_id:float."),
        ("user,x,timestamp,x", {"item": "x"}, "2 columns may be the item: got x, x. Rename one."),
        ("user,item,timestamp,x", {"item": "user"}, "row 1: 'user' cannot be both user and item."),
        ("user,item,timestamp,x", {"item": "x", "timestamp": "x"}, "row 1: 'x' cannot be both item and timestamp."),
        ("user,item,timestamp,x", {"item": ""}, "no item column"),
        ("user,item,timestamp,x", {"itme": "x"}, "unknown columns itme; expected user, item, timestamp."),
        ("user,thing,timestamp," + ",".join(["y" * 99] * 99), {}, "and 82 more; expected item or"),
        ('user,"a\nb",timestamp,x', {}, r"got user, 'a\nb', timestamp, x; expected"),
    ],
)
def test_a_column_is_one(tmp_path, header, columns, message):
    assert message in refused(tmp_path, f"{header}\nu,a,1,2\nu,b,2,3\n", columns=columns)


@pytest.mark.parametrize(
    ("header", "columns"),
    [
        ("user,User,item,timestamp", {"user": "User"}),
        ("user_id:float,user_id:token,item,timestamp", {"user": "user_id:token"}),
        ("UserId,who,item,timestamp", {"user": "who"}),
        ("x,WHO,item,timestamp", {"user": "who"}),
        ("note,user,item,timestamp,note", {}),
    ],
)
def test_a_column_can_be_named(tmp_path, header, columns):
    log = read_log(written(tmp_path, f"{header}\nx,u,a,1{',y' * (header.count(',') - 3)}\n"), columns=columns)
    assert log.users == ["u"] and log.items == ["", "a"]


def test_options_are_known_ones(tmp_path):
    assert "unknown order 'sorted'; expected sort or strict." in refused(tmp_path, HEADER, order="sorted")
    assert "unknown unseen 'ignore'; expected error or skip." in refused(tmp_path, HEADER, unseen="ignore")


@pytest.mark.parametrize(
    "text",
    ["1_0", "1_0.5", "1e1_0", "\u0661\u0662", "\uff11\uff12", "0x10", "1,5", "1 2", "--1", "infinity", "1e999", "."],
)
def test_numbers_are_digits(text):
    assert parse_time(text) is None


@pytest.mark.parametrize(
    ("text", "value"), [("+5", 5), ("007", 7), ("1.", 1), (".5", 0.5), ("-2.5e1", -25), ("9" * 5000, None), ("-0.0", 0)]
)
def test_numbers_in_every_notation(text, value):
    assert parse_time(text) == value


@pytest.mark.parametrize(
    ("times", "message"),
    [
        (("20240131", "20240201", "0"), None),
        (("20240131", "20240201"), "such as 20240131 look like dates (YYYYMMDD)"),
        (("20240131.0", "20240201"), "write them as 2024-01-31 or as seconds since 1970"),
        (("202401312359", "202402010000"), "look like dates (YYYYMMDDHHMM)"),
        (("20240131235959", "20240201000000"), "look like dates (YYYYMMDDHHMMSS)"),
        (("1706659200000", "1706659200001"), "such as 1706659200000 look like milliseconds or less"),
        (("1706659200", "1706659201"), None),
        (("20241331", "20240100"), None),
        (("20247", "-20240131"), None),
        (("2024-01-31", "2024-02-01"), None),
    ],
)
def test_units_that_are_not_seconds_are_noted(tmp_path, times, message):
    rows = "".join(f"u,i{place},{time},x\n" for place, time in enumerate(times))
    found = [note for note in read_log(written(tmp_path, HEADER + rows)).notes if "are read as seconds" in note]
    assert [message in note for note in found] == ([True] if message else [])


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "/".join(["x" * 200] * 30), "."])
def test_names_that_cannot_be_files(tmp_path, name):
    with pytest.raises(BadInput, match="the log cannot be read"):
        read_log(tmp_path / name)


def test_a_file_without_a_line(tmp_path):
    assert "row 1 is no header: got a line of more than 1,048,576 char" in refused(tmp_path, "\0" * (1 << 21))
