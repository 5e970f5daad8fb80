"""Every number of :mod:`~aftershock.analyses.cladec`."""

from __future__ import annotations

import math

from ....harness.statistics.intervals import Estimate
from ...common.text import methods
from ...findings import Table, Value
from ..measured import Decoded
from ..training import Source

MEASURES = {
    "squared_error": "mean squared error over pixels",
    "fresh_accuracy": "accuracy of fresh classifiers trained on clean images",
    "fresh_cross_entropy": "cross-entropy of fresh classifiers trained on clean images",
    "retrained_accuracy": "accuracy of fresh classifiers trained on reconstructions",
    "retrained_cross_entropy": "cross-entropy of fresh classifiers trained on reconstructions",
    "own_accuracy": "accuracy of the classifier under study",
    "own_cross_entropy": "cross-entropy of the classifier under study",
    "own_agreement": "share that the classifier under study reads as it reads the original",
}


def tables(measured: Decoded) -> list[Table]:
    """In the order in which they are shown."""
    found = [_summary(measured), _measures(measured), _differences(measured), _curves(measured)]
    if measured.readings:
        found.append(_attacks(measured))
    return [*found, _causes(measured), _units(measured)] if measured.causes else found


def alpha_sum(alpha: float, pixels: int) -> float:
    """The alpha that weighs the same where the error is a sum over an image's values instead of their mean."""
    return alpha if alpha in (0, 1) else 1 / (1 + (1 - alpha) / (alpha * pixels))


def _rows(measured: Decoded) -> list[tuple[int, str, Source]]:
    return [(depth, tap, source) for depth, tap in enumerate(measured.taps) for source in measured.sources]


def _alpha(source: Source) -> Value:
    return source.alpha if source.encoder == "own" else None


def _summary(measured: Decoded) -> Table:
    pixels = measured.images[0].numel()
    used = [m for m in MEASURES if measured.retrained or not m.startswith("retrained")]
    originals: list[Value] = [None, None, "original", None, None, 0.0, 0.0]
    for measure in used[1:]:
        originals.append(1.0 if measure == "own_agreement" else measured.baseline(measure).value)
    mean_image: list[Value] = [None, None, "mean image", None, None, measured.mean_error, measured.mean_error * pixels]
    rows: list[list[Value]] = [originals, mean_image + [None] * (len(used) - 1)]
    for depth, tap, source in _rows(measured):
        means = [measured.estimate(tap, source, m).value for m in used]
        weight = alpha_sum(source.alpha, pixels) if source.encoder == "own" else None
        rows.append([tap, depth, source.kind, _alpha(source), weight, means[0], means[0] * pixels, *means[1:]])
    caption = (
        "One row per tap and source of codes: means over images and seeds; alpha_sum: the same weight for an error "
        "that is summed over an image's values, as in summed_error."
    )
    columns = ["tap", "depth", "source", "alpha", "alpha_sum", "squared_error", "summed_error", *used[1:]]
    return Table("cladec-summary", caption, columns, rows)


def _measures(measured: Decoded) -> Table:
    rows: list[list[Value]] = []
    seen: list[Estimate] = []
    for depth, tap, source in _rows(measured):
        for measure in measured.values[tap, source]:
            found = measured.estimate(tap, source, measure)
            rows.append([tap, depth, source.kind, _alpha(source), measure, *found.ends])
            seen.append(found)
    caption = f"Every mean over {measured.tested_on} images and {measured.seeds} seeds, with {methods(seen)}."
    columns = ["tap", "depth", "source", "alpha", "measure", "mean", "low", "high"]
    return Table("cladec-measures", caption, columns, rows)


def _differences(measured: Decoded) -> Table:
    rows: list[list[Value]] = []
    seen: list[Estimate] = []
    others = [s for s in measured.sources if s.encoder != "own"]
    for depth, tap in enumerate(measured.taps):
        for one in measured.decoders:
            for other in others:
                for measure in measured.values[tap, one]:
                    found = measured.difference(tap, one, other, measure)
                    rows.append([tap, depth, one.alpha, other.kind, measure, *found.ends])
                    seen.append(found)
    caption = f"ClaDec minus a control on the same images and seeds, with {methods(seen)}."
    return Table(
        "cladec-differences", caption, ["tap", "depth", "alpha", "minus", "measure", "mean", "low", "high"], rows
    )


def _curves(measured: Decoded) -> Table:
    rows: list[list[Value]] = [
        [tap, depth, source.kind, _alpha(source), seed, epoch, error]
        for depth, tap, source in _rows(measured)
        for seed, curve in enumerate(measured.curves[tap, source])
        for epoch, error in enumerate(curve, 1)
    ]
    columns = ["tap", "depth", "source", "alpha", "repetition", "epoch", "squared_error"]
    return Table("cladec-learning", "Error on the training images after every epoch.", columns, rows)


def _attacks(measured: Decoded) -> Table:
    rows: list[list[Value]] = []
    seen: list[Estimate] = []
    for reading in measured.readings:
        places: list[tuple[str, Value, Source | None]] = [("image", None, None)]
        places += [(tap, depth, source) for depth, tap, source in _rows(measured)]
        for tap, depth, source in places:
            for prefix, count in (("", reading.images), ("control_", reading.controls)):
                for measure in ("reached", "true", "nearer"):
                    found = reading.estimate(tap, source.name if source else "", prefix + measure)
                    if found is not None:
                        name, alpha = (source.kind, _alpha(source)) if source else ("undecoded", None)
                        shown = "noise control" if prefix else "turned"
                        where: list[Value] = [tap, depth, name, alpha, reading.label, shown, measure]
                        rows.append([*where, *found.ends, count])
                        seen.append(found)
    caption = (
        "Successes (turned) and their noise controls, decoded: the shares that independent classifiers read as the "
        "predicted (reached) and as the true class, and that lie nearer to the mean reconstruction of the predicted "
        f"class, with {methods(seen)}."
    )
    columns = ["tap", "depth", "source", "alpha", "perturbation", "images", "measure", "mean", "low", "high", "count"]
    return Table("cladec-perturbed", caption, columns, rows)


def _causes(measured: Decoded) -> Table:
    rows: list[list[Value]] = []
    effects = [found.correlation() for found in measured.causes.values()]
    for ((tap, source), found), rho in zip(measured.causes.items(), effects, strict=True):
        ends = (None, None, None) if rho is None else rho.ends
        rows.append([tap, measured.taps.index(tap), source.kind, len(found.units), *ends])
    caption = (
        "Rank correlation, over units, between how much mixing a unit up between images moves the reconstruction and "
        f"how much it moves the network's output, with {methods(effects)}."
    )
    return Table("cladec-causes", caption, ["tap", "depth", "source", "units", "spearman", "low", "high"], rows)


def _units(measured: Decoded) -> Table:
    rows: list[list[Value]] = [
        [tap, measured.taps.index(tap), source.kind, unit, image, output]
        for (tap, source), found in measured.causes.items()
        for unit, image, output in zip(
            found.units.tolist(), found.on_image.tolist(), found.on_output.tolist(), strict=True
        )
        if math.isfinite(image) and math.isfinite(output)
    ]
    caption = (
        "Single units (maps) mixed up between images: mean squared change of the reconstruction, and mean total "
        "variation distance between the class probabilities."
    )
    return Table("cladec-units", caption, ["tap", "depth", "source", "unit", "on_image", "on_output"], rows)
