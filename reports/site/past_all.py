"""One image past all detectors, in words."""

from __future__ import annotations

from collections.abc import Sequence

from ..read.run_directory import Row
from .leaderboard import percent
from .matrices_and_curves import grouped, mean


def past_all_sentences(rows: Sequence[Row], board: Sequence[Row]) -> list[str]:
    """Return what was found for one model, the mean over seeds: none where no search was planned.

    Args:
        rows: of ``past_all.csv``.
        board: of ``leaderboard.csv``.
    """
    found, alone_of = [], {r.text("detector"): r.number("adaptive_undetected_at_fpr_5") for r in board}
    for (measure, detector), own in grouped(rows, "measure", "detector").items():
        share, low, high, n = (mean(r.number(name) for r in own) for name in ("share", "low", "high", "n"))
        counted = mean(r.number("detectors") for r in own)
        if measure == "passes-all" and counted is not None:
            about = f"One image past all {counted:.0f} detectors: "
            if share is None or n is None:
                reason = next((r.text("reason") for r in own if r.text("reason")), "") or "no image could be attacked"
                found.append(f"{about}not known ({reason.rstrip('.')}).")
                continue
            found.append(f"{about}{percent(share)} of {n:.0f} images{_interval(low, high)}.")
        elif measure == "flagged" and share is not None:
            alone = alone_of.get(detector)
            about = "" if alone is None else f"; in its own row {percent(alone)} of images get past it"
            found.append(
                f"{detector}, which combines others, flags {percent(share)} of these{_interval(low, high)}{about}."
            )
    return found


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f" [{percent(low)}, {percent(high)}]"
