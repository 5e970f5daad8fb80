"""The leaderboard as it is printed in a terminal and in papers: which columns, in which words, and what stands below.

One source for the console, for `aftershock run --format` and for exports; the page has more columns
(:mod:`.site.leaderboard`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..harness.evaluation.csv_files import number_of, text_of
from ..harness.evaluation.rankability import ABLATION
from ..harness.evaluation.verdict import standings, verdict, verdicts
from .text_tables import DASH, TextTable
from .threats import budget

if TYPE_CHECKING:
    import pandas

LeaderboardRow = Mapping[str, object]

AT_MOST = "≤: an attack on this row was weaker than it could be, so the number can only be too high."
AT_LEAST = "≥: at least that much; how much more is not known."
# A flag by its name, which may be about something: weaker-than-one-step:fgsm.
_FLAG = re.compile(r"[a-z0-9][a-z0-9-]*(:|$)")
# What follows the flag adaptive-incomplete, with other numbers in every row.
_DETAIL = re.compile(r"at the large budget: \d+ of \d+")


@dataclass(frozen=True)
class PublishedColumn:
    """A column.

    Attributes:
        title: the heading in print.
        short: the heading in a terminal.
        text: gives a row's cell.
        order: columns with smaller numbers appear first where there is little room.
        brief: gives the cell in a terminal, where that is shorter.
    """

    title: str
    short: str
    text: Callable[[LeaderboardRow], str]
    order: int
    brief: Callable[[LeaderboardRow], str] | None = None

    def cell(self, row: LeaderboardRow) -> str:
        """Return a row's cell in a terminal."""
        return (self.brief or self.text)(row)


def percent(row: LeaderboardRow, name: str) -> str:
    """Return a share in percent with one decimal, without the sign; a dash where there is none."""
    value = number_of(row.get(name))
    return DASH if value is None else f"{100 * value:.1f}"


def _fixed(row: LeaderboardRow, name: str, digits: int) -> str:
    value = number_of(row.get(name))
    return DASH if value is None else f"{value:.{digits}f}"


def _rank(row: LeaderboardRow) -> str:
    return _fixed(row, "rank", 0)


def robust(row: LeaderboardRow) -> str:
    """``≤ 22.5 [10.0, 37.5]``: robust accuracy in percent with its 95 % interval."""
    value = percent(row, "robust_accuracy_at_fpr_5")
    at_most = "≤ " if number_of(row.get("robust_accuracy_is_upper_bound")) == 1 and value != DASH else ""
    low, high = percent(row, "robust_accuracy_low"), percent(row, "robust_accuracy_high")
    return at_most + value + ("" if DASH in (low, high) else f" [{low}, {high}]")


def _price(row: LeaderboardRow, interval: bool) -> str:
    value = _fixed(row, "price", 2)
    low, high = _fixed(row, "price_low", 2), _fixed(row, "price_high", 2)
    if value == DASH:
        return value
    at_least = "" if high != DASH else "≥ "
    return at_least + value + (f" [{low}, {high if high != DASH else '∞'}]" if interval and low != DASH else "")


def _named(name: str) -> Callable[[LeaderboardRow], str]:
    return lambda row: text_of(row.get(name)) or DASH


COLUMNS = {
    "rank": PublishedColumn("Rank", "rank", _rank, 0),
    "dataset": PublishedColumn("Data set", "data set", _named("dataset"), 0),
    "model": PublishedColumn("Model", "model", _named("model"), 0),
    "detector": PublishedColumn("Detector", "detector", _named("detector"), 0),
    "robust": PublishedColumn("Robust accuracy (%)", "robust acc. %", robust, 0),
    "price": PublishedColumn("Price", "price", lambda row: _price(row, True), 1, lambda row: _price(row, False)),
    "adaptive": PublishedColumn(
        "Undetected (%)", "undetected %", lambda row: percent(row, "adaptive_undetected_at_fpr_5"), 8
    ),
    "worst": PublishedColumn("Worst AUROC", "worst", lambda row: _fixed(row, "worst_auroc", 3), 3),
    "worst_on": PublishedColumn("Worst on", "worst on", _named("worst_perturbation"), 9),
    "seen": PublishedColumn("Seen AUROC", "seen", lambda row: _fixed(row, "mean_auroc_seen", 3), 6),
    "unseen": PublishedColumn("Unseen AUROC", "unseen", lambda row: _fixed(row, "mean_auroc_unseen", 3), 4),
    "control": PublishedColumn(
        "Control flagged (%)", "control %", lambda row: percent(row, "control_flagged_at_fpr_5"), 5
    ),
    "benign": PublishedColumn("Benign flagged (%)", "benign %", lambda row: percent(row, "benign_flagged_at_fpr_5"), 7),
}
NOTES = "Notes"


@dataclass(frozen=True)
class Doubts:
    """The flags of some rows, each once.

    Attributes:
        common: what all rows with a detector carry.
        marked: the others, in the order of the rows; the first is marked ``a``.
        of: places in ``marked`` of each row's own.
    """

    common: tuple[str, ...]
    marked: tuple[str, ...]
    of: tuple[tuple[int, ...], ...] = field(default_factory=tuple)

    def marks(self, row: int) -> str:
        """Return the letters of a row's flags."""
        return " ".join(letter(i) for i in self.of[row])


def letter(place: int) -> str:
    """Return ``a`` to ``z``, then ``aa``."""
    return (letter(place // 26 - 1) if place >= 26 else "") + chr(ord("a") + place % 26)


def doubts(rows: Sequence[LeaderboardRow]) -> Doubts:
    """Return what is doubtful about rows: their flags, and why they have no rank where no flag says so."""
    own = [_flags(row) for row in rows]
    detectors = [flags for row, flags in zip(rows, own, strict=True) if text_of(row.get("detector")) != ABLATION]
    common = tuple(f for f in detectors[0] if all(f in flags for flags in detectors)) if len(detectors) > 1 else ()
    marked = tuple(dict.fromkeys(
        f for row, flags in zip(rows, own, strict=True) for f in flags if not _stands_once(f, row, common)
    ))  # fmt: skip
    of = tuple(
        tuple(sorted(marked.index(f) for f in flags if not _stands_once(f, row, common)))
        for row, flags in zip(rows, own, strict=True)
    )
    return Doubts(common, marked, of)


def _stands_once(flag: str, row: LeaderboardRow, common: Sequence[str]) -> bool:
    return flag in common and text_of(row.get("detector")) != ABLATION


def _flags(row: LeaderboardRow) -> tuple[str, ...]:
    """Return a row's flags without what they are about, and sentences as they are."""
    parts = [part.strip() for name in ("flags", "not_ranked_reason") for part in text_of(row.get(name)).split(";")]
    return tuple(dict.fromkeys(
        part.partition(":")[0] if _FLAG.match(part) else part for part in parts if part and not _DETAIL.fullmatch(part)
    ))  # fmt: skip


def about(rows: Sequence[LeaderboardRow]) -> str:
    """Return what rows are about: ``digits / cnn, L∞ ≤ 0.2, 200 images, seed 0``; what differs is left out."""
    facts = [" / ".join(t for name in ("dataset", "model") if (t := _same(rows, name))), threat_text(rows)]
    images, seeds = _same(rows, "n_images"), _same(rows, "seeds").split()
    facts += [f"{float(images):,.0f} images"] if images else []
    facts += [f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"] if seeds else []
    return ", ".join(fact for fact in facts if fact)


def threat_text(rows: Sequence[LeaderboardRow]) -> str:
    """Return norm and budget that all rows share: ``L∞ ≤ 8/255``; empty where they differ."""
    norm, eps = _same(rows, "norm"), number_of(_same(rows, "eps"))
    if not norm or eps is None:
        return ""
    return budget(norm, f"{eps!r}")


def _same(rows: Sequence[LeaderboardRow], name: str) -> str:
    different = {text_of(row.get(name)) for row in rows}
    return different.pop() if len(different) == 1 else ""


def shown_columns(rows: Sequence[LeaderboardRow]) -> list[str]:
    """Return which columns say something: data set and model where they differ, others where a row has a value."""
    return [
        name
        for name, column in COLUMNS.items()
        if (name in ("rank", "detector", "robust"))
        or (name in ("dataset", "model") and not _same(rows, name) and rows)
        or (name not in ("dataset", "model") and any(column.text(row) != DASH for row in rows))
    ]


def published(leaderboard: pandas.DataFrame | Iterable[LeaderboardRow]) -> TextTable:
    """Return the leaderboard as papers print it.

    The rows keep their order. Bold are detectors on the first rank where no detector at all ranks below them
    (:func:`~..harness.evaluation.verdict.verdict`). Below stand the verdict on each data set and model, and flags,
    by the letters that the rows carry.

    Args:
        leaderboard: the frame, or rows of ``leaderboard.csv`` as mappings.
    """
    rows = rows_of(leaderboard)
    names = [name for name in shown_columns(rows) if name != "worst_on"]
    doubtful = doubts(rows)
    cells = [[COLUMNS[name].text(row) for name in names] for row in rows]
    titles = [COLUMNS[name].title for name in names]
    if doubtful.marked:
        titles.append(NOTES)
        cells = [[*row, doubtful.marks(i)] for i, row in enumerate(cells)]
    texts = verdicts(rows)
    texts += [AT_MOST] if any(robust(row).startswith("≤") for row in rows) else []
    texts += [f"All detectors: {', '.join(doubtful.common)}."] if doubtful.common else []
    texts += [f"{letter(i)}: {flag.rstrip('.')}." for i, flag in enumerate(doubtful.marked)]
    return TextTable(tuple(titles), tuple(map(tuple, cells)), best_rows(rows), about(rows), tuple(texts))


def rows_of(leaderboard: pandas.DataFrame | Iterable[LeaderboardRow]) -> list[LeaderboardRow]:
    """Return the rows of a leaderboard as mappings."""
    if hasattr(leaderboard, "to_dict"):
        return list(leaderboard.to_dict("records"))
    return list(leaderboard)


def best_rows(rows: Sequence[LeaderboardRow]) -> frozenset[int]:
    """Return the places of detectors on the first rank of their table, where no detector at all ranks below them."""
    best = set()
    for own in standings(rows).values():
        found = verdict([standing for _, standing in own])
        if found.kind in ("winner", "shared"):
            best |= {place for place, standing in own if standing.detector in found.best}
    return frozenset(best)
