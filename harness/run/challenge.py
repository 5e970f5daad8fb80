"""Images that others found against a detector: checked one by one, and taken into its entry where they lower it.

Whoever has the run checks them; an entry alone holds neither model nor detector. An image counts where an attack's
image would: it is of an image that the entry's figures are about and that the model gets right, lies within [0, 1] and
within the threat by its measured norm, fools the model, and has a finite score.
"""

from __future__ import annotations

import io
import lzma
import tempfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...reports.entries.from_run import Written, entries_of
from ...reports.entries.images import ImageTable, SeedImages, digest_of, written_number
from ...reports.entries.metrics import metrics_of
from ...reports.entries.schema import Challenge
from ...reports.read.run_directory import read_run
from ..core.errors import UsageError
from ..core.files import GIB, read_file
from ..evaluation.alarms import within_reach
from .guard import Guard, export_guard
from .images import test_images
from .load import RunFolder
from .roots import data_root

_MOST_IMAGES, _MOST_BYTES, _BATCH = 100_000, 4 * GIB, 256
_DIGITS = 1e-5
# What the modules below np.load raise for damaged, encrypted and unknown archives.
_UNREADABLE = (
    OSError, ValueError, KeyError, EOFError, MemoryError, RuntimeError, zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip
OTHER, WRONG, OUTSIDE, FAR, RIGHT, NO_SCORE, KNOWN = (
    "not among the images that the entry is about",
    "of an image that the model gets wrong without it",
    "outside [0, 1] or no number",
    "larger than the threat allows",
    "does not fool the model",
    "has no finite score",
    "no lower than what the run found",
)


@dataclass(frozen=True)
class Challenged:
    """What became of images.

    Attributes:
        written: the entry with the lower number; ``None`` where nothing is lower.
        lowered: how many images have a lower score than any that the run found, over all seeds.
        refused: how many were not, by the reason.
        before: robust accuracy of the entry as the run made it.
        after: robust accuracy with the images.
    """

    written: Written | None
    lowered: int
    refused: Mapping[str, int]
    before: float
    after: float


def challenge(
    run: Path, detector: str, images: Path, by: str, model: str | None = None, data: Path | None = None,
    weights: Path | None = None, entry: Path | None = None,
) -> Challenged:  # fmt: skip
    """Check images against one detector of a run.

    Args:
        run: the run directory; its detector and its model are loaded, nothing in it is executed.
        detector: its label.
        images: an ``.npz`` with ``index``, int (n,), positions in the test split, and ``images``, float
            (n, channels, height, width) in [0, 1]; it may come from anybody.
        by: who found them.
        model: its label, where the run has several.
        data: root of the data sets.
        weights: of the model, where the run does not hold them.
        entry: an entry of this row that earlier challenges lowered; else that of the run.

    Raises:
        UsageError: if the images cannot be read, or the run has no such row or not what is needed to check them.
    """
    folder = RunFolder(run)
    stated = _entry(run, detector, model, entry)
    if stated.table is None or stated.entry.metrics.robust_accuracy_at_fpr_5 is None:
        raise UsageError(f"The row {detector!r} of {run} has no number that an image could lower.")
    index, found = _read(images)
    known = np.isin(index, np.asarray(folder.evaluate, np.int64))
    elsewhere = int((~known).sum())
    index, found = index[known], found[known]
    test = test_images(folder, data_root(data))
    if len(index) and index.max() >= len(test):
        raise UsageError(f"The data set {folder.data.name!r} under {data_root(data)} is not the run's.")
    clean = test.images(index.tolist()).numpy().astype(np.float32, copy=False)
    labels = np.asarray(test.labels(index.tolist()).numpy(), np.int64)
    if found.shape[1:] != clean.shape[1:]:
        size = " x ".join(map(str, clean.shape[1:]))
        raise UsageError(f"{images} holds images of {' x '.join(map(str, found.shape[1:]))}: the data's are {size}.")
    seeds: list[SeedImages] = []
    refused: Counter[str] = Counter({OTHER: elsewhere} if elsewhere else {})
    lowered = 0
    for seed in stated.table.seeds:
        guard = _guard(folder, run, detector, stated.entry.model, int(seed.scores.seed), weights)
        changed, count, reasons = _against(guard, seed, stated, index, found, clean, labels)
        seeds.append(changed)
        lowered += count
        refused += reasons
    before = stated.entry.metrics.robust_accuracy_at_fpr_5
    if not lowered:
        return Challenged(None, 0, refused, before, before)
    written = _lowered(stated, ImageTable(seeds, stated.table.reach), by, lowered, before)
    return Challenged(written, lowered, refused, before, written.entry.metrics.robust_accuracy_at_fpr_5 or 0.0)


def _entry(run: Path, detector: str, model: str | None, path: Path | None) -> Written:
    """Return the run's entry of a row, or an earlier one of the same row that agrees with itself."""
    rows = [w for w in entries_of(read_run(run), "", detector) if w.entry.detector == detector]
    rows = [w for w in rows if model in (None, w.entry.model)]
    if len(rows) != 1:
        models = ", ".join(sorted({w.entry.model for w in rows})) or "none of that name"
        raise UsageError(f"{run} has {len(rows)} rows {detector!r}: name the model ({models}).")
    [own] = rows
    if path is None:
        return own
    from ...reports.entries.verify import verify

    given = verify(path)
    if given.disagreements:
        raise UsageError(f"{path} does not agree with itself: {given.disagreements[0]}.")
    same = ("dataset", "model", "detector", "threat")
    other = [name for name in same if getattr(given.entry, name) != getattr(own.entry, name)]
    if other or given.entry.protocol.digest != own.entry.protocol.digest:
        raise UsageError(f"{path} is about another row than {run}: another {', '.join([*other, 'protocol'][:1])}.")
    return Written(given.entry, given.table)


def _read(path: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return positions and images of a file from anybody."""
    try:
        content = read_file(path, _MOST_BYTES)
        with zipfile.ZipFile(io.BytesIO(content)) as held:
            if sum(part.file_size for part in held.infolist()) > _MOST_BYTES:
                raise ValueError("it unpacks to more than is read")
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            index, images = arrays["index"], arrays["images"]
        if not (isinstance(index, np.ndarray) and isinstance(images, np.ndarray)):
            raise ValueError("they are no arrays")
    except FileNotFoundError as error:
        raise UsageError(f"There is no file {path}.") from error
    except _UNREADABLE as error:
        why = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is no .npz file with 'index' and 'images' ({why}).") from error
    whole = index.ndim == 1 and index.dtype.kind in "iu" and images.dtype.kind == "f" and images.ndim == 4
    if not whole or len(index) != len(images) or not 0 < len(index) <= _MOST_IMAGES:
        raise UsageError(
            f"{path} needs 'index', whole numbers (n,), and 'images', floats (n, channels, height, width)."
        )
    if index.min() < 0 or int(index.max()) >= 2**62:
        raise UsageError(f"{path} has an index that is no position in a test split.")
    with np.errstate(over="ignore"):
        # What single precision cannot hold lies outside [0, 1], which is said of each image.
        return index.astype(np.int64), images.astype(np.float32)


def _guard(
    folder: RunFolder, run: Path, detector: str, model: str, seed: int, weights: Path | None
) -> Guard:  # fmt: skip
    with tempfile.TemporaryDirectory() as place:
        path = export_guard(run, detector, Path(place) / "guard.safetensors", model, seed)
        return Guard.load(path, folder.model(model, seed, weights))


def _against(
    guard: Guard, seed: SeedImages, stated: Written, index: NDArray[np.int64], images: NDArray[np.float32],
    clean: NDArray[np.float32], labels: NDArray[np.int64],
) -> tuple[SeedImages, int, Counter[str]]:  # fmt: skip
    """Return one seed's table with the images that lower it, how many these are, and why the others are not."""
    scores, threat = seed.scores, stated.entry.threat
    place = {int(i): row for row, i in enumerate(scores.index[: stated.entry.metrics.n_images].tolist())}
    rows = np.array([place.get(i, -1) for i in index.tolist()], np.int64)
    inside = np.isfinite(images).all((1, 2, 3)) & (images >= 0).all((1, 2, 3)) & (images <= 1).all((1, 2, 3))
    norms = _norms(images, clean, threat.norm)
    reason = np.full(len(index), "", dtype=object)
    for bad, why in (
        (rows < 0, OTHER), (~scores.right[rows], WRONG), (~inside, OUTSIDE), (~within_reach(norms, threat.eps), FAR),
    ):  # fmt: skip
        reason[(reason == "") & bad] = why
    lowest, r0, rd = scores.lowest.copy(), seed.r0.copy(), seed.rd.copy()
    lowered = 0
    asked = np.flatnonzero(reason == "")
    if (_predictions(guard, clean[asked]) != labels[asked]).any():
        raise UsageError("The model gets clean images wrong that it got right in the run: the data are not the run's.")
    for start in range(0, len(asked), _BATCH):
        part = asked[start : start + _BATCH]
        verdict = guard(torch.from_numpy(images[part]))
        fooled = verdict.logits.argmax(1).numpy() != labels[part]
        for at, fools, score in zip(part.tolist(), fooled.tolist(), verdict.score.tolist(), strict=True):
            row = int(rows[at])
            if not fools or not np.isfinite(score):
                reason[at] = NO_SCORE if fools else RIGHT
                continue
            if not np.isnan(r0[row]):
                r0[row] = min(r0[row], norms[at])
                rd[row] = max(min(rd[row], norms[at] if score <= guard.threshold else np.inf), r0[row])
            if score < _clearly_below(lowest[row]):
                # As its file has it: its metrics are those that anybody computes from that.
                lowest[row] = written_number(score)
                lowered += 1
            else:
                reason[at] = KNOWN
    changed = replace(seed, scores=replace(scores, lowest=lowest), r0=r0, rd=rd)
    return changed, lowered, Counter(str(why) for why in reason if why)


def _clearly_below(score: float) -> float:
    """Return what a lower score lies below: published scores have nine digits, and batches differ in the last ones."""
    return score - _DIGITS * max(1.0, abs(score)) if np.isfinite(score) else score


def _predictions(guard: Guard, images: NDArray[np.float32]) -> NDArray[np.int64]:
    parts = [images[start : start + _BATCH] for start in range(0, len(images), _BATCH)]
    return np.concatenate(
        [np.zeros(0, np.int64), *(guard(torch.from_numpy(p)).logits.argmax(1).numpy() for p in parts)]
    )


def _norms(images: NDArray[np.float32], clean: NDArray[np.float32], norm: str) -> NDArray[np.float64]:
    """Return the norm of the differences, float64 (n,)."""
    delta = np.nan_to_num(images.astype(np.float64) - clean, nan=np.inf)
    order = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}[norm]
    flat = delta.reshape(len(delta), int(np.prod(delta.shape[1:])))
    return np.asarray(np.linalg.norm(flat, order, axis=1), np.float64)


def _lowered(stated: Written, table: ImageTable, by: str, lowered: int, before: float) -> Written:
    entry = stated.entry
    if entry.images is None:
        raise UsageError("An entry without a table has nothing that an image could lower.")
    note = Challenge(by=by, date=datetime.now(UTC).date().isoformat(), images=lowered, before=before)
    metrics = metrics_of(table, entry.detector, entry.metrics.n_images)
    return Written(
        entry.model_copy(
            update={
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "checksum": None,
                "metrics": metrics,
                "images": entry.images.model_copy(update={"sha256": digest_of(table.content)}),
                "challenges": [*entry.challenges, note],
            }
        ),
        table,
    )
