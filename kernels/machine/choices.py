"""The functions that choose how a kernel runs, by name, and other answers than theirs.

A choice is a plain function of shape, dtype and architecture: block sizes (those whose names end in ``_config`` give a
`blocks.Config`), tiles, shares of work, whether a kernel takes a problem. Every block size is compiled in the tests.
"""

import functools
from collections.abc import Callable, Mapping
from contextlib import contextmanager

from .switch import Switch

_choices: dict[str, Callable] = {}
_answer = Switch(None)  # in place of every choice


def choice(function: Callable) -> Callable:
    """``function``, registered by its name, which no other choice has."""
    name = function.__name__
    if name in _choices:
        raise ValueError(f"choice: the name is taken: got {name}; expected another. Rename one of the two.")

    @functools.wraps(function)
    def asked(*args, **kwargs):
        if _answer.value is None:
            return function(*args, **kwargs)
        return _answer.value(function, *args, **kwargs)

    _choices[name] = asked
    return asked


def choices() -> dict[str, Callable]:
    """Name -> choice, of the files of kernels/ that are imported."""
    return dict(_choices)


@contextmanager
def answered(answer: Callable):
    """Within the block ``answer(choice, *args, **kwargs)`` answers in place of each choice, whoever asks. ``choice``
    answers as it does without the block.
    """
    before = _answer.value

    def instead(function, *args, **kwargs):
        usual = function if before is None else functools.wraps(function)(functools.partial(before, function))
        return answer(usual, *args, **kwargs)

    with _answer.set(instead):
        yield


def replaced(answers: Mapping[str, Callable]):
    """Within the block ``answers`` answer in place of the choices of their names, whoever asks."""
    return answered(lambda choice, *args, **kwargs: answers.get(choice.__name__, choice)(*args, **kwargs))
