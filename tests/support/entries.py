"""Entries with planted scores, consistent in everything that can be checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from aftershock.harness.core.content_keys import PROTOCOL_VERSION
from aftershock.harness.core.protocol_content import ProtocolContent, positions_digest
from aftershock.harness.evaluation.rankability import FLOOR, FLOOR_IMAGES
from aftershock.reports.entries.folder import write_entry
from aftershock.reports.entries.from_run import Written
from aftershock.reports.entries.images import ImageTable, SeedImages, digest_of
from aftershock.reports.entries.metrics import metrics_of
from aftershock.reports.entries.schema import Claims, Entry, Images, Part, Protocol, Threat
from aftershock.reports.read.scores import PublishedSeed

EPS, REACH, CALIBRATE, EVALUATE, RANKED, PRICED = 0.1, 0.5, 220, 90, 70, 60
CALIBRATED, EVALUATED = np.arange(CALIBRATE) * 3 + 1, np.arange(EVALUATE)[::-1] * 7
WEIGHTS, DATA = "b" * 64, "a" * 64


def table(
    detector: str = "msp", seeds: Sequence[int] = (0, 1), passing: float = 0.6, dearer: float = 1.3
) -> ImageTable:
    """Scores whose threshold is near 1.65; ``passing`` of the images are fooled and passed within the threat."""
    return ImageTable([_seed(detector, seed, passing, dearer) for seed in seeds], REACH)


def _seed(detector: str, seed: int, passing: float, dearer: float) -> SeedImages:
    draw = np.random.default_rng([seed, len(detector)])
    # What the model gets right and how far its boundary is does not depend on the detector.
    model = np.random.default_rng([seed, 77])
    right = model.random(EVALUATE) > 0.05
    r0 = np.round(model.uniform(0.02, 0.2, EVALUATE), 6)
    r0[model.random(EVALUATE) < 0.05] = np.inf
    calibrate, clean = draw.normal(size=CALIBRATE), draw.normal(size=EVALUATE)
    lowest = np.where(draw.random(EVALUATE) < passing, 0.0, 4.0) + draw.random(EVALUATE)
    lowest[r0 > EPS] = np.inf
    rd = np.minimum(r0 * dearer, np.where(r0 * dearer > REACH, np.inf, r0 * dearer))
    if detector == "none":
        calibrate, clean, rd = np.zeros(CALIBRATE), np.zeros(EVALUATE), r0
        lowest = np.where(np.isfinite(lowest), 0.0, np.inf)
    lowest[~right] = np.inf
    outside = np.ones(EVALUATE, bool)
    outside[np.flatnonzero(right)[:PRICED]] = False
    r0, rd = (np.where(outside, np.nan, values) for values in (r0, rd))
    scores = PublishedSeed(str(seed), CALIBRATED, _nine(calibrate), EVALUATED, right, _nine(clean), _nine(lowest))
    return SeedImages(scores, _nine(r0), _nine(rd))


def _nine(values: np.ndarray) -> np.ndarray:
    """Values as a table holds them."""
    return np.array([float(f"{v:.9g}") for v in values])


def content(**changed: Any) -> dict[str, Any]:
    """What the digest of the planted protocol is made of."""
    return {
        "data": DATA,
        "model": {"name": "mlp", "weights": WEIGHTS},
        "splits": ["c" * 64, positions_digest("test", CALIBRATED), positions_digest("test", EVALUATED)],
        "perturbations": [["pgd", "pgd", [{"eps": EPS}, []], ""], ["adaptive", "adaptive", [{"eps": EPS}, []], ""]],
        "threat": {"norm": "linf", "eps": EPS},
        "price_images": PRICED,
    } | changed


def written(
    detector: str = "msp", contributor: str = "Jane Doe", images: ImageTable | None = None,
    claims: Mapping[str, Any] | None = None, seeds: Sequence[int] = (0, 1), **planted: float,
) -> Written:  # fmt: skip
    """An entry with its table."""
    if images is None and claims is None:
        return _plain(detector, contributor, tuple(seeds), tuple(sorted(planted.items())))
    return _made(detector, contributor, images, claims, seeds, **planted)


@cache
def _plain(
    detector: str, contributor: str, seeds: tuple[int, ...], planted: tuple[tuple[str, float], ...]
) -> Written:  # fmt: skip
    """The same entry for the same arguments: its intervals are resampled only once."""
    return _made(detector, contributor, None, None, seeds, **dict(planted))


def _made(
    detector: str, contributor: str, images: ImageTable | None, claims: Mapping[str, Any] | None,
    seeds: Sequence[int], **planted: float,
) -> Written:  # fmt: skip
    held = images or table(detector, seeds, **planted)
    whole = ProtocolContent.of(content(), tuple(seeds))
    metrics = metrics_of(held, detector, RANKED)
    floor = {"steps": FLOOR.steps, "restarts": FLOOR.restarts, "queries": FLOOR.queries, "images": FLOOR_IMAGES}
    entry = Entry(
        created="2026-11-27T00:00:00+00:00", contributor=contributor, suite="planted", dataset="digits", model="mlp",
        detector=detector, part=None if detector == "none" else Part(name=detector),
        threat=Threat(norm="linf", eps=EPS),
        protocol=Protocol(
            version=PROTOCOL_VERSION, digest=whole.digest, series=whole.series, seeds=list(seeds),
            content=dict(whole.content), floor=floor,
        ),
        data_digest=DATA, weights_digest=WEIGHTS, metrics=metrics,
        claims=Claims.model_validate({"surrogate": "exact", "robust_accuracy_is_upper_bound": 0, "worst_auroc": 0.7}
                                     | dict(claims or {})),
        images=Images(sha256=digest_of(held.content), rows=len(seeds) * (CALIBRATE + EVALUATE), reach=held.reach),
        versions={"aftershock": "0.1.0"}, hardware={"cpu": "a processor"},
    )  # fmt: skip
    return Written(entry, held)


def put(folder: Path, *entries: Written) -> list[Path]:
    """Write entries into a folder."""
    return [write_entry(one, folder) for one in entries]


def with_seed(held: ImageTable, number: int, **changed: Any) -> ImageTable:
    """A table with one seed's arrays replaced: those of the scores, or ``r0`` and ``rd``."""
    seeds = list(held.seeds)
    of_scores = {k: v for k, v in changed.items() if k not in ("r0", "rd")}
    distances = {k: v for k, v in changed.items() if k in ("r0", "rd")}
    seeds[number] = replace(seeds[number], scores=replace(seeds[number].scores, **of_scores), **distances)
    return ImageTable(seeds, held.reach)
