"""Measure the figures that pages quote from runs: ``python docs/tools/figures.py [RUN]``.

The command runs the suite ``quick`` and the two runs of the page ``own-detector.md`` in a temporary folder, without a
cache, keeps what the pages quote in ``docs/figures``, and writes every page anew (``tables.py``). Nothing else is to be
done after a change of a suite, of the protocol or of the weights; what commands print is recorded, too
(``transcripts.py``). It takes two minutes. RUN, a run directory of
``quick``, takes the place of the first run.

- ``quick-…``: the rows of one model: its leaderboard, the attack on each detector, and a guard. The weights are fixed,
  so ``tests/harness/test_figures.py`` compares some of them with a run of its own.
- ``my-suite-…`` and ``notebook-…``: leaderboards of models that are trained on the spot; other machines give other
  figures.
"""

from __future__ import annotations

import ast
import csv
import json
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aftershock
import torch
from aftershock import Guard
from aftershock.harness.cli.scaffold import new_package
from aftershock.harness.run.guard import export_guard
from sklearn.datasets import load_digits

MODEL = "cnn"
GUARDED = "mahalanobis"
DOCS = Path(__file__).parents[1]
FIGURES = DOCS / "figures"

Rows = list[dict[str, str]]


def leaderboard(run: Path) -> Rows:
    """Return the leaderboard of the model, without digests: they change with every version."""
    return [{k: v for k, v in row.items() if not k.endswith("_digest")} for row in _rows(run, "leaderboard")]


def attacks(run: Path) -> Rows:
    """Return what the adaptive attack on each detector achieved against that detector."""
    kept = ("perturbation", "eps", "n", "parts", "detector")
    return [
        {k: v for k, v in row.items() if k in kept or "success" in k}
        for row in _rows(run, "attacks")
        if row["kind"] == "adaptive" and row["against"] == row["detector"]
    ]


def guard(run: Path) -> dict[str, Any]:
    """Return size, thresholds and scores of a guard: of eight digits and of their negatives."""
    with tempfile.TemporaryDirectory() as folder:
        path = export_guard(run, GUARDED, Path(folder) / "guard.safetensors", MODEL)
        model = aftershock.load_model(run, MODEL)
        made = Guard.load(path, model)
        images = torch.tensor(load_digits().images[-8:], dtype=torch.float32)[:, None] / 16
        return {
            "bytes": path.stat().st_size,
            "threshold": made.threshold,
            "threshold_at_fpr_10": Guard.load(path, model, fpr=0.1).threshold,
            "scores": made(images).score.tolist(),
            "scores_of_negatives": made(1 - images).score.tolist(),
        }


def _rows(run: Path, table: str) -> Rows:
    with (run / "tables" / f"{table}.csv").open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.DictReader(stream) if row["model"] == MODEL]


def _write(name: str, rows: Sequence[Mapping[str, str]]) -> None:
    FIGURES.mkdir(exist_ok=True)
    with (FIGURES / f"{name}.csv").open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _run(suite: Any, folder: Path, plugins: Sequence[Path] = ()) -> Path:
    found = aftershock.run(suite, out=folder / "run", device="cpu", plugins=plugins, cache=folder / "cache")
    if found.failed:
        raise SystemExit(f"The record stays as it was: {found.failed}")
    return found.folder


def record_quick(run: Path) -> None:
    """Write the record of a run of ``quick``."""
    _write("quick-leaderboard", leaderboard(run))
    _write("quick-attacks", attacks(run))
    rounded = {k: [round(s, 4) for s in v] if isinstance(v, list) else round(v, 4) for k, v in guard(run).items()}
    (FIGURES / "quick-guard.json").write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")


def record_tutorial(folder: Path) -> None:
    """Run the suite and the notebook of the tutorial, with its detectors, and write their leaderboards."""
    page = (DOCS / "own-detector.md").read_text(encoding="utf-8")
    (suite,) = (block for block in _blocks(page, "toml") if "[data]" in block)
    notebook = (DOCS / "examples" / "notebook.py").read_text(encoding="utf-8")
    for name in ("my-suite", "notebook"):
        (folder / name).mkdir()
    (folder / "my-suite.toml").write_text(suite, encoding="utf-8")
    mine = new_package("detector", "my-detector", folder / "my-detector")[0] / "my_detector.py"
    quiet = DOCS / "examples" / "quiet_units.py"
    (call,) = (
        n for n in ast.walk(ast.parse(notebook)) if isinstance(n, ast.Call) and ast.unparse(n.func) == "aftershock.run"
    )
    _write("my-suite-leaderboard", leaderboard(_run(folder / "my-suite.toml", folder / "my-suite", [mine])))
    _write("notebook-leaderboard", leaderboard(_run(ast.literal_eval(call.args[0]), folder / "notebook", [quiet])))


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def main(arguments: Sequence[str]) -> None:
    """Run what is not given, record it and write the pages anew."""
    import tables
    import transcripts

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "quick").mkdir()
        record_quick(Path(arguments[0]) if arguments else _run("quick", folder / "quick"))
        # Before the tutorial, whose detector has the name that a transcript gives its own.
        transcripts.write()
        record_tutorial(folder)
    tables.main()


if __name__ == "__main__":
    main(sys.argv[1:])
