"""What the keeper of a board needs in a repository: a folder of entries, a list, a workflow that checks and builds."""

from __future__ import annotations

from pathlib import Path

from ...harness.core.errors import UsageError
from ...harness.core.files import write_atomic, write_problem
from ...harness.core.formats import package_version

DECIDES_NO_NUMBER = True

ENTRIES, MARKS, WORKFLOW = "entries", "recomputed.json", ".github/workflows/board.yml"

_README = """# {name}

A board of detectors of perturbed inputs, made by Aftershock from the files in `entries/`.

- **Contribute**: run one of the board's suites, then in a checkout of this repository
  `aftershock submit RUN --to entries --by "YOUR NAME"`, and propose the change.
- **Check**: `aftershock verify entries` computes every metric again from the tables beside the entries.
  `aftershock verify ENTRY --rerun --suite SUITE --by "YOUR NAME"` computes an entry again and notes it in
  `recomputed.json`, which only the keeper of the board should change.
- **Lower a number**: send images; whoever has the run checks them with `aftershock challenge`.
- **Build**: `aftershock board entries --out site`.
"""

_WORKFLOW = """# Checks the entries of each proposed change, and publishes the board from the main branch.
name: board

on:
  pull_request:
  push:
    branches: [main]

permissions:
  contents: read

jobs:
  board:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with:
          python-version: "3.12"
      # Torch is not needed to check and build, but Aftershock depends on it: take the build for CPUs.
      - run: pip install torch torchvision --index-url https://download.pytorch.org/whl/cpu
      - run: pip install "aftershock=={version}"
      # Nothing that an entry names is imported, downloaded or opened.
      - run: aftershock verify entries
      - run: aftershock board entries --out site
      - uses: actions/upload-pages-artifact@v3
        if: github.ref == 'refs/heads/main'
        with:
          path: site

  publish:
    if: github.ref == 'refs/heads/main'
    needs: board
    runs-on: ubuntu-latest
    permissions:
      pages: write
      id-token: write
    environment:
      name: github-pages
    steps:
      - uses: actions/deploy-pages@v4
"""


def write_keeping(folder: Path, name: str) -> list[Path]:
    """Write a folder for entries, an empty list of marks, a README and a workflow; return the files.

    Raises:
        UsageError: if one of them is there already, or cannot be written.
    """
    made = {
        f"{ENTRIES}/.gitkeep": "",
        MARKS: "{}\n",
        "README.md": _README.format(name=name),
        WORKFLOW: _WORKFLOW.format(version=package_version()),
    }
    there = [folder / path for path in made if (folder / path).exists()]
    if there:
        raise UsageError(f"{there[0]} is there already: name an empty folder.")
    for path, text in made.items():
        file = folder / path
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, text.encode())
        except OSError as error:
            raise write_problem(file, error, "choose another folder") from error
    return [folder / path for path in made]
