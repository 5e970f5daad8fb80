"""What a leaderboard says in a sentence: which detectors are best, if any."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .csv_files import number_of, text_of
from .rankability import ABLATION, BELOW_FLOOR, floor_text

# A price below is one of 1, as far as a search can tell.
_WORTHLESS = 1.01


@dataclass(frozen=True)
class Standing:
    """One row of a leaderboard, as far as the verdict needs it."""

    detector: str
    rank: float | None
    reason: str = ""
    price: float | None = None
    price_low: float | None = None
    price_high: float | None = None
    accuracy_rank: float | None = None


@dataclass(frozen=True)
class Verdict:
    """The verdict on one table.

    Attributes:
        kind: ``winner``: one detector alone on the first rank, which the row without a detector does not share.
            ``shared``: several there, which the data cannot tell apart. ``no-better``: no ranked detector is
            significantly better than none, or none has no rank to be compared by. ``unranked``: no detector has a rank.
        best: the detectors on the first rank (of ``unranked``: none), in the order given.
        ranked: how many detectors have a rank.
        reason: of ``unranked``: why the first row has none; of ``no-better``: why the row without a detector has none.
        by_price: of ``winner`` and ``shared``: robust accuracy alone does not tell the best from the row without a
            detector; their price does.
    """

    kind: Literal["winner", "shared", "no-better", "unranked"]
    best: tuple[str, ...] = ()
    ranked: int = 0
    reason: str = ""
    by_price: bool = False


def standing_of(row: Mapping[str, object]) -> Standing:
    """Return what the verdict needs of a row of ``leaderboard.csv``, as made or as read back."""
    return Standing(
        text_of(row["detector"]), number_of(row["rank"]), text_of(row.get("not_ranked_reason")),
        *(number_of(row.get(name)) for name in ("price", "price_low", "price_high", "accuracy_rank")),
    )  # fmt: skip


def standings(rows: Sequence[Mapping[str, object]]) -> dict[str, list[tuple[int, Standing]]]:
    """Return the rows of each data set and model (``digits / cnn``) with their places, in the order of the rows."""
    tables: dict[str, list[tuple[int, Standing]]] = {}
    for place, row in enumerate(rows):
        title = f"{text_of(row['dataset'])} / {text_of(row['model'])}"
        tables.setdefault(title, []).append((place, standing_of(row)))
    return tables


def verdicts(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """Return what the leaderboard says, a few sentences for each data set and model, in the order of the rows."""
    return [
        f"{title}: {verdict_text([standing for _, standing in own])}" for title, own in standings(rows).items()
    ]  # fmt: skip


def verdict_text(rows: Sequence[Standing]) -> str:
    """Return the verdict on one table in words, with what the dearest detector costs an attacker."""
    return f"{sentence(verdict(rows))} {cost(rows)}".rstrip()


def order(detector: str, rank: float | None, robust: float | None, price: float | None) -> tuple[object, ...]:
    """Return what rows of one table are sorted by: in the files, on the console, on the page and in exports alike.

    Ranked rows come first, by rank, then those with a number, then the others; each by descending robust accuracy (to
    six digits), then by descending price, then by name.
    """
    return (
        math.inf if rank is None else rank, robust is None, -round(robust or 0.0, 6), -round(price or 0.0, 6), detector,
    )  # fmt: skip


def verdict(rows: Sequence[Standing]) -> Verdict:
    """Return the verdict on the rows of one table (one data set, model, threat and protocol digest)."""
    detectors = [r for r in rows if r.detector != ABLATION]
    able = [r for r in detectors if r.rank is not None]
    if not able:
        return Verdict("unranked", reason=next((r.reason for r in detectors if r.reason), ""))
    none = next((r for r in rows if r.detector == ABLATION), Standing(ABLATION, None, "it is missing"))
    first = min(r.rank for r in able if r.rank is not None)
    best = tuple(r.detector for r in able if r.rank == first)
    if none.rank is None:
        return Verdict("no-better", best, len(able), none.reason or "no reason was recorded")
    if none.rank <= first:
        return Verdict("no-better", best, len(able))
    accuracy = {r.accuracy_rank for r in able if r.rank == first}
    by_price = none.accuracy_rank is not None and accuracy == {none.accuracy_rank}
    return Verdict("winner" if len(best) == 1 else "shared", best, len(able), by_price=by_price)


def sentence(found: Verdict) -> str:
    """Return the verdict in words.

    Ranks say less than a test of every pair: a row that shares the first rank, or follows it, may differ from another
    of a lower rank without significance.
    """
    one = found.kind == "winner"
    below = f"The row without a detector ranks below {'it' if one else 'them'}"
    below += ", for what evading costs: robust accuracy alone does not tell the two apart." if found.by_price else "."
    if one:
        return f"{found.best[0]} is alone on the first rank. {below}"
    if found.kind == "shared":
        return f"{_listed(found.best)} share the first rank: the data cannot tell them apart. {below}"
    if found.kind == "no-better":
        which = "The ranked detector is not" if found.ranked == 1 else f"None of the {found.ranked} ranked detectors is"
        if found.reason:
            return f"{which} shown to be better than no detector: the row without one has no rank ({found.reason})."
        return f"{which} significantly better than no detector at all."
    reason = found.reason
    if reason.startswith(BELOW_FLOOR):
        reason = f"the attack that knows it is weaker than the protocol requires for a rank ({floor_text()})"
    return "No detector is ranked" + (f": {reason}." if reason else ".")


def cost(rows: Sequence[Standing]) -> str:
    """Return what the dearest ranked detector costs an attacker, in words; empty where no price was measured."""
    priced = [r for r in rows if r.detector != ABLATION and r.rank is not None and r.price is not None]
    if not priced:
        return ""
    dearest = max(priced, key=lambda r: r.price or 0.0)
    price, low = dearest.price or 1.0, dearest.price_low or 1.0
    between = f" (95 % interval {low:.2f} to {dearest.price_high:.2f})" if dearest.price_high is not None else ""
    least = "" if dearest.price_high is not None else "at least "
    # Of a lower bound of 1 nothing is known: what fools only at the large budget leaves no room to tell.
    if price < _WORTHLESS and not least:
        return "Passing them costs an attacker nothing: what fools the model passes, at the median of the images."
    return (
        f"The dearest is {dearest.detector}: to pass it as well, a perturbation must be {least}{price:.2f} times as "
        f"large as to fool the model alone{between}."
    )


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:3])
    more = len(names) - len(shown)
    if more:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else shown[0]
