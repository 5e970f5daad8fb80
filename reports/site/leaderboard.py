"""The site's two big tables as rows of cells: the leaderboard and what every perturbation did.

A cell holds text, the number it is sorted by, and why there is none; the template only lays it out.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice

from ...harness.evaluation.rankability import floor_text
from ...harness.evaluation.verdict import order
from ..read.run_directory import Row
from ..threats import budget
from .flags import DOUBTED, Flag, flags
from .matrices_and_curves import DASH, grouped, mean

SPACE = "\u202f"  # a narrow space that does not break: 61.2 %
ABLATION = "none"
SURROGATES = {
    "exact": "The adaptive attack differentiates the score itself.",
    "relaxed": "The adaptive attack differentiates a smooth approximation of the score.",
    "straight-through": "The adaptive attack passes gradients straight through the hard steps of the score.",
    "none": "There is no surrogate: feature matching, PGD on the margin and a random search attack it, less strongly.",
}


@dataclass(frozen=True)
class Column:
    """A table's column: heading, a line under it, what it means, and how a click sorts it first."""

    key: str
    title: str
    help: str
    note: str = ""
    kind: str = "number"
    first: str = "desc"

    @cached_property
    def heading(self) -> str:
        """Heading and note in one line."""
        return f"{self.title} {self.note}".rstrip()


@dataclass(frozen=True)
class Cell:
    """A cell: text or a dash with its reason, the value it sorts by, a small second line (of a bar: a mark that is read
    before the text), a bar with a whisker, flags that doubt the value, and the page that its text leads to.
    """

    text: str = DASH
    sort: str = ""
    note: str = ""
    title: str = ""
    bar: float | None = None
    low: float | None = None
    high: float | None = None
    flags: Sequence[Flag] = ()
    href: str = ""


@dataclass(frozen=True)
class Table:
    """A table: columns, rows (their class and cells), headings over the columns (title, span)."""

    columns: Sequence[Column]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    heads: Sequence[tuple[str, int]] = ()
    caption: str = ""
    reference: float | None = None
    notes: Sequence[str] = field(default_factory=tuple)


BOARD = (
    Column("rank", "Rank", "1 plus the number of rows that are significantly better, by paired tests over the images "
           "(Holm's correction over all pairs): rows that the data cannot tell apart share a rank. A row whose attack "
           f"is below the protocol's floor ({floor_text()}), or is broken, has none.", first="asc"),
    Column("detector", "Detector", "The detector's label in the suite. none flags nothing: the ablation that every "
           "other number is read against.", kind="text", first="asc"),
    Column("robust_accuracy_at_fpr_5", "Robust accuracy", "The share of images that stay safe in the worst case: the "
           "model is right, the detector lets the clean image pass, and no attack within the threat model both fools "
           "the model and evades the detector. The whisker is the 95 % interval, the thin line is the row none. At "
           "most: an attack of this row was weaker than it could be, so the number can only be too high.",
           "at FPR 5 %"),
    Column("adaptive_undetected_at_fpr_5", "Adaptive", "How often an attack that knows the detector fools the "
           "model undetected at FPR 5 %: less is better.", "undetected", first="asc"),
    Column("price", "Price", "How much larger a perturbation must be to fool the model and pass the detector than to "
           "fool the model alone: the median over images of the ratio of the smallest distances that were found. 1: "
           "the detector costs an attacker nothing. It orders rows that robust accuracy leaves on one rank.",
           "of detection"),
    Column("worst_auroc", "Worst", "The lowest AUROC over the perturbations, and which one it was.", "AUROC"),
    Column("tpr_at_fpr_1", "TPR", "The smallest share of fooling images that is flagged at a false positive rate of "
           "1 %, over the perturbations (needs 1,000 calibrate images).", "at FPR 1 %"),
    Column("mean_auroc_seen", "Seen", "Mean AUROC over perturbations that the detector was fitted on, exactly or by "
           "family; empty for detectors that learn from clean images only.", "mean AUROC"),
    Column("mean_auroc_unseen", "Unseen", "Mean AUROC over perturbations that the detector never saw, and how many "
           "they are.", "mean AUROC"),
    Column("control_flagged_at_fpr_5", "Control", "The share of random noise of the same norm as the attacks that is "
           "flagged although it changes no prediction: high for a detector that responds to noise.", "flagged",
           first="asc"),
    Column("benign_flagged_at_fpr_5", "Benign", "The share of plain noise and corruptions that is flagged although "
           "the prediction is unchanged.", "flagged", first="asc"),
    Column("fpr_realised_5", "Clean", "The share of clean evaluate images that is flagged: about 5 % if the "
           "threshold carries over (the realised FPR).", "flagged", first="asc"),
    Column("surrogate", "Surrogate", "How the adaptive attack differentiates the detector: exactly, relaxed, straight "
           "through, or not at all.", kind="text", first="asc"),
    Column("seeds", "Seeds", "Number of seeds that a cell is the mean of (the table names them), and the standard "
           "deviation of robust accuracy between them.", "SD", "text", "asc"),
)  # fmt: skip
BOARD_HEADS = (
    ("", 2),
    ("Worst case", 3),
    ("Attacks and clean images", 4),
    ("False alarms", 3),
    ("Trust", 2),
)
# Columns that are left out where no row has them.
_MAY_LACK = ("price",)
EMPTY = {
    "rank": "not ranked",
    "adaptive_undetected_at_fpr_5": "no adaptive attack was made against this detector",
    "mean_auroc_seen": "fitted on no perturbation of this suite",
    "mean_auroc_unseen": "no unseen perturbation with enough fooling images",
    "price": "no distances were searched: price_images = 0 in the suite, or no attack that knows the detector",
    "worst_auroc": "no perturbation with enough fooling images",
    "tpr_at_fpr_1": "a threshold at FPR 1 % needs 1,000 calibrate images and 30 fooling ones",
    "control_flagged_at_fpr_5": "no control images were kept",
    "benign_flagged_at_fpr_5": "no noise or corruption in the suite",
}
PERTURBED = (
    Column("perturbation", "Perturbation", "Its label in the suite; under it its kind, family and library.",
           kind="text", first="asc"),
    Column("eps", "Budget", "The norm that is limited or minimised, and the limit.", kind="text", first="asc"),
    Column("n", "Images", "Images that the model got right and that were perturbed."),
    Column("success_rate", "Success rate", "The share of them that fools the model."),
    Column("mean_linf", "L∞", "Mean largest change of a pixel; under it the largest of all images.", "mean, max"),
    Column("mean_l2", "L2", "Mean Euclidean length of the change.", "mean"),
    Column("mean_l0", "L0", "Mean number of changed pixels.", "mean"),
    Column("forwards_per_image", "Forwards", "Forward passes per image.", "per image", first="asc"),
    Column("backwards_per_image", "Backwards", "Backward passes per image.", "per image", first="asc"),
    Column("flags", "Flags", "What makes the numbers doubtful, or why there are none.", kind="flags", first="asc"),
)  # fmt: skip


def percent(value: float | None) -> str:
    """``61.2 %``, or a dash."""
    return DASH if value is None else f"{100 * value:.1f}{SPACE}%"


def leaderboard(rows: Sequence[Row], reasons: Mapping[str, str], pages: Mapping[str, str] | None = None) -> Table:
    """Return the leaderboard of one data set, model and threat.

    Args:
        rows: of ``leaderboard.csv``.
        reasons: detector to why something of it is missing (a failure, too few positives).
        pages: detector to its page.
    """
    reference = next((r.number("robust_accuracy_at_fpr_5") for r in rows if r.text("detector") == ABLATION), None)
    columns = [c for c in BOARD if c.key not in _MAY_LACK or any(r.number(c.key) is not None for r in rows)]
    each = iter(BOARD)
    heads = [(title, sum(c in columns for c in islice(each, span))) for title, span in BOARD_HEADS]
    shown = []
    for row in sorted(rows, key=place):
        kind = "" if row.number("rank") is not None else "unranked"
        shown.append(
            ("ablation" if row.text("detector") == ABLATION else kind, _board_row(row, columns, reasons, pages or {}))
        )
    return Table(columns, shown, heads, reference=_share(reference))


def place(row: Row) -> tuple[object, ...]:
    """Return what rows of the leaderboard are sorted by, as in the table of a run."""
    robust, rank, price = (row.number(name) for name in ("robust_accuracy_at_fpr_5", "rank", "price"))
    return order(row.text("detector"), rank, robust, price)


def scope(row: Row) -> str:
    """Return what a row's figures are about: ``of 200 images, for this seed`` or ``of 200 images, over 3 seeds``."""
    images, seeds = row.number("n_images"), len(row.text("seeds").split())
    about = [f"of {images:,.0f} images"] if images is not None else []
    return ", ".join([*about, *(["for this seed"] if seeds == 1 else [f"over {seeds} seeds"] if seeds else [])])


def _board_row(row: Row, columns: Sequence[Column], reasons: Mapping[str, str], pages: Mapping[str, str]) -> list[Cell]:
    detector = row.text("detector")
    doubts = _doubted(row, {c.key for c in columns})
    cells = []
    for column in columns:
        cell = _board_cell(row, column)
        if cell.text == DASH and column.kind == "number":
            why = "flags nothing: it has no score" if detector == ABLATION else EMPTY.get(column.key, "not computed")
            missing = row.text("not_ranked_reason")
            if missing and column.key in ("rank", "robust_accuracy_at_fpr_5"):
                why = f"not ranked: {missing}" if column.key == "rank" else missing
            specific = reasons.get(detector, "")
            general = column.key in ("rank", "mean_auroc_seen", "benign_flagged_at_fpr_5")
            cell = replace(cell, title=why if general or not specific else specific)
        if column.key == "detector":
            cell = replace(cell, href=pages.get(detector, ""))
        cells.append(replace(cell, flags=doubts[column.key]) if column.key in doubts else cell)
    return cells


def _doubted(row: Row, columns: Container[str]) -> dict[str, list[Flag]]:
    """Return a row's flags by the column whose number they doubt."""
    found: dict[str, list[Flag]] = {}
    for flag in flags(row.text("flags")):
        column = DOUBTED.get(flag.key, "")
        found.setdefault(column if column in columns else "robust_accuracy_at_fpr_5", []).append(flag)
    return found


def _board_cell(row: Row, column: Column) -> Cell:
    key = column.key
    if key == "seeds":
        sd = row.number("seed_sd")
        seeds = row.text("seeds").split()
        note = "" if sd is None else f"±{SPACE}{100 * sd:.1f}"
        count = str(len(seeds)) if seeds else ""
        return Cell(count or DASH, count, note, f"seeds {', '.join(seeds)}" if seeds else "")
    if column.kind == "text":
        text = row.text(key)
        # What stands behind an entry of a board: claimed by its contributor, or computed again.
        note = ("flags nothing" if text == ABLATION else row.texts.get("standing", "")) if key == "detector" else ""
        return Cell(text or DASH, text, note, SURROGATES.get(text, "") if key == "surrogate" else "")
    value = row.number(key)
    if value is None:
        return Cell()
    if key == "rank":
        return Cell(f"{value:.0f}", f"{value:.0f}")
    if key == "robust_accuracy_at_fpr_5":
        low, high = row.number("robust_accuracy_low"), row.number("robust_accuracy_high")
        title = "" if low is None or high is None else f"95 % interval {percent(low)} to {percent(high)}"
        title += f"{', ' if title else ''}{scope(row)}"
        mark = "at most" if row.number("robust_accuracy_is_upper_bound") else ""
        return Cell(percent(value), repr(value), mark, title, _share(value), _share(low), _share(high))
    if key == "price":
        low, high = row.number("price_low"), row.number("price_high")
        interval = f"{low:.2f} to {'?' if high is None else f'{high:.2f}'}" if low is not None else ""
        about = f"of {row.number('n_price') or 0:.0f} images; {row.number('n_rd_censored') or 0:.0f} never pass"
        return Cell(f"{value:.2f}", repr(value), "" if high is not None else "at least", f"{interval}, {about}")
    if key in ("worst_auroc", "mean_auroc_seen", "mean_auroc_unseen"):
        unseen = row.number("n_unseen")
        note = row.text("worst_perturbation") if key == "worst_auroc" else ""
        if key == "mean_auroc_unseen" and unseen is not None:
            note = f"of {unseen:.0f}"
        return Cell(f"{value:.3f}", repr(value), note)
    return Cell(percent(value), repr(value))


def perturbed(rows: Sequence[Row], doubts: Mapping[str, Sequence[Flag]]) -> Table:
    """Return what every perturbation did to one model, the mean over seeds, in the suite's order.

    Args:
        rows: of ``perturbations.csv``.
        doubts: the flags of every perturbation, by label.
    """
    shown = []
    for (label,), own in grouped(rows, "perturbation").items():
        first = own[0]
        kind = first.text("kind")
        about = " · ".join(dict.fromkeys(t for t in (kind, first.text("family"), first.text("library")) if t))
        found = doubts.get(label, ())
        largest = max((v for r in own if (v := r.number("max_linf")) is not None), default=None)
        rate = mean(r.number("success_rate") for r in own)
        why = next((r.text("reason") for r in own if r.text("reason")), "not measured")
        cells = [
            Cell(label or DASH, label, about),
            Cell(text := budget(first.text("norm"), first.text("eps")), "" if text == DASH else text),
            _amount(own, "n", "{:.0f}", why),
            Cell(
                percent(rate), "" if rate is None else repr(rate), title=why if rate is None else "", bar=_share(rate)
            ),
            replace(_amount(own, "mean_linf", "{:.4f}", why), note="" if largest is None else f"{largest:.4f}"),
            _amount(own, "mean_l2", "{:.3f}", why),
            _amount(own, "mean_l0", "{:.1f}", why),
            _amount(own, "forwards_per_image", "{:.4g}", why),
            _amount(own, "backwards_per_image", "{:.4g}", why),
            Cell("", str(len(found)) if found else "", flags=found),
        ]
        shown.append((kind if kind in ("noise", "corruption") else "", cells))
    return Table(PERTURBED, shown)


def _amount(rows: Sequence[Row], column: str, pattern: str, why: str) -> Cell:
    value = mean(r.number(column) for r in rows)
    return Cell(title=why) if value is None else Cell(pattern.format(value), repr(value))


def _share(value: float | None) -> float | None:
    """Return a number that a bar can draw: between 0 and 1."""
    return None if value is None else round(min(max(value, 0.0), 1.0), 4)
