"""Short answers about one run: what each attack achieves, who notices, which classes, which images."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ...harness.core.errors import UsageError
from ...harness.evaluation.verdict import verdicts
from ...harness.statistics.detection import MIN_IMAGES
from ...reports.published import about, rows_of
from ..read.frames import RunTables, only
from .names import class_name, model_of
from .selection import FLAGGED, Selection

if TYPE_CHECKING:
    import pandas

# Columns of shares in [0, 1], which people see in percent.
SHARES = ("fooled", "flagged", "undetected", "most", "least")
_FLAGS = ("flagged", "undetected")
_MEANING = (
    "n perturbed images; fooled: share that fools the model; flagged: share of those above the threshold (FPR 5 %); "
    "undetected: share of all that fool the model and are not flagged."
)


@dataclass(frozen=True, eq=False)
class Section:
    """A part of an answer.

    Attributes:
        name: a key for programs.
        title: a heading for people.
        frame: the table.
    """

    name: str
    title: str
    frame: pandas.DataFrame


@dataclass(frozen=True, eq=False)
class Answer:
    """An answer: sentences and tables.

    Attributes:
        title: what it is about.
        sections: the tables, the most important first.
        notes: sentences below them.
    """

    title: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...] = field(default=())


def attack_numbers(
    tables: RunTables, detector: str | None = None, perturbation: str | None = None, model: str | None = None
) -> pandas.DataFrame:
    """Return what every perturbation achieves against every detector, means over seeds.

    What was made against one detector is left out for the others.

    Args:
        tables: of the run.
        detector: only this one.
        perturbation: only this one.
        model: only this one.

    Returns:
        a row per model, perturbation and detector: ``kind``, ``n`` (perturbed images), ``fooled`` (share of them that
        fool the model), ``auroc`` (of those against clean images), ``flagged`` (share of those above the threshold at
        FPR 5 %), ``undetected`` (share of all that fool the model and are not flagged).
    """
    keys = ["model", "perturbation", "detector"]
    rows = only(tables.scores, detector=detector, perturbation=perturbation, model=model, set="perturbed")
    found = _shares(rows, [*keys, "seed"]).groupby(keys, sort=False).mean().reset_index()
    areas = only(tables.metrics, outcome="success", negatives="clean").groupby(keys, sort=False)["auroc"].mean()
    kinds = tables.perturbations.drop_duplicates("perturbation").set_index("perturbation")["kind"]
    found = found.join(areas, on=keys)
    found["kind"] = found["perturbation"].map(kinds)
    found["n"] = found["n"].round().astype(np.int64)
    own = found["perturbation"].str.rpartition("@")[2] == found["detector"]
    return found.loc[(found["kind"] != "adaptive") | own, [*keys, "kind", "n", "fooled", "auroc", *_FLAGS]]


def class_numbers(
    tables: RunTables, perturbation: str, detector: str | None = None, model: str | None = None
) -> pandas.DataFrame:
    """Return per true class what a perturbation achieves, all seeds together.

    Args:
        tables: of the run.
        perturbation: its label.
        detector: whose flags are counted; ``None`` for none.
        model: its label.

    Returns:
        a row per class: ``class``, ``n``, ``fooled``, and with a detector ``flagged`` and ``undetected``.
    """
    rows = only(tables.scores, perturbation=perturbation, model=model, set="perturbed")
    first = None if rows.empty else rows["detector"].iloc[0]
    found = _shares(only(rows, detector=detector or first), ["label"]).reset_index().sort_values("label")
    found.insert(0, "class", [class_name(tables, int(label)) for label in found["label"]])
    return found[["class", "n", "fooled", *(_FLAGS if detector is not None else ())]]


def _shares(rows: pandas.DataFrame, by: list[str]) -> pandas.DataFrame:
    """Return numbers and shares of perturbed images by some columns."""
    hit, flag = rows["success"] == 1, rows[FLAGGED]
    undetected = (hit & (flag == 0)).where(flag.notna()).astype(np.float64)
    made = rows[by].assign(n=1, fooled=rows["success"], flagged=flag.where(hit), undetected=undetected)
    means = {name: (name, "mean") for name in ("fooled", *_FLAGS)}
    return made.groupby(by, sort=False).agg(n=("n", "sum"), **means)


def image_rows(tables: RunTables, chosen: Selection, detectors: list[str]) -> pandas.DataFrame:
    """Return a row per image of a selection: position, classes by name, and what detectors say.

    With one detector the columns are ``score``, ``threshold`` and ``flag``; with several ``flagged_by`` names those
    that flag the image.
    """
    import pandas as pd

    found = pd.DataFrame({"index": chosen.images["index"]})
    for name in ("label", "prediction"):
        found[name] = [class_name(tables, int(c)) for c in chosen.images[name]]
    if len(detectors) == 1:
        (one,) = detectors
        found["score"], found["threshold"] = chosen.scores[one], chosen.thresholds[one]
        found["flag"] = np.where(chosen.flagged[one], "yes", "no")
    else:
        found["flagged_by"] = [", ".join(d for d in detectors if chosen.flagged[d][i]) for i in range(len(chosen))]
    return found


def overview(tables: RunTables, model: str | None = None) -> Answer:
    """Return what a run says at a glance: the verdict per model, and of each attack how often it fools and who notices.

    Args:
        tables: of the run.
        model: only this one.
    """
    import pandas as pd

    model = None if model is None else model_of(tables, model)
    board = rows_of(only(tables.leaderboard, model=model))
    numbers = attack_numbers(tables, model=model)
    rows = [_extremes(names, of) for names, of in numbers.groupby(["model", "perturbation"], sort=False)]
    frame = pd.DataFrame(rows, columns=["model", "perturbation", "n", "fooled", "most", "most_by", "least", "least_by"])
    heading = (
        f"Fooled: share of n images. Most and least: share of those that a detector flags, of {MIN_IMAGES} or more."
    )
    title = f"{tables.name}: {about(board)}" if board else tables.name
    kept = frame if frame["model"].nunique() > 1 else frame.drop(columns="model")
    return Answer(title, (Section("attacks", heading, kept),), tuple(verdicts(board)))


def _extremes(names: tuple[str, str], of: pandas.DataFrame) -> dict[str, Any]:
    """Return who flags most and least of the images of one perturbation."""
    found: dict[str, Any] = dict(zip(("model", "perturbation"), names, strict=True))
    found |= {"n": int(of["n"].iloc[0]), "fooled": float(of["fooled"].iloc[0])}
    known = of[of["flagged"].notna() & (of["fooled"] * of["n"] >= MIN_IMAGES)]
    if len(known):
        most, least = known.loc[known["flagged"].idxmax()], known.loc[known["flagged"].idxmin()]
        found |= {"most": most["flagged"], "most_by": most["detector"]}
        if len(known) > 1:
            found |= {"least": least["flagged"], "least_by": least["detector"]}
    return found


def about_parts(tables: RunTables, detector: str | None, perturbation: str | None, model: str | None) -> Answer:
    """Return what perturbations achieve against a detector, or detectors notice of a perturbation, and by class.

    Args:
        tables: of the run.
        detector: its label.
        perturbation: its label.
        model: its label.
    """
    numbers = attack_numbers(tables, detector, perturbation, model)
    if numbers.empty:
        raise UsageError(f"{tables.folder} holds no scores of that.")
    hidden = {"kind", *(["detector"] if detector else []), *(["perturbation"] if perturbation else [])}
    hidden |= {"model"} if numbers["model"].nunique() == 1 else set()
    sections = [Section("attacks", _MEANING, numbers.drop(columns=list(hidden)))]
    for label in dict.fromkeys(numbers["model"]) if perturbation is not None else ():
        frame = class_numbers(tables, str(perturbation), detector, label)
        sections.append(Section(f"classes of {label}", f"By true class, {label}", frame))
    return Answer(f"{tables.name}: {', '.join(s for s in (detector, perturbation) if s)}", tuple(sections))


def about_images(tables: RunTables, chosen: Selection, detector: str | None, limit: int | None = None) -> Answer:
    """Return a list of images, and the shares of their classes.

    Args:
        tables: of the run.
        chosen: the images.
        detector: whose scores are shown; ``None`` for who flags them.
        limit: maximum number of images that are listed; ``None`` for all.
    """
    known = [detector] if detector in chosen.scores else list(chosen.scores)
    title = f"{tables.name}: {chosen.perturbation} on {chosen.model}, seed {chosen.seed}"
    rows = image_rows(tables, chosen, [str(d) for d in known])
    shown = rows if limit is None else rows.head(limit)
    heading = f"{len(rows)} images" if len(shown) == len(rows) else f"The first {len(shown)} of {len(rows)} images"
    numbers = class_numbers(tables, chosen.perturbation, detector, chosen.model)
    classes = Section("classes", "All images of this perturbation by true class, all seeds", numbers)
    return Answer(title, (Section("images", heading, shown), classes))
