"""How a command ends: an exit code, and where something is wrong one line on stderr in place of a traceback."""

import argparse
import contextlib
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence

from vitkern.report import BadInput, is_shortage, one_line

GOOD, BAD, REFUSED, INTERRUPTED = 0, 1, 2, 130
CODES = """\
exit codes:
  0    done, and every verdict is good
  1    a verdict is bad, or something in vitkern itself is wrong
  2    what was asked for cannot be done: arguments, files, memory, output that nobody takes
  130  interrupted

--debug anywhere, or VITKERN_DEBUG=1, shows the traceback as well."""
DEBUG = "VITKERN_DEBUG"


class Parser(argparse.ArgumentParser):
    """Says in one line what it cannot parse, and in its help how commands end."""

    def __init__(self, **options):
        super().__init__(epilog=CODES, formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def print_help(self, file=None) -> None:
        print(self.format_help(), end="", file=file)  # argparse passes over what cannot be written

    def parse_known_args(self, args=None, namespace=None):
        """argparse lets the outermost parser say what none knows, and that one's help does not have the command's."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return found, unknown

    def error(self, message: str):
        raise BadInput(f"{message}. See {self.prog} --help.")


def ended(name: str, argv: Sequence[str] | None, run: Callable[[list[str]], int], commands: Sequence[str] = ()) -> int:
    """The exit code of ``run(arguments)``, whatever comes of it; ``name``, and which of ``commands`` it is, begin the
    line of an error.

    ``run`` imports what it needs itself: importing can be interrupted, and refuses a ``VITKERN_BACKEND`` that is none.
    """
    arguments, debug = _debugging(list(sys.argv[1:] if argv is None else argv))
    command = next((word for word in arguments if not word.startswith("-")), "")
    with _environment(DEBUG, "1" if debug else None), _escaping():
        try:
            code = _completed(run, arguments)
            if sys.stdout is not None:
                sys.stdout.flush()  # or what does not fit the disk is found out when nobody can say so any more
            return code
        except (Exception, KeyboardInterrupt) as problem:
            code, text = _judged(problem)
            with contextlib.suppress(OSError, ValueError):
                if debug:
                    traceback.print_exception(problem)
                if text:
                    words = (name, command) if command in commands else (name,)
                    print(f"{' '.join(words)}: {one_line(text)}", file=sys.stderr, flush=True)
            _drop_output()
            return code


@contextlib.contextmanager
def imported() -> Iterator[None]:
    """Around imports of vitkern, one of which reads ``VITKERN_BACKEND``.

    Raises:
        BadInput: it is no backend.
    """
    try:
        yield
    except ValueError as error:
        if "VITKERN_BACKEND" not in os.environ:
            raise
        raise BadInput(f"VITKERN_BACKEND: {error}") from None


def debugging() -> bool:
    """Whether tracebacks are to be shown."""
    return os.environ.get(DEBUG, "").lower() not in ("", "0", "false", "no", "off")


def refused(name: str, asked: Callable[[], object], problem: str):
    """``asked()``; what it raises, be it what it may, is the fault of what the user gave.

    Raises:
        BadInput: ``problem`` and the error; shortage of memory and refused input pass as they are.
    """
    try:
        return asked()
    except BadInput:
        raise
    except Exception as error:
        if is_shortage(error):
            raise
        raise BadInput(f"{name} {problem}: {described(error)}") from error


def described(error: BaseException) -> str:
    """The kind of an error, where its text alone would say little, and the first line of the text."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = (
        ": ".join([lines[0].rstrip(":"), lines[1]]) if len(lines) > 1 and lines[0].endswith(":") else "".join(lines[:1])
    )
    plain = isinstance(error, OSError | RuntimeError | ValueError) and text
    return text[:300] if plain else f"{type(error).__name__}{': ' * bool(text)}{text[:300]}"


def _completed(run: Callable[[list[str]], int], arguments: list[str]) -> int:
    try:
        return run(arguments)
    except SystemExit as stop:  # of --help
        return GOOD if stop.code is None else stop.code if isinstance(stop.code, int) else BAD


def _judged(problem: BaseException) -> tuple[int, str]:
    """The exit code, and what to say."""
    if _is_interruption(problem):
        return INTERRUPTED, "interrupted"
    if isinstance(problem, BadInput):
        return REFUSED, str(problem)
    if isinstance(problem, BrokenPipeError):
        return REFUSED, ""  # of whoever reads the output, as `head` does, which has what it wanted
    if is_shortage(problem):
        return REFUSED, f"there is not enough memory: {described(problem)}. Ask for less at once."
    if isinstance(problem, OSError):
        return REFUSED, ": ".join(str(part) for part in (problem.filename, problem.strerror or problem) if part)
    if isinstance(problem, NotImplementedError) and _is_forced():
        return REFUSED, str(problem)
    text = f"something in vitkern is wrong: {described(problem)}. Please report it, with what --debug shows."
    return BAD, text


def _is_interruption(problem: BaseException | None) -> bool:
    """Whether it is one, or went wrong where things were put away after one."""
    while problem is not None and not isinstance(problem, KeyboardInterrupt):
        problem = problem.__context__
    return problem is not None


def _is_forced() -> bool:
    from vitkern import dispatch

    return dispatch.is_forced()


def _debugging(arguments: list[str]) -> tuple[list[str], bool]:
    """The arguments without --debug, and whether it was there."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    kept = [argument for argument in arguments[:end] if argument != "--debug"]
    return kept + arguments[end:], len(kept) < end or debugging()


@contextlib.contextmanager
def _environment(name: str, value: str | None) -> Iterator[None]:
    """Within the block, and in the processes that it starts, a variable has another value; None leaves it."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        if value is not None:
            os.environ.pop(name)
            os.environ.update({} if before is None else {name: before})


@contextlib.contextmanager
def _escaping() -> Iterator[None]:
    """Within the block what the output's encoding lacks, as a file's name may, is printed escaped."""
    stream = sys.stdout
    before = getattr(stream, "errors", None)
    if before == "strict" and hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        if before == "strict" and hasattr(stream, "reconfigure"):
            with contextlib.suppress(OSError, ValueError):  # it flushes
                stream.reconfigure(errors=before)


def _drop_output() -> None:
    """Where output cannot be written, Python would try again at its end, and complain."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
