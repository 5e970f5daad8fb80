"""Entries of a finished run, from its tables alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from ...harness.core.errors import UsageError
from ..read.run_directory import Row, Run, check_scores, mapping, objects, quantity, words
from ..read.scores import OTHER_ACCURACY, PublishedSeed, gives, published_seeds, read_scores
from .images import ImageTable, SeedImages, digest_of
from .metrics import metrics_of, sample_of_table
from .schema import Claims, Entry, Images, Metrics, Part, Protocol, Threat, rounded

if TYPE_CHECKING:
    import pandas

DECIDES_NO_NUMBER = True

NO_SCORES = "its run published no scores"


@dataclass(frozen=True)
class Written:
    """An entry and its table, if it has one."""

    entry: Entry
    table: ImageTable | None


def entries_of(run: Run, contributor: str = "", detector: str = "") -> Iterator[Written]:
    """Yield an entry for every row of a run's leaderboard, ``none`` included.

    Args:
        run: as :func:`~..read.run_directory.read_run` gives it.
        contributor: who stands for it, as the board names them.
        detector: only the rows of this label, and ``none``.

    Raises:
        UsageError: if the run is of another version, has no such detector or was changed after it was written.
    """
    if not mapping(run.facts.get("protocols")):
        raise UsageError(f"{run.path} is not a run of this version: run its suite again.")
    check_scores(run.path, run.facts)
    rows = [r for r in run.rows("leaderboard") if not detector or r.text("detector") in (detector, "none")]
    if detector and not any(r.text("detector") == detector for r in rows):
        known = ", ".join(dict.fromkeys(r.text("detector") for r in run.rows("leaderboard")))
        raise UsageError(f"{run.path} has no detector {detector!r}: it has {known}.")
    kinds = {p.text("perturbation"): p.text("kind") for p in run.rows("perturbations")}
    scores: dict[str, pandas.DataFrame | None] = {}
    for row in rows:
        norm = row.text("norm")
        if norm not in scores:
            scores[norm] = read_scores(run.path, norm)
        yield _entry(run, row, scores[norm], kinds, contributor)


def _entry(
    run: Run, row: Row, scores: pandas.DataFrame | None, kinds: Mapping[str, str], contributor: str
) -> Written:  # fmt: skip
    detector, images = row.text("detector"), int(row.number("n_images") or 0)
    stated = row.number("robust_accuracy_at_fpr_5")
    table, missing = _table(run, row, scores, kinds), ""
    if table is None:
        missing = NO_SCORES
    elif stated is not None:
        sample = sample_of_table(table, detector, images)
        if sample is None or not gives(sample, stated):
            table, missing = None, OTHER_ACCURACY
    about = None
    metrics = _stated(row, images)
    if table is not None:
        # By what anybody can compute again, where the row has a number at all.
        found = metrics_of(table, detector, images)
        kept: dict[str, Any] = found.model_dump() if stated is not None else {"n_images": images}
        if row.number("adaptive_undetected_at_fpr_5") is None:
            kept["adaptive_undetected_at_fpr_5"] = None
        metrics = Metrics.model_validate(kept)
        lines = sum(len(s.scores.calibrate) + len(s.scores.index) for s in table.seeds)
        about = Images(sha256=digest_of(table.content), rows=lines, reach=table.reach)
    digests = mapping(run.facts.get("digests"))
    entry = Entry(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        contributor=contributor,
        suite=run.name,
        dataset=row.text("dataset"),
        model=row.text("model"),
        detector=detector,
        part=_part(run, detector),
        threat=threat_of(run, row),
        protocol=_protocol(run, row),
        data_digest=words(digests.get("data")) or None,
        weights_digest=words(mapping(digests.get("weights")).get(row.text("model"))) or None,
        metrics=metrics,
        claims=_claims(run, row),
        images=about,
        images_missing=missing,
        versions={k: words(v) for k, v in mapping(run.facts.get("versions")).items()},
        hardware={k: words(v) for k, v in mapping(run.facts.get("hardware")).items()},
    )
    return Written(entry, table)


def threat_of(run: Run, row: Row) -> Threat:
    """Return the threat of a row as its protocol has it: tables hold six digits, which 8/255 is not."""
    said = mapping(mapping(mapping(run.facts.get("protocols")).get(row.text("model"))).get("content"))
    threat = mapping(said.get("threat"))
    exact, written = quantity(threat.get("eps")), float(row.text("eps"))
    same = exact is not None and math.isclose(exact, written, rel_tol=1e-5) and threat.get("norm") == row.text("norm")
    return Threat.model_validate({"norm": row.text("norm"), "eps": exact if same else written})


def _table(run: Run, row: Row, scores: pandas.DataFrame | None, kinds: Mapping[str, str]) -> ImageTable | None:
    if scores is None:
        return None
    own = scores[(scores["dataset"] == row.text("dataset")) & (scores["model"] == row.text("model"))]
    seeds = published_seeds(own, row.text("detector"), kinds, row.text("norm"), float(row.text("eps")))
    if not seeds:
        return None
    found = [
        r
        for r in run.rows("radii")
        if all(r.text(c) == row.text(c) for c in ("dataset", "model", "detector")) and r.number("index") is not None
    ]
    distances = {(r.text("seed"), r.number("index")): (r.number("r0"), r.number("rd")) for r in found}
    reach = next((value for r in found if (value := r.number("reach")) is not None), None)
    return ImageTable([_with_distances(s, distances) for s in seeds], reach)


def _with_distances(
    seed: PublishedSeed, distances: Mapping[tuple[str, float | None], tuple[float | None, float | None]]
) -> SeedImages:
    pairs = [distances.get((seed.seed, float(index))) for index in seed.index.tolist()]
    r0, rd = (
        np.array([np.nan if pair is None else np.inf if pair[i] is None else pair[i] for pair in pairs]) for i in (0, 1)
    )
    return SeedImages(seed, r0.astype(np.float64), rd.astype(np.float64))


def _stated(row: Row, images: int) -> Metrics:
    known = {name: rounded(row.numbers.get(name)) for name in Metrics.model_fields if name in row.numbers}
    whole = {name: None if value is None else int(value) for name, value in known.items() if name.startswith("n_")}
    return Metrics.model_validate({**known, **whole, "n_images": images})


def _claims(run: Run, row: Row) -> Claims:
    numbers: dict[str, Any] = {k: rounded(row.numbers[k]) for k in Claims.model_fields if k in row.numbers}
    for name in ("n_unseen", "robust_accuracy_is_upper_bound"):
        numbers[name] = None if numbers.get(name) is None else int(numbers[name])
    texts = {k: words(row.texts[k]) for k in Claims.model_fields if k in row.texts}
    return Claims.model_validate({**numbers, **texts, "clean_accuracy": _clean_accuracy(run, row)})


def _part(run: Run, detector: str) -> Part | None:
    resolved = objects(mapping(run.facts.get("resolved")).get("detectors"))
    found = next((d for d in resolved if words(d.get("label")) == detector), None)
    return None if found is None else Part.model_validate({k: found[k] for k in Part.model_fields if k in found})


def _protocol(run: Run, row: Row) -> Protocol:
    said = mapping(mapping(run.facts.get("protocols")).get(row.text("model")))
    seeds = [int(words(seed)) for seed in row.text("seeds").split()]
    suite_seeds = run.facts.get("seeds")
    return Protocol.model_validate(
        {
            **{k: said[k] for k in ("version", "digest", "series", "content") if k in said},
            "seeds": suite_seeds if isinstance(suite_seeds, list) else seeds,
            "floor": dict(mapping(run.facts.get("floor"))),
        }
    )


def _clean_accuracy(run: Run, row: Row) -> float | None:
    found = [
        value
        for m in objects(run.facts.get("models"))
        if words(m.get("model")) == row.text("model") and isinstance(value := m.get("clean_accuracy"), float)
    ]
    return rounded(float(np.mean(found))) if found else None
