"""The same work in several threads at once."""

import threading
from collections.abc import Callable


def run_threads(work: Callable[[int], object], count: int = 8) -> None:
    """``work(number)`` in a thread for each number; what one of them raises is the test's failure."""
    failures = []

    def guarded(number):
        try:
            work(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures[0]
