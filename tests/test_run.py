"""What `make test` runs: every test file in one job, in shares that take about as long, and what it says at the end.
And how `make` says what it installs."""

import json
import sys
from collections import Counter
from pathlib import Path

import pytest
import run
import set_up
import shares

ROOT = Path(__file__).resolve().parent.parent


def test_every_test_file_is_in_one_job():
    jobs = [job for name in ("test", "prove") for job in run.suite(name).values() if not job.again]
    paths = [ROOT / path for job in jobs for path in job.tests]
    files = Counter(file for path in paths for file in (path.rglob("test_*.py") if path.is_dir() else [path]))
    assert files == Counter((ROOT / "tests").rglob("test_*.py"))


def test_shares_take_about_as_long(tmp_path, monkeypatch):
    seconds = {f"tests/test_{i}.py": float(i) for i in range(1, 40)}
    monkeypatch.setattr(shares, "RECORD", tmp_path / "durations.json")
    shares.RECORD.write_text(json.dumps(seconds))
    found = shares.shares([*seconds, "tests/test_new.py"], 3)
    assert sorted(file for share in found for file in share) == sorted([*seconds, "tests/test_new.py"])
    sums = [sum(seconds.get(file, 20.0) for file in share) for share in found]
    assert sums == sorted(sums, reverse=True) and sums[0] - sums[-1] <= 2


def test_each_case_is_in_a_part_now_and_then():
    cases = [f"test[{i}]" for i in range(11)]
    parts = [shares.part(cases, 4, seed) for seed in range(200)]
    assert {len(part) for part in parts} == {2, 3} and set().union(*parts) == set(cases)
    assert shares.part(reversed(cases), 4, 7) == parts[7]
    assert 20 < sum(bool(shares.part(["test"], 4, seed)) for seed in range(200)) < 80


def test_what_a_part_leaves_out_is_proved():
    walked = {
        str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py") if run.WALK in path.read_text()
    }
    whole = [job for job in run.suite("prove").values() if job.again]
    assert walked == {test for job in whole for test in job.tests} and walked
    assert not any("--part" in job.command for job in whole)


def test_what_is_recorded_of_a_file_that_is_gone_is_dropped(tmp_path, monkeypatch):
    (tmp_path / "tests").mkdir()
    for name in ("test_a.py", "test_b.py"):
        (tmp_path / "tests" / name).touch()
    monkeypatch.setattr(shares, "RECORD", tmp_path / "tests" / "durations.json")
    shares.RECORD.write_text(json.dumps({"tests/test_a.py": 9.0, "tests/test_b.py": 5.0, "tests/test_gone.py": 1.0}))
    report = tmp_path / "report.xml"
    report.write_text(
        "<testsuites><testsuite>"
        '<testcase file="tests/test_a.py" name="test_one" time="1.25"/>'
        '<testcase file="tests/test_a.py" name="test_two" time="2.5"/>'
        "</testsuite></testsuites>"
    )
    assert shares.tests_of(report) == [(2.5, "tests/test_a.py", "test_two"), (1.25, "tests/test_a.py", "test_one")]
    shares.record([report, tmp_path / "none.xml"])
    assert json.loads(shares.RECORD.read_text()) == {"tests/test_a.py": 3.8, "tests/test_b.py": 5.0}


@pytest.fixture
def suite(monkeypatch):
    """suite(**codes): the jobs of the suite are these lines of Python, or jobs."""

    def install(**jobs):
        jobs = {
            name: job if isinstance(job, run.Job) else run.Job([sys.executable, "-c", job])
            for name, job in jobs.items()
        }
        monkeypatch.setattr(run, "suite", lambda name: jobs)

    return install


def test_a_job_that_fails_fails_the_run_and_says_how_to_repeat_it(suite, capsys):
    suite(fine="")
    assert run.main([]) == 0
    assert "== everything passed, in " in capsys.readouterr().out
    suite(fine="print('well')", wrong="raise SystemExit('no luck')")
    assert run.main([]) == 1
    shown = capsys.readouterr().out
    assert "== tests in random order: --randomly-seed=" in shown and "== fine: passed" in shown and "well\n" in shown
    assert "== wrong: FAILED" in shown and "no luck\n" in shown and "== FAILED: wrong, in " in shown
    assert "   again: TRITON_INTERPRET=0 python -c 'raise SystemExit(" in shown


def test_temporary_files_of_jobs_are_apart_and_go(suite, capsys):
    suite(**{name: "import os; print('in', os.environ['TMPDIR'], os.environ['TRITON_CACHE_DIR'])" for name in "ab"})
    assert run.main([]) == 0
    folders = [line.split()[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("in ")]
    assert len({folder for pair in folders for folder in pair}) == 4
    assert not any(Path(folder).exists() for pair in folders for folder in pair)


REPORT = """
import pathlib, sys
cases = "".join(f'<testcase classname="tests.test_it" name="test_{name}" time="{time}"/>' for name, time in TIMES)
path = next(word.partition("=")[2] for word in sys.argv if word.startswith("--junitxml="))
pathlib.Path(path).write_text(f"<testsuites><testsuite>{cases}</testsuite></testsuites>")
"""


def test_the_slowest_tests_of_the_longest_job_are_named(suite, capsys):
    reported = REPORT.replace("TIMES", "(('fast', 0.01), ('slow', 0.3))") + "import time; time.sleep(1)"
    suite(short="", tests=run.Job([sys.executable, "-c", reported], ("tests/test_it.py",)))
    assert run.main(["--randomly-seed=7", "-rA"]) == 0
    shown = capsys.readouterr().out
    assert "== tests in random order: --randomly-seed=7\n" in shown and "== the longest: tests, " in shown
    assert shown.index("::test_slow") < shown.index("::test_fast")


LOG = """Collecting torch<2.16,>=2.15 (from vitkern==0.1.0)
  Downloading torch-2.15.0-cp311-none-linux_x86_64.whl (900.1 MB)
"""


def test_setting_up_says_what_pip_is_at(tmp_path):
    assert set_up.doing("", tmp_path) == "making an empty environment"
    assert set_up.doing(LOG.splitlines()[0], tmp_path) == "collecting torch"
    assert set_up.doing(LOG, tmp_path) == "downloading torch (900.1 MB)"
    assert set_up.doing("  Installing build dependencies: started\n", tmp_path) == "installing build dependencies"
    log = LOG + "Installing collected packages: mpmath, typing-extensions, torch, vitkern\n"
    assert set_up.doing(log, tmp_path) == "installing mpmath (0 of 4 done)"
    for name in ("mpmath-1.3.0", "typing_extensions-4.15.0"):
        (tmp_path / f"{name}.dist-info").mkdir()
        (tmp_path / f"{name}.dist-info" / "INSTALLER").touch()
    (tmp_path / "torch-2.15.0.dist-info").mkdir()
    assert set_up.doing(log, tmp_path) == "installing torch (2 of 4 done)"


def test_setting_up_names_its_log_when_it_fails(tmp_path, capsys):
    log, command = tmp_path / "install.log", [sys.executable, "-c", "raise SystemExit('ERROR: no such package')"]
    with pytest.raises(SystemExit, match=f"the installation failed: .* is in {log}"):
        set_up.run(command, log, 0.0, tmp_path)
    assert capsys.readouterr().out == "ERROR: no such package\n" and "no such package" in log.read_text()


def test_setting_up_with_an_old_python_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(set_up, "OLDEST", (99, 0))
    with pytest.raises(SystemExit, match="Python is too old: got 3"):
        set_up.main(tmp_path / "venv")
    assert not (tmp_path / "venv").exists()


def test_what_failed_is_told_again():
    said = "\n".join(["fine", "FAILED  window_attention:7", "  dq is off", "  case: {}", *["more"] * 50])
    assert run.telling(said) == ["FAILED  window_attention:7", "  dq is off", "  case: {}"]
    assert run.telling("one\ntwo") == ["one", "two"] and len(run.telling("line\n" * 99)) == run.TOLD
