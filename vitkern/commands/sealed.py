"""Libraries build models without fetching anything, asking anybody, or saying more than what goes wrong."""

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
REACHING = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")
_watch = {"hooked": False, "closed": 0}  # how many blocks are open in which no network is reached


class NoNetwork(OSError):
    """A library wanted to fetch something without having been told to."""


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Within the block there is nobody to answer a question, and no warnings and logs are written."""
    before, sys.stdin = sys.stdin, io.StringIO()
    disabled = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        sys.stdin = before


@contextlib.contextmanager
def offline() -> Iterator[None]:
    """Within the block libraries take what is on this machine, and no connection is made beyond it.

    Raises:
        NoNetwork: where one is tried; libraries may make errors of their own of it.
    """
    if not _watch["hooked"]:  # an audit hook stays for good
        sys.addaudithook(_refuse)
        _watch["hooked"] = True
    before = {name: os.environ.get(name) for name in OFFLINE}
    os.environ.update(dict.fromkeys(OFFLINE, "1"))
    constants = sys.modules.get("huggingface_hub.constants")  # which has read the environment
    known = getattr(constants, "HF_HUB_OFFLINE", None)
    if known is not None:
        constants.HF_HUB_OFFLINE = True
    _watch["closed"] += 1
    try:
        yield
    finally:
        _watch["closed"] -= 1
        if known is not None:
            constants.HF_HUB_OFFLINE = known
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})


def _refuse(event: str, arguments: tuple, watch: dict = _watch) -> None:  # at the very end modules are empty
    if not watch["closed"] or event not in REACHING:
        return
    address = arguments[-1] if event in ("socket.connect", "socket.sendto") else arguments[0]
    if isinstance(address, str | bytes) and event in ("socket.connect", "socket.sendto"):
        return  # a socket of this machine, which is a path
    host = address[0] if isinstance(address, tuple) else address
    raise NoNetwork(f"{host} was to be reached, and nothing is fetched without --pretrained")
