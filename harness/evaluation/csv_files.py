"""Tables to files: the columns that others rely on, writers that always write the same bytes, and cells read back."""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from ..core.files import replacing

COLUMNS: dict[str, tuple[str, ...]] = {
    "leaderboard": (
        "rank", "dataset", "model", "detector", "norm", "eps", "robust_accuracy_at_fpr_5", "robust_accuracy_low",
        "robust_accuracy_high", "adaptive_undetected_at_fpr_5", "worst_auroc", "worst_perturbation", "mean_auroc_seen",
        "mean_auroc_unseen", "n_unseen", "control_flagged_at_fpr_5", "benign_flagged_at_fpr_5", "fpr_realised_5",
        "surrogate", "flags", "seeds", "seed_sd", "protocol_digest", "n_images", "not_ranked_reason",
        "robust_accuracy_is_upper_bound", "tpr_at_fpr_1", "series_digest", "reencoded_flagged_at_fpr_5",
        "shadow_flagged_at_fpr_5", "shadow_robust", "shadow_source_robust", "n_shadow", "false_alarm_at_quarter_eps",
        "price", "price_low", "price_high", "r0_median", "rd_median", "n_price", "n_rd_censored", "n_r0_censored",
        "passes_once", "passes_majority", "accuracy_rank",
    ),
    "metrics": (
        "dataset", "model", "seed", "perturbation", "kind", "family", "norm", "eps", "outcome", "detector", "fit_on",
        "seen", "negatives", "n_positive", "n_negative", "auroc", "auroc_low", "auroc_high", "average_precision",
        "tpr_at_fpr_1", "tpr_at_fpr_5", "tpr_at_fpr_10", "undetected_success_at_fpr_5", "control_flagged_at_fpr_5",
        "reason",
    ),
    "scores": (
        "dataset", "model", "seed", "perturbation", "detector", "index", "label", "clean_prediction", "prediction",
        "set", "score", "flagged_at_fpr_5", "success", "l0", "l1", "l2", "linf",
    ),
    "propagation": (
        "dataset", "model", "seed", "perturbation", "population", "depth", "tap", "metric", "n", "mean", "q05", "q50",
        "q95",
    ),
    "perturbations": (
        "dataset", "model", "seed", "perturbation", "kind", "family", "library", "norm", "eps", "n", "success_rate",
        "mean_l0", "mean_l2", "mean_linf", "max_linf", "forwards_per_image", "backwards_per_image", "flags", "reason",
    ),
    "attacks": (
        "dataset", "model", "seed", "perturbation", "group", "kind", "against", "norm", "eps", "n", "parts",
        "detector", "success_rate", "flagged_at_fpr_5", "undetected_success_at_fpr_5", "success_rate_8bit",
        "flagged_at_fpr_5_8bit", "undetected_success_at_fpr_5_8bit", "surrogate_follows",
    ),
    "rejection_curve": (
        "dataset", "model", "seed", "detector", "norm", "eps", "alpha", "share", "low", "high", "n", "reason",
    ),
    "radii": ("dataset", "model", "seed", "detector", "index", "r0", "rd", "reach"),
    "past_all": (
        "dataset", "model", "seed", "norm", "eps", "detectors", "measure", "detector", "n", "share", "low", "high",
        "reason",
    ),
    "timings": ("dataset", "model", "seed", "what", "name", "seconds", "ms_per_image"),
}  # fmt: skip

# Spreadsheets run a cell that begins like this as a formula (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")

Row = Mapping[str, object] | Sequence[object]


def table_file(name: str) -> str:
    """Return the file name of a table."""
    return f"{name}.csv.gz" if name == "scores" else f"{name}.csv"


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row], digits: int = 6) -> None:
    """Write a table; the same rows give the same bytes, and the file is whole or not there.

    Args:
        path: the file; its directory must exist.
        columns: the header.
        rows: mappings with exactly these columns, or sequences in their order. ``None`` and NaN are empty cells, truth
            values 1 and 0; text that a spreadsheet would run as a formula gets an apostrophe in front;
            line ends become newlines.
        digits: significant digits of floating point numbers.

    Raises:
        ValueError: if a row does not fit the columns; what stood at ``path`` stays.
    """
    with replacing(path) as part, part.open("wb") as raw:
        write_rows(raw, columns, rows, digits)


def write_csv_gz(path: Path, columns: Sequence[str], rows: Iterable[Row], digits: int = 9) -> None:
    """Like :func:`write_csv`, compressed, row by row in constant memory; nine digits hold every float32 exactly."""
    with replacing(path) as part, part.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as packed:
        write_rows(packed, columns, rows, digits)


def csv_bytes(columns: Sequence[str], rows: Iterable[Row], digits: int = 6) -> bytes:
    """Return a table as :func:`write_csv` writes it."""
    stream = io.BytesIO()
    write_rows(stream, columns, rows, digits)
    return stream.getvalue()


def write_rows(raw: IO[bytes] | gzip.GzipFile, columns: Sequence[str], rows: Iterable[Row], digits: int = 6) -> None:
    """Write a table to a stream, as :func:`write_csv` does to a file."""
    text = io.TextIOWrapper(raw, encoding="utf-8", newline="", write_through=False)
    try:
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(value, digits) for value in _ordered(columns, row)])
        text.flush()
    finally:
        text.detach()


def _ordered(columns: Sequence[str], row: Row) -> Sequence[object]:
    if isinstance(row, Mapping):
        if row.keys() != set(columns):
            odd = sorted(set(columns) ^ set(row.keys()))
            raise ValueError(f"a row does not fit its table: {', '.join(odd)}")
        return [row[c] for c in columns]
    if len(row) != len(columns):
        raise ValueError(f"a row has {len(row)} cells, its table {len(columns)} columns")
    return row


def _cell(value: object, digits: int) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        guarded = f"'{value}" if value.startswith(_FORMULA) else value
        # csv does not quote a lone carriage return, which readers take for the end of the row.
        return guarded.replace("\r\n", "\n").replace("\r", "\n")
    if isinstance(value, bool | np.bool_):
        return "1" if value else "0"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        number = float(value)
        # Adding 0.0 makes −0.0, which prints differently, 0.0.
        return "" if math.isnan(number) else f"{number + 0.0:.{digits}g}"
    raise ValueError(f"a cell holds a {type(value).__name__}, not text or a number")


def number_of(cell: object) -> float | None:
    """Return a number as a row holds it or as it is read back; ``None`` for an empty cell and what is not finite.

    Raises:
        ValueError: if the cell holds other text.
    """
    number = math.nan if cell is None or cell == "" else float(str(cell))
    return number if math.isfinite(number) else None


def text_of(cell: object) -> str:
    """Return a cell's text as one printable line, without the apostrophe that keeps spreadsheets from running it.

    An empty cell that pandas read back is NaN.
    """
    text = "" if cell is None or cell != cell else str(cell)
    if text.startswith("'") and text[1:].startswith(_FORMULA):
        text = text[1:]
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
