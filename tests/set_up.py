"""Makes a virtual environment with the package and its extra ``test``, and says every few seconds how far it is.

    python tests/set_up.py FOLDER

What pip says is in FOLDER/install.log.
"""

import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIP = ["-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
EVERY = 10.0  # seconds from one line to the next
OLDEST = (3, 10)


def doing(log: str, site: Path) -> str:
    """What pip is at, from what it said last and from what lies in ``site``."""
    found = re.findall(r"^ *(Collecting|Downloading|Building|Installing) (.*)", log, re.MULTILINE)
    if not found:
        return "making an empty environment"
    verb, what = found[-1]
    if what.startswith("collected packages: "):
        names = what.removeprefix("collected packages: ").split(", ")
        there = {normal(path.parent.name.split("-")[0]) for path in site.glob("*.dist-info/INSTALLER")}  # written last
        coming = [name for name in names if normal(name) not in there]
        return f"installing {coming[0] if coming else names[-1]} ({len(names) - len(coming)} of {len(names)} done)"
    if verb == "Collecting":
        return f"collecting {re.split('[<>=!~; ]', what)[0]}"
    return f"{verb.lower()} {re.sub('-[^- ]*-[^- ]*-[^ ]*[.]whl', '', what.split(':')[0])}"


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def run(command, log: Path, since: float, site: Path) -> None:
    """``command``, with all that it says in ``log``.

    Raises:
        SystemExit: it failed.
    """
    with log.open("a") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        spoke = time.monotonic()
        while process.poll() is None:
            time.sleep(0.1)
            if time.monotonic() - spoke > EVERY:
                spoke = time.monotonic()
                print(f"   {spoke - since:.0f} s: {doing(log.read_text(), site)}", flush=True)
    if process.returncode:
        lines = log.read_text().splitlines()
        print("\n".join([line for line in lines if line.lower().startswith("error")][-5:] or lines[-5:]))
        sys.exit(f"== the installation failed: {' '.join(map(str, command))}; all that was said is in {log}")


def main(folder: Path) -> None:
    if sys.version_info < OLDEST:
        old, new = (".".join(map(str, version[:2])) for version in (sys.version_info, OLDEST))
        sys.exit(f"== Python is too old: got {old}; expected {new} or newer. Name one: make PYTHON=python3.12")
    since = time.monotonic()
    folder.mkdir(exist_ok=True)
    log = folder / "install.log"
    log.write_text("")
    print(f"== making {folder}: torch, triton, and the libraries that the tests compare with", end=" ")
    print(f"(several GB the first time; {log} has the details)", flush=True)
    python = folder / "bin" / "python"
    site = folder / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"
    for command in (
        [sys.executable, "-m", "venv", folder],
        [python, *PIP, "--upgrade", "pip", "setuptools", "wheel"],
        [python, *PIP, "--editable", ".[test]"],
    ):
        run(command, log, since, site)
    print(f"== {folder} is ready after {time.monotonic() - since:.0f} s", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
