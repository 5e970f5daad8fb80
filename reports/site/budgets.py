"""Budget curves: how each attack does at larger budgets, against every detector, and where the curves end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..read.run_directory import Row
from ..threats import NORMS
from .flags import Flag
from .leaderboard import ABLATION, SPACE, Cell, Column, Table
from .matrices_and_curves import grouped
from .shares import Conditions, Share, by_budget, group_of, images, share, written

CURVE_HELP = (
    ("undetected", "Undetected success", "share of attacked images",
     "Undetected success: the share of attacked images that fool the model and evade the detector at FPR 5 %. "
     "Less is better for the detector."),
    ("success", "Success", "share of attacked images",
     "Success: the share of attacked images that fool the model, whether they are flagged or not."),
    ("detection", "Detection", "share of fooling images",
     "Detection: the share of the images that fool the model that the detector flags at FPR 5 %. There is no point "
     "where no image fools the model."),
)  # fmt: skip
ENDS = (
    Column("perturbation", "Attack", "Attacks of one label with several budgets; under it the detector that it knows.",
           kind="text", first="asc"),
    Column("budgets", "Budgets", "From the smallest to the largest, and how many were measured.", kind="text",
           first="asc"),
    Column("n", "Images", "Images that the model got right and that were attacked."),
    Column("success_rate", "Success", "The share that fools the model at the largest budget, and whether the curve "
           "gets to 100 %.", "at the largest budget"),
    Column("detection", "Detection", "Of the fooling images, the share that the detector it knows flags at FPR 5 %.",
           "by its detector", first="asc"),
    Column("undetected", "Undetected success", "The share of attacked images that fools the model and passes the "
           "detector it knows.", "by its detector"),
    Column("flags", "Flags", "Sanity flags of any point of the curve.", kind="flags", first="asc"),
)  # fmt: skip


def _curves(rows: Sequence[Row]) -> dict[tuple[str, str, str, str], list[tuple[float, list[Row]]]]:
    """Points by (norm, attack, against, detector)."""
    found: dict[tuple[str, str, str, str], list[Row]] = {}
    for row in rows:
        if (row.number("eps") or 0) > 0:
            key = (row.text("norm"), group_of(row), row.text("against"), row.text("detector"))
            found.setdefault(key, []).append(row)
    return {key: by_budget(own) for key, own in found.items()}


def _short(value: float) -> float:
    return float(f"{value:.9g}")


def curve_data(title: str, conditions: Conditions, threat: tuple[str, float | None]) -> dict[str, object] | None:
    """Return the budget curves of one model as plain JSON data; ``None`` where no attack has two budgets.

    A series is ``[norm, detector, attack, points]`` with three indices; a point is ``[x, budget, undetected, success,
    detection, n, flags]``: each measure a list of value, low, high. Names stay as they are; they are escaped when
    drawn.

    Args:
        title: the model.
        conditions: its rows.
        threat: norm and budget that the ranking is about.
    """
    curves = _curves(conditions.own())
    norms = list(dict.fromkeys(key[0] for key, points in curves.items() if len(points) > 1))
    if not norms:
        return None
    detectors = [*conditions.detectors(), ABLATION]
    attacks = list(dict.fromkeys((key[1], bool(key[2])) for key in curves if key[0] in norms))
    series, faces = [], []
    for norm in norms:
        budgets = sorted({eps for key, points in curves.items() if key[0] == norm for eps, _ in points})
        levels = all(written(norm, eps).endswith("/255") for eps in budgets)
        scale = 255.0 if levels else 1.0
        faces.append({
            "name": NORMS.get(norm, norm), "unit": "in 1/255" if levels else "",
            "ticks": [[_short(eps * scale), f"{round(eps * 255)}" if levels else f"{eps:.3g}"] for eps in budgets],
            "threat": _short(threat[1] * scale) if norm == threat[0] and threat[1] and threat[1] > 0 else None,
        })  # fmt: skip
        for (own, attack, against, detector), points in curves.items():
            if own != norm or detector not in detectors:
                continue
            drawn = [
                [_short(eps * scale), written(norm, eps), *(share(rows, m).rounded() for m, *_ in CURVE_HELP),
                 images(rows), [f.full for f in conditions.flags(rows)]]
                for eps, rows in points
            ]  # fmt: skip
            where = (norms.index(norm), detectors.index(detector), attacks.index((attack, bool(against))))
            series.append([*where, drawn])
    return {
        "title": title,
        "norms": faces,
        "detectors": detectors,
        "attacks": attacks,
        "measures": CURVE_HELP,
        "series": series,
        "seeds": len({r.text("seed") for r in conditions.rows}),
        "ends": ends_sentence(ends(conditions)),
    }


@dataclass(frozen=True)
class End:
    """Where one budget curve ends."""

    attack: str
    against: str
    budgets: str
    points: int
    largest: str
    n: int
    success: Share
    detection: Share
    undetected: Share
    flags: Sequence[Flag]

    @property
    def name(self) -> str:
        """``adaptive against latent``."""
        return f"{self.attack} against {self.against}" if self.against else self.attack

    @property
    def complete(self) -> bool:
        """Whether the attack succeeded on every image of every seed."""
        return self.success.value is not None and self.success.value >= 1


def ends(conditions: Conditions) -> list[End]:
    """Return the last point of every budget curve of one model."""
    found = []
    for (norm, attack, against), own in grouped(conditions.rows, "norm", "group", "against").items():
        if not attack:
            continue
        points = by_budget(own)
        if len(points) < 2:
            continue
        largest, rows = points[-1]
        known = [r for r in rows if against and r.text("detector") == against]
        bare = known or [r for r in rows if r.text("detector") == ABLATION] or rows
        first, last = written(norm, points[0][0]), written(norm, largest)
        found.append(End(
            attack, against, f"{first} to {last.split(' ')[-1]}", len(points), last,
            images(bare), share(bare, "success"),
            share(known, "detection"), share(known, "undetected"), conditions.flags(own),
        ))  # fmt: skip
    return found


def ends_table(found: Sequence[End]) -> Table:
    """Return the curves' ends as a table that sorts."""
    rows = []
    for end in found:
        why = "" if end.against else "it knows no detector: see the curves of each"
        done = "reaches 100 %" if end.complete else "stops short of 100 %"
        cells = [
            Cell(end.attack, end.name, f"against {end.against}" if end.against else "knows no detector"),
            Cell(end.budgets, end.budgets, f"{end.points} budgets"),
            Cell(str(end.n), str(end.n)),
            _cell(end.success, done, ""),
            _cell(end.detection, "", why or "no image fooled the model"),
            _cell(end.undetected, "", why),
            Cell("", str(len(end.flags)) if end.flags else "", flags=end.flags),
        ]
        rows.append(("" if end.complete else "short", cells))
    return Table(ENDS, rows)


def _cell(found: Share, note: str, why: str) -> Cell:
    if found.value is None:
        return Cell(title=why or "not measured")
    return Cell(found.text, repr(found.value), note, found.interval)


def ends_sentence(found: Sequence[End]) -> str:
    """Plainly: which curves do not reach 100 % success."""
    if not found:
        return ""
    measured = [e for e in found if e.success.value is not None]
    short = [e for e in measured if not e.complete]
    curves = "curve" if len(measured) == 1 else "curves"
    if not short:
        return f"Every budget curve here reaches 100{SPACE}% success." if measured else ""
    named = [f"{e.name} ({e.success.text} at {e.largest})" for e in short[:6]]
    more = f", and {len(short) - 6} more" if len(short) > 6 else ""
    return (
        f"{len(short)} of {len(measured)} {curves} stop{'s' if len(short) == 1 else ''} short of 100{SPACE}% success "
        f"at the largest budget: {', '.join(named)}{more}. Such a curve is a lower bound: a stronger attack, "
        "or a larger budget, may get further."
    )
