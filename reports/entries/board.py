"""The site of a folder of entries: each is checked, ranked among those that it can be compared with, and marked.

Rows compare only within one data set, model, threat and protocol digest, and only where they are about the same images
of the same model; others are listed without a rank.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...harness.core.errors import AftershockError
from ...harness.evaluation.radii import Distances, Ranks, both_ranks
from ...harness.evaluation.rankability import ABLATION
from ...harness.statistics.ranks import RowSample
from ..read.run_directory import OPTIONAL, TABLES, Row, Run
from ..read.scores import usual_shape
from ..site.build import site_of
from ..site.entry_pages import EntryLine
from ..site.writing import write_site
from .folder import Folder
from .images import ImageTable
from .metrics import sample_of_table
from .recomputed import Marks
from .schema import Entry
from .verify import Verified

DECIDES_NO_NUMBER = True

NO_TABLE = "it has no table of images to compare it with other rows"
OTHER_NUMBER = "it is about another number of images or seeds than most entries here"
OTHER_IMAGES = "its model or its images are not those of most entries here"


@dataclass(frozen=True)
class Placed:
    """One entry on a board.

    Attributes:
        verified: the entry.
        label: on the board: with the contributor where two entries share a detector's name.
        standing: ``claimed``, or who computed it again.
        ranks: ``None`` for a row that has none.
        reason: why it has none.
    """

    verified: Verified
    label: str
    standing: str
    ranks: Ranks | None
    reason: str

    @property
    def entry(self) -> Entry:
        """What it says."""
        return self.verified.entry


def build_board(folder: Folder, out: Path, marks: Marks, name: str, roots: Sequence[Path]) -> Path:
    """Write the site of some entries.

    Args:
        folder: entries that agree with themselves, and files that are refused.
        out: the folder of the site.
        marks: who computed which entry again.
        name: of the board.
        roots: where the entries lie: the site is not written through links there.

    Returns:
        ``out/index.html``.

    Raises:
        AftershockError: if a page cannot be made or written; everything else is.
    """
    placed = place_entries(folder, marks)
    run = Run(out, _facts(placed, name), _tables(placed))
    lines = [EntryLine(
        p.entry.dataset, p.entry.model, p.label, p.entry.contributor, p.entry.created[:10], p.standing,
        "; ".join(f"lowered from {c.before:.1%} by {c.images} images of {c.by}, {c.date}" for c in p.entry.challenges),
        p.reason, p.verified.path.name,
    ) for p in placed]  # fmt: skip
    files, failed = site_of([run], entries=lines, refused=[r.published for r in folder.refused])
    write_site(out, files, roots)
    if failed:
        raise AftershockError(" ".join(failed))
    return out / "index.html"


def place_entries(folder: Folder, marks: Marks) -> list[Placed]:
    """Return the entries of a folder with their ranks and what stands for them, group by group."""
    groups: dict[tuple[object, ...], list[Verified]] = {}
    for verified in sorted(folder.entries, key=lambda v: (v.entry.created, v.path.name)):
        e = verified.entry
        key = (e.dataset, e.model, e.threat.norm, e.threat.eps, e.protocol.digest)
        groups.setdefault(key, []).append(verified)
    return [placed for _, group in sorted(groups.items(), key=str) for placed in _group(group, marks)]


def _group(group: Sequence[Verified], marks: Marks) -> Iterator[Placed]:
    """Rank the entries of one table."""
    kept = [*_rows(group)]
    pictures = [_picture(v.table) for v in kept]
    usual = Counter(p for p in pictures if p).most_common(1)
    names = Counter(v.entry.detector for v in kept)
    shown: Counter[str] = Counter()
    able: list[tuple[int, RowSample, Distances | None]] = []
    reasons = []
    for number, (verified, picture) in enumerate(zip(kept, pictures, strict=True)):
        e, table = verified.entry, verified.table
        reason = e.claims.not_ranked_reason
        sample = None if table is None else sample_of_table(table, e.detector, e.metrics.n_images)
        if table is None:
            reason = reason or f"{NO_TABLE}: {e.images_missing}"
        elif usual and picture != usual[0][0]:
            reason = reason or OTHER_IMAGES
        elif not reason and sample is not None:
            able.append((number, sample, table.distances()))
        reasons.append(reason or ("" if sample is not None else "no robust accuracy"))
    found = _ranks(able)
    for number, *_ in able:
        if number not in found:
            reasons[number] = OTHER_NUMBER
    for number, verified in enumerate(kept):
        e = verified.entry
        label = e.detector
        if names[label] > 1:
            label = f"{label} ({e.contributor or 'unnamed'})"
        shown[label] += 1
        if shown[label] > 1:
            label = f"{label} {shown[label]}"
        yield Placed(verified, label, _standing(verified, marks), found.get(number), reasons[number])


def _rows(group: Sequence[Verified]) -> Iterator[Verified]:
    """Yield the entries; of rows without a detector, which every contributor has, the lowest of each model alone.

    Whoever attacked the model hardest knows best what is left of it.
    """
    bare = [v for v in group if v.entry.detector == ABLATION]
    lowest = min(bare, key=lambda v: (v.entry.metrics.robust_accuracy_at_fpr_5 is None,
                                      v.entry.metrics.robust_accuracy_at_fpr_5 or 0.0), default=None)  # fmt: skip
    for verified in group:
        if verified.entry.detector != ABLATION or verified is lowest:
            yield verified


def _picture(table: ImageTable | None) -> str:
    """Return a digest of which images a table is about and which of them the model gets right."""
    if table is None:
        return ""
    found = hashlib.sha256()
    for seed in sorted(table.seeds, key=lambda s: s.scores.seed):
        found.update(seed.scores.seed.encode())
        for values in (seed.scores.calibrate_index, seed.scores.index, seed.scores.right):
            found.update(np.ascontiguousarray(values).tobytes())
    return found.hexdigest()


def _ranks(able: Sequence[tuple[int, RowSample, Distances | None]]) -> dict[int, Ranks]:
    """Return ranks by number; rows of another shape than most cannot be compared and have none."""
    usual = usual_shape(sample.robust for _, sample, _ in able)
    kept = [(number, sample, distances) for number, sample, distances in able if sample.robust.shape == usual]
    found = both_ranks([sample for _, sample, _ in kept], _comparable([distances for *_, distances in kept]))
    return {number: placed for (number, *_), placed in zip(kept, found, strict=True)}


def _comparable(rows: Sequence[Distances | None]) -> list[Distances | None]:
    """Return distances that are about as many images and seeds as most; sign tests go image by image."""
    usual = usual_shape(row.rd for row in rows if row is not None)
    return [row if row is not None and row.rd.shape == usual else None for row in rows]


def _standing(verified: Verified, marks: Marks) -> str:
    by = [mark.by for mark in marks.of_digest(verified.digest)]
    return f"recomputed by {', '.join(by)}" if by else "claimed"


def _facts(placed: Sequence[Placed], name: str) -> dict[str, object]:
    models = {(p.entry.dataset, p.entry.model): p.entry.claims.clean_accuracy for p in placed}
    return {
        "name": name,
        "status": "done",
        "finished": max((p.entry.created for p in placed), default=""),
        "models": [{"dataset": d, "model": m, "clean_accuracy": accuracy} for (d, m), accuracy in models.items()],
    }


def _tables(placed: Sequence[Placed]) -> dict[str, list[Row]]:
    return {"leaderboard": [_row(p) for p in placed], "radii": [row for p in placed for row in _radii(p)]}


def _row(placed: Placed) -> Row:
    """Return an entry as a row of ``leaderboard.csv``."""
    e = placed.entry
    said = {**e.metrics.model_dump(), **e.claims.model_dump()}
    kinds = {**TABLES["leaderboard"], **OPTIONAL["leaderboard"]}
    numbers = {k: said.get(k) for k, kind in kinds.items() if kind == "number"}
    texts = {k: str(said.get(k) or "") for k, kind in kinds.items() if kind == "text"}
    texts |= {
        "dataset": e.dataset, "model": e.model, "detector": placed.label, "norm": e.threat.norm,
        "eps": f"{e.threat.eps:.9g}", "seeds": " ".join(map(str, e.protocol.seeds)),
        "protocol_digest": e.protocol.digest, "series_digest": e.protocol.series,
        "not_ranked_reason": placed.reason, "standing": _said(placed),
    }  # fmt: skip
    return Row(texts, {**numbers, **Ranks.cells(placed.ranks)})


def _said(placed: Placed) -> str:
    who = f" by {placed.entry.contributor}" if placed.entry.contributor and placed.standing == "claimed" else ""
    return f"{placed.standing}{who}"


def _radii(placed: Placed) -> Iterator[Row]:
    table, e = placed.verified.table, placed.entry
    if table is None or table.reach is None:
        return
    for seed in table.seeds:
        held = {"dataset": e.dataset, "model": e.model, "seed": seed.scores.seed, "detector": placed.label}
        for index, r0, rd in zip(seed.scores.index.tolist(), seed.r0.tolist(), seed.rd.tolist(), strict=True):
            if not np.isnan(r0):
                numbers = {"index": float(index), "r0": _finite(r0), "rd": _finite(rd), "reach": table.reach}
                yield Row(held, numbers)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
