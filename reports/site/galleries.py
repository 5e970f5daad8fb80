"""Galleries: the images of perturbations and the worst cases of detectors, as pages show them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ..read.gallery import PANELS, SHOWN, WORST, Sheet, Shot
from ..read.run_directory import Run, listed, words
from .downloads import Downloads
from .groups import Group

# Images of the front page.
_FRONT = 4
_WORDS = {"clean": "clean", "perturbed": "perturbed", "difference": "difference", "control": "noise of its norm"}
EXAMPLES = (
    "The first {} images in the order of the evaluate set that fool the model; where there are fewer, the first others "
    "after them."
)
LOWEST = (
    f"Of all images within the budget of the threat model that fool the model, those with the lowest scores: at most "
    f"{WORST}, each image of the data set once."
)


@dataclass(frozen=True)
class Panel:
    """One picture of a row: its place in the sheet, in pixels of the sheet; ``x`` is ``None`` where there is none."""

    title: str
    x: int | None
    y: int


@dataclass(frozen=True)
class Picture:
    """One image of a gallery.

    Attributes:
        title: its classes, in words.
        facts: where it is from and what was done to it, in words.
        panels: its pictures.
        scores: detector, its score and whether it flags the image.
        flagged: number of detectors that do.
        missed: numbers of the detectors that do not, in the order of the gallery's.
    """

    title: str
    facts: Sequence[str]
    panels: Sequence[Panel]
    scores: Sequence[tuple[str, str, bool]]
    flagged: int
    missed: Sequence[int]


@dataclass(frozen=True)
class Gallery:
    """Images of a page.

    Attributes:
        title: what they show.
        rule: how they were chosen.
        sheet: path of the picture from the site's folder.
        width: of the sheet.
        height: of the sheet.
        wide: width of a panel.
        high: height of a panel.
        pictures: the images.
        detectors: what they can be filtered by.
        notes: sentences below.
    """

    title: str
    rule: str
    sheet: str
    width: int
    height: int
    wide: int
    high: int
    pictures: Sequence[Picture]
    detectors: Sequence[str]
    notes: Sequence[str]


class Galleries:
    """The sheets of some runs, as galleries of pages; a sheet is a file of the site once, on however many pages it is.

    Args:
        sheets: by run directory.
        downloads: takes the files.
    """

    def __init__(self, sheets: Mapping[Path, Sequence[Sheet]], downloads: Downloads) -> None:
        self._downloads = downloads
        self._by = {
            (path, sheet.kind, sheet.dataset, sheet.model, sheet.name): sheet
            for path, own in sheets.items()
            for sheet in own
        }
        self._paths: dict[int, str] = {}

    def examples(self, group: Group, labels: Collection[str]) -> list[Gallery]:
        """Return a gallery of each of some perturbations that a model has pictures of, in the order of its table."""
        known = list(dict.fromkeys(r.text("perturbation") for r in group.rows("perturbations")))
        rule = EXAMPLES.format(SHOWN)
        return [
            self._gallery(sheet, run, label, rule, [d for d in group.order if d in sheet.shots[0].scores])
            for label in known if label in labels
            for run, sheet in self._of(group, "perturbation", label)[:1]
        ]  # fmt: skip

    def worst(self, group: Group, detector: str) -> Gallery | None:
        """Return the worst cases of a detector, by its label on the page; ``None`` without pictures."""
        path, label = group.origins.get(detector, (None, detector))
        for run, sheet in self._of(group, "detector", label):
            if path in (None, run.path):
                found = self._gallery(sheet, run, f"Worst cases of {detector}", LOWEST, [label], named=True)
                return replace(found, detectors=())
        return None

    def front(self, group: Group, perturbation: str) -> list[Gallery]:
        """Return the first images of a perturbation, else of the first attack that there are pictures of, if any."""
        attacks = [r.text("perturbation") for r in group.rows("perturbations") if r.text("kind") == "attack"]
        for label in (perturbation, *attacks):
            for found in self.examples(group, {label}):
                rule = EXAMPLES.format(_FRONT)
                return [replace(found, rule=rule, pictures=found.pictures[:_FRONT], detectors=())]
        return []

    def _of(self, group: Group, kind: str, name: str) -> list[tuple[Run, Sheet]]:
        return [
            (run, sheet)
            for run in group.runs
            if (sheet := self._by.get((run.path, kind, group.dataset, group.model, name))) is not None
        ]

    def _gallery(
        self, sheet: Sheet, run: Run, title: str, rule: str, detectors: Sequence[str], named: bool = False
    ) -> Gallery:
        path = self._paths.get(id(sheet))
        if path is None:
            path = self._downloads.file("gallery", f"{len(self._paths) + 1:04d}.png", "", sheet.content).path
            self._paths[id(sheet)] = path
        classes = [words(name) for name in listed(run.facts.get("classes"))]
        scored = [*detectors, *sorted({d for s in sheet.shots for d in s.scores} - set(detectors))] if not named \
            else list(detectors)  # fmt: skip
        notes = [sheet.note] if sheet.note else []
        if sheet.step > 1:
            notes.append(f"Of the images one pixel in {sheet.step} is shown, in both directions.")
        return Gallery(
            title, rule, path, sheet.width * len(PANELS), sheet.height * len(sheet.shots), sheet.width, sheet.height,
            [_picture(shot, i, sheet, classes, scored, named) for i, shot in enumerate(sheet.shots)], scored, notes,
        )  # fmt: skip


def _picture(
    shot: Shot, row: int, sheet: Sheet, classes: Sequence[str], detectors: Sequence[str], named: bool
) -> Picture:
    label, prediction = (_class(classes, c) for c in (shot.label, shot.prediction))
    facts = [f"image {shot.index}", *([f"by {shot.perturbation}"] if named else [])]
    facts += [f"{name} {value:.3g}" for name, value in (("L∞", shot.linf), ("L2", shot.l2)) if value is not None]
    panels = [
        Panel(
            f"{_WORDS[name]}{f' ×{shot.magnified:.3g}' if name == 'difference' and shot.magnified else ''}",
            column * sheet.width if name in shot.panels else None,
            row * sheet.height,
        )
        for column, name in enumerate(PANELS)
        if name in shot.panels or name == "control"
    ]
    scores = [(d, f"{s:.4g}", d in shot.flagged) for d in detectors if (s := shot.scores.get(d)) is not None]
    return Picture(
        f"{label}, taken for {prediction}" if shot.success else f"{label}, predicted {prediction}", facts, panels,
        scores, sum(flag for *_, flag in scores),
        [i for i, d in enumerate(detectors) if shot.scores.get(d) is not None and d not in shot.flagged],
    )  # fmt: skip


def _class(classes: Sequence[str], number: int) -> str:
    return classes[number] if 0 <= number < len(classes) and classes[number] else str(number)
