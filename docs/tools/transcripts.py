"""What commands of the pages print: ``python docs/tools/transcripts.py`` records it in ``docs/figures``.

Pages show the records between marks (``tables.py``); ``tests/test_examples.py`` runs the commands and compares. The
detector of the tutorial is named with ``--plugin``, where a reader has installed it: the output is the same.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).parents[1]
EXAMPLES = DOCS / "examples"
FIGURES = DOCS / "figures"
WIDTH = "110"

# Arguments and the folder in which the command is given; returns what it prints.
Command = Callable[[list[str], Path], str]


def transcripts(command: Command, folder: Path) -> dict[str, str]:
    """Give the commands of the pages in ``folder`` and return what they print, by the name of the record."""
    suite = (EXAMPLES / "mistakes.toml").read_text(encoding="utf-8")
    (folder / "my-suite.toml").write_text(suite, encoding="utf-8")
    (folder / "quiet_units.py").write_text(broken(), encoding="utf-8")
    found = {
        "new-detector": command(["new", "detector", "my-detector"], folder),
        "check-detector": command(["check", "my-detector", "--plugin", "my-detector/my_detector.py"], folder),
        "check-broken": command(["check", "quiet-units", "--plugin", "quiet_units.py"], folder),
        "validate": command(["validate", "my-suite.toml"], folder),
    }
    # Of the broken detector what follows the list of rules.
    found["check-broken"] = found["check-broken"].partition("\n\n")[2]
    return {name: _plain(text.replace(f"{folder.resolve()}{os.sep}", "")) for name, text in found.items()}


def _plain(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def broken() -> str:
    """Return the detector of the page with the batch's own mean taken from its score."""
    code, sound = (EXAMPLES / "quiet_units.py").read_text(encoding="utf-8"), "return self._distance(traces)\n"
    if code.count(sound) != 1:
        raise ValueError("score() of the example is not where it was")
    return code.replace(sound, "distances = self._distance(traces)\n        return distances - distances.mean()\n")


def print_of(arguments: list[str], folder: Path) -> str:
    """Return what a command prints, in a process of its own."""
    environment = {**os.environ, "COLUMNS": WIDTH, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "aftershock", *arguments]
    return subprocess.run(  # noqa: S603 (our own command)
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    ).stdout


def write() -> None:
    """Record every transcript."""
    with tempfile.TemporaryDirectory() as folder:
        for name, text in transcripts(print_of, Path(folder)).items():
            (FIGURES / f"{name}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write()
