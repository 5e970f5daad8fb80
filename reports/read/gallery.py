"""Pictures that a run wrote for its report, as a report reads them: an index and PNG files, checked.

They may come from an untrusted source: a picture is taken only if it is a regular file below the run, has the
signature of a PNG and the size that the index says, and is not too large. Nothing is decoded here.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...harness.core.files import MIB, RefusedFileError, parse_strict_json, read_if_there
from .run_directory import Run, check_published, listed, mapping, objects, quantity, words

FOLDER, INDEX, FORMAT = "gallery", "index.json", 1
# Columns of a sheet, from left to right.
PANELS = ("clean", "perturbed", "difference", "control")
# Images of a perturbation, and worst cases of a detector.
SHOWN, WORST = 12, 6
_INDEX_LIMIT, _PICTURE_LIMIT, _TOGETHER = 32 * MIB, 4 * MIB, 64 * MIB
_SHEETS, _ROWS, _SIDE, _DETECTORS = 500, 24, 512, 500
_NAME = re.compile(r"\d{4}\.png")
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2


@dataclass(frozen=True)
class Shot:
    """One image of a sheet.

    Attributes:
        perturbation: its label.
        index: position in the test split.
        label: true class.
        clean_prediction: the model's class of the clean image.
        prediction: the model's class of the perturbed image.
        success: it fools the model.
        linf: norm of the perturbation.
        l2: norm of the perturbation.
        magnified: by how much its difference is drawn larger; ``None`` without a clean image.
        panels: those that there are.
        scores: by detector, ``None`` where it gave none.
        flagged: detectors that flag it.
    """

    perturbation: str
    index: int
    label: int
    clean_prediction: int
    prediction: int
    success: bool
    linf: float | None
    l2: float | None
    magnified: float | None
    panels: frozenset[str]
    scores: Mapping[str, float | None]
    flagged: frozenset[str]


@dataclass(frozen=True)
class Sheet:
    """A picture with a row for each image and a column for each panel.

    Attributes:
        kind: ``perturbation`` or ``detector``.
        name: its label.
        dataset: the data set's name.
        model: the model's label.
        seed: of the run.
        height: of a panel, in pixels.
        width: of a panel, in pixels.
        step: every which pixel of the image is drawn.
        note: why there are no clean images; else empty.
        shots: the rows.
        content: the PNG.
    """

    kind: str
    name: str
    dataset: str
    model: str
    seed: int
    height: int
    width: int
    step: int
    note: str
    shots: Sequence[Shot]
    content: bytes


def read_gallery(run: Run) -> tuple[list[Sheet], list[str]]:
    """Return the pictures of a run, and a sentence for what cannot be shown; an older run has none.

    Raises:
        UsageError: if a file is not the one that the run wrote.
    """
    place = run.path / FOLDER / INDEX
    try:
        content = read_if_there(place, _INDEX_LIMIT, within=run.path)
        _published(run, INDEX, content)
        if content is None:
            return [], []
        index = mapping(parse_strict_json(content, place))
    except RefusedFileError as error:
        return [], [f"The pictures of {run.name} are left out: {error}"]
    if index.get("format") != FORMAT:
        return [], [f"The pictures of {run.name} are left out: {place} is not of format {FORMAT}."]
    found: list[Sheet] = []
    problems: list[str] = []
    spent = 0
    for entry in objects(index.get("sheets"))[:_SHEETS]:
        try:
            sheet = _sheet(run, entry)
        except RefusedFileError as error:
            problems.append(f"A picture of {run.name} is left out: {error}")
            continue
        spent += len(sheet.content)
        if spent > _TOGETHER:
            problems.append(f"Further pictures of {run.name} are left out: they take more than {_TOGETHER // MIB} MiB.")
            break
        found.append(sheet)
    return found, problems[:5]


def _published(run: Run, name: str, content: bytes | None) -> None:
    digest = None if content is None else hashlib.sha256(content).hexdigest()
    check_published(run.path, run.facts, f"{FOLDER}/{name}", digest)


def _sheet(run: Run, entry: Mapping[str, object]) -> Sheet:
    name = words(entry.get("file"))
    place = run.path / FOLDER / INDEX
    if not _NAME.fullmatch(name):
        raise RefusedFileError(f"{place} names {name[:40]!r}, which is not a picture's name.")
    height, width, step = (_whole(entry.get(key), place.name, _SIDE) for key in ("height", "width", "step"))
    shots = [_shot(shot) for shot in objects(entry.get("images"))]
    if entry.get("kind") not in ("perturbation", "detector") or not 1 <= len(shots) <= _ROWS:
        raise RefusedFileError(f"{place} has a sheet of an unknown kind, or with no or too many images.")
    file = run.path / FOLDER / name
    content = read_if_there(file, _PICTURE_LIMIT, within=run.path)
    _published(run, name, content)
    if content is None:
        raise RefusedFileError(f"{file} is missing.")
    if _size(content) != (width * len(PANELS), height * len(shots)):
        raise RefusedFileError(f"{file} is not a PNG of the size that {INDEX} says.")
    seed = quantity(entry.get("seed"))
    return Sheet(
        words(entry.get("kind")), words(entry.get("name")), words(entry.get("dataset")), words(entry.get("model")),
        int(seed or 0), height, width, step, words(entry.get("note"))[:500], shots, content,
    )  # fmt: skip


def _size(content: bytes) -> tuple[int, int] | None:
    """Return width and height of a PNG of 8 bits, grey or RGB; ``None`` for anything else."""
    if len(content) < 33 or not content.startswith(_SIGNATURE) or content[12:16] != b"IHDR":
        return None
    width, height, bits, colour = struct.unpack(">IIBB", content[16:26])
    return (width, height) if bits == 8 and colour in (_GREY, _RGB) else None


def _whole(value: object, name: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise RefusedFileError(f"{name} has a size that is not a whole number from 1 to {most}.")
    return value


def _count(value: object) -> int:
    number = quantity(value)
    return int(number) if number is not None and 0 <= number < 2**53 else -1


def _shot(entry: Mapping[str, object]) -> Shot:
    scores = {words(d): quantity(s) for d, s in [*mapping(entry.get("scores")).items()][:_DETECTORS]}
    index, label, before, after = (
        _count(entry.get(key)) for key in ("index", "label", "clean_prediction", "prediction")
    )
    return Shot(
        words(entry.get("perturbation")), index, label, before, after, entry.get("success") is True,
        quantity(entry.get("linf")), quantity(entry.get("l2")), quantity(entry.get("magnified")),
        frozenset(words(p) for p in listed(entry.get("panels"))) & frozenset(PANELS),
        scores, frozenset(words(d) for d in listed(entry.get("flagged"))) & frozenset(scores),
    )  # fmt: skip
