"""Pictures of a run for its report: the first images of each perturbation, and the worst cases of each detector.

``gallery/index.json`` says what is in ``gallery/0001.png`` and so on: a row for each image, its panels side by side, a
pixel of the image a pixel of the file.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...reports.answers.names import seed_of
from ...reports.answers.pictures import magnification, pixels
from ...reports.answers.selection import FLAGGED, Selection
from ...reports.read.frames import RunTables
from ...reports.read.gallery import FOLDER, FORMAT, INDEX, PANELS, SHOWN, WORST
from ..core.errors import UsageError
from ..core.files import is_regular, write_atomic
from ..evaluation.alarms import within_reach
from .images import ImageReader, PerturbedImages

if TYPE_CHECKING:
    import pandas

# Longer sides are drawn by every second, third, ... pixel.
_SIDE = 128
# All pictures of a run together, in bytes, and how many there are.
_BYTES, _SHEETS = 32 * 2**20, 400
_NUMBERED = re.compile(r"\d{4}\.png")


@dataclass(frozen=True, eq=False)
class _Shot:
    """One image and what the detectors say of it."""

    images: PerturbedImages
    at: int


def write_site_gallery(out: Path, reader: ImageReader) -> list[Path]:
    """Write ``gallery/`` of a run directory whose tables are written; return its files, none without scores.

    Args:
        out: the run directory.
        reader: of its images.

    Raises:
        OSError: if a file cannot be written.
    """
    folder = out / FOLDER
    files: list[Path] = []
    sheets: list[dict[str, Any]] = []
    spent = 0
    for about, shots in _sheets(RunTables.read(out), reader):
        picture = _sheet(shots)
        spent += len(picture)
        if len(sheets) == _SHEETS or spent > _BYTES:
            break
        folder.mkdir(exist_ok=True)
        files.append(folder / f"{len(sheets) + 1:04d}.png")
        write_atomic(files[-1], picture)
        sheets.append({"file": files[-1].name, **about, **_described(shots)})
    if files:
        files.append(folder / INDEX)
        index = {"format": FORMAT, "sheets": sheets}
        write_atomic(files[-1], json.dumps(index, allow_nan=False, separators=(",", ":")).encode())
    _remove_others(folder, {file.name for file in files})
    return files


def _sheets(tables: RunTables, reader: ImageReader) -> Iterator[tuple[dict[str, Any], list[_Shot]]]:
    """Yield what each sheet is about, and its images: of perturbations in the order of the run, then of detectors."""
    try:
        seed, rows = seed_of(tables, None), tables.scores
    except UsageError:
        return  # --only: nothing was scored
    rows = rows[(rows["set"] == "perturbed") & (rows["seed"] == seed)]
    order = {p: i for i, p in enumerate(dict.fromkeys(tables.perturbations["perturbation"]))}
    within = _within(tables, rows)
    for (dataset, model), own in rows.groupby(["dataset", "model"], sort=False):
        by = {str(p): of for p, of in own.groupby("perturbation", sort=False)}
        made = _Model(str(dataset), str(model), seed, by, reader, tables.classes)
        about = {"dataset": made.dataset, "model": made.model, "seed": seed}
        for label in sorted(by, key=lambda p: order.get(p, len(order))):
            if shots := made.first(label):
                yield {**about, "kind": "perturbation", "name": label}, shots
        for detector, of in own[within.loc[own.index]].groupby("detector", sort=False):
            if shots := made.worst(of):
                yield {**about, "kind": "detector", "name": str(detector)}, shots


def _within(tables: RunTables, rows: pandas.DataFrame) -> pandas.Series[bool]:
    """Return which rows are within the budget of the threat model; all where the run does not say."""
    threat = tables.facts["resolved"].get("threat")
    if not threat:
        return rows["success"] == rows["success"]
    import pandas as pd

    norms = rows[threat["norm"]].to_numpy(np.float64)
    return pd.Series(within_reach(norms, float(threat["eps"])), rows.index)


@dataclass(frozen=True, eq=False)
class _Model:
    """Scores of one model's perturbed images, by perturbation."""

    dataset: str
    model: str
    seed: int
    by: Mapping[str, pandas.DataFrame]
    reader: ImageReader
    classes: tuple[str, ...]

    def first(self, label: str) -> list[_Shot]:
        """Return the first images that fool the model, then the first others."""
        rows = self.by[label]
        images = rows[rows["detector"] == rows["detector"].iloc[0]].drop_duplicates("index")
        fooled = images["success"] == 1
        chosen = [*images["index"][fooled], *images["index"][~fooled]][:SHOWN]
        return self._read(label, chosen)

    def worst(self, rows: pandas.DataFrame) -> list[_Shot]:
        """Return the images that fool the model with the lowest scores, each image once."""
        fooled = rows[(rows["success"] == 1) & np.isfinite(rows["score"])]
        lowest = fooled.sort_values("score", kind="stable").drop_duplicates("index").head(WORST)
        found: dict[int, _Shot] = {}
        for label, own in lowest.groupby("perturbation", sort=False):
            found |= {int(shot.images.index[shot.at]): shot for shot in self._read(str(label), [*own["index"]])}
        return [found[index] for index in lowest["index"] if index in found]

    def _read(self, label: str, indices: Sequence[int]) -> list[_Shot]:
        """Return images of a perturbation; none where the run does not hold them."""
        rows = self.by[label]
        first = rows[rows["detector"] == rows["detector"].iloc[0]].drop_duplicates("index").set_index("index")
        columns = ["label", "clean_prediction", "prediction", "success", "l0", "l1", "l2", "linf"]
        by = {str(d): of.drop_duplicates("index").set_index("index") for d, of in rows.groupby("detector", sort=False)}
        selection = Selection(
            self.dataset, self.model, self.seed, label, first.loc[list(indices), columns].reset_index(),
            {d: of["score"].reindex(indices).to_numpy(np.float64) for d, of in by.items()},
            {d: (of[FLAGGED].reindex(indices) == 1).to_numpy() for d, of in by.items()}, {},
        )  # fmt: skip
        try:
            images = self.reader.read(selection, self.classes)
        except UsageError:
            return []
        return [_Shot(images, i) for i in range(len(images))]


def _panels(shot: _Shot) -> dict[str, NDArray[np.float32]]:
    """Return the panels that there are, by name, (channels, height, width) in [0, 1]."""
    images, i = shot.images, shot.at
    made = {"perturbed": images.perturbed[i]}
    if images.clean is not None:
        difference = images.perturbed[i] - images.clean[i]
        made |= {"clean": images.clean[i], "difference": 0.5 + 0.5 * magnification(difference) * difference}
    if images.has_control[i]:
        made["control"] = images.control[i]
    return made


def _step(shots: Sequence[_Shot]) -> int:
    """Return which pixels are drawn: every one, every second, ..."""
    return max(1, -(-int(max(shots[0].images.perturbed.shape[2:])) // _SIDE))


def _sheet(shots: Sequence[_Shot]) -> bytes:
    """Return the PNG: a row for each image, a column for each of the four panels, blank where there is none."""
    from PIL import Image

    step = _step(shots)
    drawn = [{name: pixels(panel)[::step, ::step] for name, panel in _panels(shot).items()} for shot in shots]
    high, wide, _ = drawn[0]["perturbed"].shape
    whole = np.full((len(shots) * high, len(PANELS) * wide, 3), 255, np.uint8)
    for row, panels in enumerate(drawn):
        for column, name in enumerate(PANELS):
            if name in panels:
                whole[row * high : (row + 1) * high, column * wide : (column + 1) * wide] = panels[name]
    grey = bool((whole[..., :1] == whole).all())
    packed = io.BytesIO()
    Image.fromarray(whole[..., 0] if grey else whole).save(packed, "PNG", optimize=True)
    return packed.getvalue()


def _described(shots: Sequence[_Shot]) -> dict[str, Any]:
    step = _step(shots)
    height, width = (-(-side // step) for side in shots[0].images.perturbed.shape[2:])
    return {
        "height": height, "width": width, "step": step,
        "note": next((s.images.note for s in shots if s.images.note), ""),
        "images": [_about(shot) for shot in shots],
    }  # fmt: skip


def _about(shot: _Shot) -> dict[str, Any]:
    images, i = shot.images, shot.at
    magnified = None if images.clean is None else magnification(images.perturbed[i] - images.clean[i])
    return {
        "perturbation": images.perturbation, "index": int(images.index[i]), "label": int(images.label[i]),
        "clean_prediction": int(images.clean_prediction[i]), "prediction": int(images.prediction[i]),
        "success": bool(images.success[i]), "linf": _finite(images.norms["linf"][i]),
        "l2": _finite(images.norms["l2"][i]), "magnified": _finite(magnified), "panels": list(_panels(shot)),
        "scores": {d: _finite(score[i]) for d, score in images.scores.items()},
        "flagged": [d for d, flags in images.flagged.items() if flags[i]],
    }  # fmt: skip


def _finite(value: Any) -> float | None:
    return float(f"{float(value):.6g}") if value is not None and math.isfinite(value) else None


def _remove_others(folder: Path, kept: set[str]) -> None:
    """Remove pictures of an earlier suite in this directory; files of others stay."""
    for file in folder.iterdir() if folder.is_dir() else ():
        if file.name not in kept and (file.name == INDEX or _NUMBERED.fullmatch(file.name)) and is_regular(file):
            file.unlink()
