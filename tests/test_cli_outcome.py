"""How the command line ends: exit codes, one line for whatever goes wrong, and the traceback where it is asked for."""

import argparse
import errno
import importlib
import os
import signal
import subprocess
import sys

import pytest

import benchmarks.command
from benchmarks.__main__ import main as run_benchmarks
from vitkern import cli
from vitkern.commands import again, outcome
from vitkern.dispatch import use_backend
from vitkern.report import LONGEST, BadInput, one_line


def test_what_fails_after_an_interruption_is_interrupted(capsys):
    def run(argv):
        try:
            raise KeyboardInterrupt
        finally:
            raise OSError(errno.EBADF, "Bad file descriptor")

    assert outcome.ended("tool", [], run) == 130
    assert capsys.readouterr().err == "tool: interrupted\n"


def ended(problem, *arguments):
    def run(argv):
        raise problem

    return outcome.ended("tool", list(arguments), run, ("part",))


@pytest.mark.parametrize(
    ("problem", "code", "line"),
    (
        (BadInput("no such thing"), 2, "no such thing"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "run.json"), 2, "run.json: Permission denied"),
        (MemoryError(), 2, "there is not enough memory: MemoryError. Ask for less at once."),
        (RuntimeError("can't allocate memory: 8 TB"), 2, "there is not enough memory: can't allocate memory: 8 TB."),
        (ZeroDivisionError("division by zero"), 1, "something in vitkern is wrong: ZeroDivisionError: division by"),
        (NotImplementedError("sliding_window"), 1, "something in vitkern is wrong: sliding_window. Please report it"),
        (BadInput("a\nb\x1b[31mc\udcff"), 2, "a b\\x1b[31mc\\udcff"),
    ),
)
def test_whatever_goes_wrong_is_one_line(capsys, problem, code, line):
    assert ended(problem, "part", "--option") == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"tool part: {line}") and err.count("\n") == 1


def test_a_line_is_not_endless(capsys):
    ended(BadInput("x" * 10**6))
    assert len(capsys.readouterr().err) < LONGEST + 30


def test_a_kernel_that_was_asked_for_and_cannot_run_is_no_fault_of_ours(capsys):
    with use_backend("triton"):
        assert ended(NotImplementedError("attention: the kernel was asked for")) == 2
    assert capsys.readouterr().err == "tool: attention: the kernel was asked for\n"


@pytest.mark.parametrize("arguments", (("--debug",), ("part", "--debug", "--", "x")))
def test_the_traceback_is_shown_where_it_is_asked_for(capsys, arguments):
    assert ended(BadInput("no"), *arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("Traceback") and err.endswith(": no\n")


@pytest.mark.parametrize(("value", "shown"), (("1", True), ("0", False), ("", False)))
def test_the_environment_asks_for_it_too(monkeypatch, capsys, value, shown):
    monkeypatch.setenv("VITKERN_DEBUG", value)
    ended(BadInput("no"))
    assert ("Traceback" in capsys.readouterr().err) == shown


def test_debug_after_two_dashes_is_an_argument(capsys):
    seen = []
    assert outcome.ended("tool", ["--", "--debug"], lambda argv: seen.extend(argv) or 0) == 0
    assert seen == ["--", "--debug"]


def test_processes_that_are_started_know_of_debug():
    seen = []
    outcome.ended("tool", ["--debug"], lambda argv: seen.append(os.environ.get("VITKERN_DEBUG")) or 0)
    assert seen == ["1"]


@pytest.mark.parametrize("command", ((), ("accelerate",), ("lab", "fuzz"), ("strec", "train")))
def test_help_says_the_exit_codes(run, command):
    code, out, err = run(*command, "--help")
    assert (code, err) == (0, "") and outcome.CODES in out


@pytest.mark.parametrize("command", ((), ("compare",), ("plan",)))
def test_help_of_the_benchmarks_says_the_exit_codes(capsys, command):
    assert run_benchmarks([*command, "--help"]) == 0
    assert outcome.CODES in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    (
        (),
        ("accelerat",),
        ("accelerate", "test_vit", "--seconds", "inf"),
        ("accelerate", "test_vit", "--seconds", "nan"),
        ("accelerate", "test_vit", "--batch", "1_0"),
        ("accelerate", "test_vit", "--batch", "9" * 5000),
        ("strec", "train"),
        ("check", "--dtype", "fp8\n"),
    ),
)
def test_what_cannot_be_parsed_is_one_line(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and err.startswith("vitkern") and err.count("\n") == 1
    assert "--help" in err and len(err) < LONGEST + 30


def commands(parser, words=()):
    """The words of each command, of those that have others too."""
    yield words, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from commands(inner, (*words, name))


MODULES = {name: importlib.import_module(f"vitkern.commands.{name}") for name in cli.COMMANDS}
EVERY = [("vitkern", *words) for words, _ in commands(cli.parser(MODULES))]
EVERY += [("benchmarks", *words) for words in ((), *((name,) for name in benchmarks.command.COMMANDS))]


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_an_unknown_option_is_one_line_that_says_whose_help_has_the_known(capsys, words):
    main = {"vitkern": cli.main, "benchmarks": run_benchmarks}[words[0]]
    assert main([*words[1:], "--no-such-option"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--no-such-option" in line or "arguments are required" in line
    assert line.endswith(f"{' '.join(words)} --help.")


def test_every_command_of_strec_and_of_the_laboratory_is_among_them():
    assert {("vitkern", "strec", "train"), ("vitkern", "lab", "fuzz"), ("vitkern", "info"), ("benchmarks", "tune")} < {
        *EVERY
    }


@pytest.mark.parametrize(
    ("text", "line"),
    (
        ("a\nb", "a b"),
        ("reasons:\n  one\r\n\n  two\n", "reasons: one two"),
        ("no file 'a  b.csv'", "no file 'a  b.csv'"),
        ("a\tb\x1b[31m\udcff", "a\\tb\\x1b[31m\\udcff"),
        ("x" * 2000, f"{'x' * 500} ... {'x' * 500}"),
    ),
)
def test_one_line(text, line):
    assert one_line(text) == line


def started(*command, **environment):
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    arguments = [sys.executable, "-m", *command]
    return subprocess.Popen(arguments, env=os.environ | environment, preexec_fn=_interruptible, **pipes)


def _interruptible():
    """What a shell starts in the background is not, nor is what that starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("unbuffered", ("", "1"))
def test_a_reader_that_has_enough_is_no_error(unbuffered):
    process = started("vitkern", "models", "swin_tiny*", PYTHONUNBUFFERED=unbuffered)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the system has no /dev/full")
@pytest.mark.walk(2)
@pytest.mark.parametrize("unbuffered", ("", "1"))
@pytest.mark.parametrize("arguments", (("models", "swin_tiny*"), ("models", "--help")))
def test_a_full_disk_is_one_line(arguments, unbuffered):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "vitkern", *arguments]
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment)
    assert (done.returncode, done.stderr) == (2, "vitkern models: No space left on device\n")


def test_an_interrupted_command_says_so():
    process = started("vitkern", "check", "--pytorch")
    assert process.stderr.readline().startswith("[1/")
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read().splitlines()
    assert process.wait() == 130
    assert rest[-1] == "vitkern check: interrupted" and not any("Traceback" in line for line in rest)


@pytest.mark.parametrize("command", (("vitkern", "info"), ("benchmarks", "--list")))
def test_a_backend_that_is_none_is_one_line(command):
    process = started(*command, VITKERN_BACKEND="foo")
    out, err = process.communicate()
    assert (process.returncode, out) == (2, "") and err.count("\n") == 1
    assert "VITKERN_BACKEND: backend: unknown name: got 'foo'; expected one of auto" in err


def test_names_that_no_encoding_has_are_printed(capfd, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", "from vitkern.commands.outcome import ended\n"
         "raise SystemExit(ended('tool', [], lambda argv: print('\\udcff \\u2713') or 0))"],
        capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "\\udcff \\u2713\n", "")


@pytest.mark.parametrize(
    ("code", "end"),
    ((0, 0), (1, 1), (130, 130), (-2, 130), (-9, BadInput), (-11, RuntimeError)),
)
def test_the_process_that_goes_on_decides_how_this_one_ends(monkeypatch, code, end):
    class Process:
        def __init__(self, command, env):
            assert command[3:] == ["check", "layernorm"] and env["TRITON_INTERPRET"] == "1"

        def wait(self, timeout=None):
            return code

        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *problem: None  # noqa: E731

    monkeypatch.setattr(again.subprocess, "Popen", Process)
    if isinstance(end, int):
        assert again.again(["check", "layernorm"], interpreted=True) == end
    else:
        with pytest.raises(end):
            again.again(["check", "layernorm"], interpreted=True)


@pytest.mark.parametrize("damage", ("{", "[]", '{"schema": 1}', '{"schema": 1, "passed": true, "seconds": "long"}'))
def test_a_damaged_record_of_the_laboratory_is_one_line(run, monkeypatch, tmp_path, damage):
    monkeypatch.setenv("VITKERN_LAB_RECORDS", str(tmp_path))
    (tmp_path / "edges.json").write_text(damage)
    code, out, err = run("lab")
    assert (code, out) == (2, "") and "edges.json" in err and "Remove it" in err and err.count("\n") == 1
