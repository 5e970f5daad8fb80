"""Ranks of rows from several runs: tested image by image on the scores that the runs published.

A rank compares rows, so it cannot be taken from the table of one run. Rows of one protocol digest are about the same
images, and ``scores.csv.gz`` holds all that the ranking needs of each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...harness.evaluation.radii import Ranks, both_ranks
from ...harness.statistics.ranks import RowSample
from ..read.distances import published_distances
from ..read.run_directory import Row
from ..read.scores import OTHER_ACCURACY, gives, read_scores, sample_of, usual_shape
from .matrices_and_curves import grouped

if TYPE_CHECKING:
    import pandas

NO_SCORES = "its run holds no scores to compare it with rows of other runs"
OTHER_IMAGES = "it is about other images than most rows here"


def common_ranks(
    rows: Sequence[Row],
    origins: Mapping[str, tuple[Path, str]],
    perturbations: Sequence[Row],
    radii: Sequence[Row] = (),
) -> list[Row]:
    """Return the rows of one data set, model and digest from several runs, ranked by tests over all of them.

    A row has no rank if it had none in its run, or with the reason :data:`NO_SCORES`, :data:`OTHER_ACCURACY` or
    :data:`OTHER_IMAGES` where it cannot be compared image by image.

    Args:
        rows: of ``leaderboard.csv``, of one or several threats.
        origins: by a row's label, the run's directory and the label there.
        perturbations: of ``perturbations.csv``.
        radii: of ``radii.csv``, whose distances order rows that robust accuracy leaves together.
    """
    kinds = {p.text("perturbation"): p.text("kind") for p in perturbations}
    read: dict[tuple[Path, str], pandas.DataFrame | None] = {}
    found: dict[int, Ranks] = {}
    reasons: dict[int, str] = {}
    for (norm, _), group in grouped(rows, "norm", "eps").items():
        able: list[Row] = []
        samples: list[RowSample] = []
        for row in (r for r in group if r.number("rank") is not None):
            path, label = origins.get(row.text("detector"), (Path(), ""))
            if (path, norm) not in read:
                read[path, norm] = read_scores(path, norm)
            sample = _sample(read[path, norm], row, label, kinds)
            if sample is None:
                reasons[id(row)] = NO_SCORES
            elif not gives(sample, row.number("robust_accuracy_at_fpr_5")):
                reasons[id(row)] = OTHER_ACCURACY
            else:
                able.append(row)
                samples.append(sample)
        # Rows of other numbers of images cannot be compared image by image: the most common shape is kept.
        usual = usual_shape(s.robust for s in samples)
        kept = [(r, s) for r, s in zip(able, samples, strict=True) if s.robust.shape == usual]
        reasons |= {id(r): OTHER_IMAGES for r, s in zip(able, samples, strict=True) if s.robust.shape != usual}
        if kept:
            distances = published_distances(radii, [r.text("detector") for r, _ in kept])
            places = both_ranks([s for _, s in kept], distances)
            found |= {id(r): placed for (r, _), placed in zip(kept, places, strict=True)}
    return [_ranked(row, found.get(id(row)), reasons.get(id(row), "")) for row in rows]


def _ranked(row: Row, placed: Ranks | None, reason: str) -> Row:
    texts = {**row.texts, "not_ranked_reason": reason} if reason else row.texts
    return Row(texts, {**row.numbers, **Ranks.cells(placed)}, row.tallies)


def _sample(scores: pandas.DataFrame | None, row: Row, label: str, kinds: Mapping[str, str]) -> RowSample | None:
    images, norm = row.number("n_images"), row.text("norm")
    try:
        eps = float(row.text("eps"))
    except ValueError:
        return None
    if scores is None or images is None:
        return None
    images = min(images, len(scores))
    own = scores[(scores["dataset"] == row.text("dataset")) & (scores["model"] == row.text("model"))]
    return sample_of(own, label, kinds, norm, eps, int(images))
