"""What a leaderboard says in a sentence: who is best, if anybody is, and where the numbers end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

ABLATION = "none"


@dataclass(frozen=True)
class Standing:
    """One row of a leaderboard, as far as the verdict needs it."""

    detector: str
    rank: float | None
    reason: str = ""


@dataclass(frozen=True)
class Verdict:
    """The verdict on one table.

    Attributes:
        kind: ``winner``: one detector alone on rank 1, above the row without a detector. ``shared``: several that the
            data cannot tell apart, all above it. ``no-better``: no ranked detector is significantly better than none.
            ``unranked``: no detector has a rank.
        best: the detectors on rank 1 (of ``unranked``: none), in the order given.
        ranked: how many detectors have a rank.
        reason: of ``unranked``: why the first row has none.
    """

    kind: Literal["winner", "shared", "no-better", "unranked"]
    best: tuple[str, ...] = ()
    ranked: int = 0
    reason: str = ""


def verdict(rows: Sequence[Standing]) -> Verdict:
    """Return the verdict on the rows of one table (one data set, model, threat and protocol digest)."""
    detectors = [r for r in rows if r.detector != ABLATION]
    able = [r for r in detectors if r.rank is not None]
    if not able:
        return Verdict("unranked", reason=next((r.reason for r in detectors if r.reason), ""))
    none = next((r.rank for r in rows if r.detector == ABLATION), None)
    first = min(r.rank for r in able if r.rank is not None)
    best = tuple(r.detector for r in able if r.rank == first)
    # Without a rank of its own there is nothing that the others could be better than.
    if none is None or none <= first:
        return Verdict("no-better", best, len(able))
    return Verdict("winner" if len(best) == 1 else "shared", best, len(able))


def sentence(found: Verdict) -> str:
    """Return the verdict in words."""
    if found.kind == "winner":
        return f"{found.best[0]} is significantly better than every other ranked row."
    if found.kind == "shared":
        return f"{_listed(found.best)} share rank 1: the data cannot tell them apart; all are better than no detector."
    if found.kind == "no-better":
        which = "The ranked detector is" if found.ranked == 1 else f"None of the {found.ranked} ranked detectors is"
        return f"{which} {'not ' if found.ranked == 1 else ''}significantly better than no detector at all."
    return "No detector is ranked" + (f": {found.reason}." if found.reason else ".")


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:3])
    more = len(names) - len(shown)
    if more:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
