"""Perturbed images as files: a PNG each to look at, an index, and the arrays as one ``.npz``."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

import numpy as np

from ...reports.answers.pictures import magnification, strip
from ..core.errors import UsageError
from ..core.files import refuse_links_on_the_way, write_atomic, write_problem
from ..evaluation.csv_files import write_csv
from .images import PerturbedImages

ARRAYS, INDEX, PAGE = "images.npz", "index.csv", "index.html"
# A panel larger than that is no picture to look at.
_LARGEST_SIDE = 4096
_LONGEST = 40


def new_folder(folder: Path, run: Path) -> Path:
    """Return a folder that is there and empty.

    Args:
        folder: to make.
        run: a run directory, whose links are not followed.

    Raises:
        UsageError: if there is something in it, it is no folder, or a link in the run leads elsewhere.
    """
    refuse_links_on_the_way(folder, [run])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        occupied = any(folder.iterdir())
    except OSError as error:
        raise write_problem(folder, error, "choose another folder") from error
    if occupied:
        raise UsageError(f"{folder} is not empty: name a new folder.")
    return folder


def write_pictures(images: PerturbedImages, folder: Path) -> list[str]:
    """Write a PNG for each image, ``index.csv`` and ``index.html``; return the names of the PNGs.

    A PNG shows clean image, perturbed image, difference (magnified) and control, as far as they are at hand. It is
    called by place, position in the test split and classes: ``0001-index-418-5-as-8.png``.

    Args:
        images: what to show.
        folder: where to; it must exist.

    Raises:
        AftershockError: if a file cannot be written.
    """
    names = []
    try:
        for i in range(len(images)):
            name = f"{i + 1:04d}-index-{images.index[i]}-{_slug(images, int(images.label[i]))}-as-" \
                   f"{_slug(images, int(images.prediction[i]))}.png"  # fmt: skip
            picture = io.BytesIO()
            _strip(images, i).save(picture, "PNG")
            write_atomic(folder / name, picture.getvalue())
            names.append(name)
        columns, rows = _index(images, names)
        write_csv(folder / INDEX, columns, rows)
        write_atomic(folder / PAGE, _page(images, names).encode())
    except OSError as error:
        raise write_problem(folder, error, "choose another folder") from error
    return names


def write_arrays(images: PerturbedImages, file: Path) -> None:
    """Write all arrays as one compressed ``.npz``, which ``numpy.load`` reads without pickle.

    ``clean`` and ``difference`` are missing where the clean images are not at hand. ``scores`` and ``flagged`` are
    (images, detectors), in the order of ``detectors``.

    Raises:
        AftershockError: if the file cannot be written.
    """
    detectors = list(images.scores)
    arrays = {
        "index": images.index, "label": images.label, "clean_prediction": images.clean_prediction,
        "prediction": images.prediction, "success": images.success, "perturbed": images.perturbed,
        "control": images.control, "has_control": images.has_control,
        **images.norms,
        "classes": np.array(images.classes, dtype=np.str_), "detectors": np.array(detectors, dtype=np.str_),
        "scores": _columns([images.scores[d] for d in detectors], len(images), np.float64),
        "flagged": _columns([images.flagged[d] for d in detectors], len(images), np.bool_),
        "thresholds": np.array([images.thresholds[d] for d in detectors], np.float64),
        "about": np.array([images.dataset, images.model, str(images.seed), images.perturbation], dtype=np.str_),
    }  # fmt: skip
    if images.clean is not None:
        arrays |= {"clean": images.clean, "difference": images.perturbed - images.clean}
    packed = io.BytesIO()
    np.savez_compressed(packed, **arrays)  # type: ignore[arg-type]  # any name is a keyword
    try:
        write_atomic(file, packed.getvalue())
    except OSError as error:
        raise write_problem(file, error, "choose another place") from error


def _columns(parts: Sequence[np.ndarray], rows: int, kind: type) -> np.ndarray:
    return np.stack(parts, axis=1) if parts else np.zeros((rows, 0), kind)


def _strip(images: PerturbedImages, i: int):  # type: ignore[no-untyped-def]
    if max(images.perturbed.shape[2:]) > _LARGEST_SIDE:
        raise UsageError(f"Images of {images.perturbed.shape[2:]} pixels are too large to look at: --to npz has them.")
    clean = None if images.clean is None else images.clean[i]
    difference = None if clean is None else images.perturbed[i] - clean
    return strip(clean, images.perturbed[i], difference, images.control[i] if images.has_control[i] else None)


def _slug(images: PerturbedImages, label: int) -> str:
    """Return a class's name as a part of a file name, whatever it holds."""
    return re.sub(r"[^A-Za-z0-9]+", "-", images.name_of(label))[:_LONGEST].strip("-") or str(label)


def _index(images: PerturbedImages, names: Sequence[str]) -> tuple[list[str], Iterator[list[object]]]:
    detectors = list(images.scores)
    columns = ["file", "index", "label", "prediction", "linf", "l2", "magnified"]
    columns += [f"{what} {d}" for d in detectors for what in ("score", "flagged")]

    def rows() -> Iterator[list[object]]:
        for i, name in enumerate(names):
            magnified = None if images.clean is None else magnification(images.perturbed[i] - images.clean[i])
            said = [value for d in detectors for value in (images.scores[d][i], images.flagged[d][i])]
            yield [
                name, images.index[i], images.name_of(int(images.label[i])), images.name_of(int(images.prediction[i])),
                images.norms["linf"][i], images.norms["l2"][i], magnified, *said,
            ]  # fmt: skip

    return columns, rows()


def _page(images: PerturbedImages, names: Sequence[str]) -> str:
    where = escape(f"{images.perturbation} on {images.dataset} / {images.model}, seed {images.seed}")
    panels = ["perturbed", "control of equal norm (where there is one)"]
    if images.clean is not None:
        panels = ["clean", panels[0], "the difference (magnified)", panels[1]]
    said = escape(f"From left to right: {', '.join(panels)}. {images.note}".strip())
    shown = "".join(f"<figure>{_figure(images, i, name)}</figure>" for i, name in enumerate(names))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src 'self'; "
        "style-src 'unsafe-inline'\">"
        f"<title>{where}</title><style>{_STYLE}</style><h1>{where}</h1><p>{said}</p>{shown}</html>\n"
    )


_STYLE = (
    ":root{color-scheme:light dark}body{font:1rem/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;"
    "padding:0 1rem}figure{margin:0 0 1.5rem}img{max-width:100%;image-rendering:pixelated;background:#fff}"
)


def _figure(images: PerturbedImages, i: int, name: str) -> str:
    label, prediction = (images.name_of(int(of[i])) for of in (images.label, images.prediction))
    flags = [d for d in images.scores if images.flagged[d][i]]
    said = f"Image {images.index[i]}: {label}, taken for {prediction}."
    if images.scores:
        said += f" Flagged by {', '.join(flags)}." if flags else " Flagged by no detector."
    caption = escape(said)
    return f'<img src="{escape(name)}" alt="{caption}" loading="lazy"><figcaption>{caption}</figcaption>'
