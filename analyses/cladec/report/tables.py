"""ClaDec's findings: what was measured as sentences, tables and curves."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from ...findings import Figure, Findings, Lines, Series, Table, Value, in_words
from ..attacked import Reading
from ..measures import Estimate
from ..study import Study
from ..training import Source
from .figures import attacked_gallery, gallery
from .text import sentences

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


def report(study: Study) -> Findings:
    """Sentences, tables and figures of a study."""
    figures: list[Figure] = [gallery(study, tap) for tap in study.names]
    figures += [
        _by_depth(study, "squared_error", "Reconstruction error", "mean squared error per pixel"),
        _by_depth(study, "fresh_accuracy", "What fresh classifiers read in the reconstructions", "accuracy"),
    ]
    if study.retrained:
        figures.append(_by_depth(study, "retrained_accuracy", "What can be learnt from reconstructions", "accuracy"))
    if len(study.decoders) > 1:
        figures += [_trade_off(study, "squared_error"), _trade_off(study, "fresh_accuracy", "own_accuracy")]
    figures.append(_learning(study))
    for reading in study.readings:
        figures += [_attack(study, reading), attacked_gallery(study, reading)]
    tables = [_summary(study), _measures(study), _differences(study), _curves(study)]
    if study.readings:
        tables.append(_attacks(study))
    if study.causes:
        tables += [_causes(study), _units(study)]
    return Findings(in_words(sentences(study)), figures, tables)


def alpha_sum(alpha: float, pixels: int) -> float:
    """The alpha that weighs the same where the error is a sum over an image's values instead of their mean."""
    return alpha if alpha in (0, 1) else 1 / (1 + (1 - alpha) / (alpha * pixels))


def _cells(found: Estimate | None) -> list[Value]:
    return [None, None, None] if found is None else [found.mean, found.low, found.high]


def _series(name: str, found: Sequence[Estimate | None], dashed: bool = False) -> Series:
    columns = zip(*(_cells(f) for f in found), strict=True)
    y, low, high = ([v if isinstance(v, float) else None for v in column] for column in columns)
    return Series(name, y, low, high, "dashed" if dashed else "solid")


def _flat(name: str, value: float, count: int) -> Series:
    return Series(name, [value] * count, style="dotted")


def _by_depth(study: Study, measure: str, title: str, unit: str) -> Lines:
    series = [
        _series(s.name, [study.measured.estimate((t, s), measure) for t in study.names], s.encoder != "own")
        for s in study.sources
    ]
    if measure == "squared_error":
        series.append(_flat("mean image", study.mean_error, len(study.taps)))
    else:
        series.append(_flat("originals", study.measured.baseline(measure).mean, len(study.taps)))
    caption = (
        f"{MEASURES[measure].capitalize()}, on {len(study.images)} evaluate images; bands: 95 % over images and "
        f"{study.seeds} seed{'s' * (study.seeds > 1)}."
    )
    return Lines(title, caption, study.names, "tap, by depth", unit, series, (0.0, 1.0) if unit == "accuracy" else None)


def _trade_off(study: Study, measure: str, beside: str | None = None) -> Lines:
    series = []
    for tap in study.names:
        for name in (measure, beside) if beside else (measure,):
            found = [study.measured.estimate((tap, s), name) for s in study.decoders]
            series.append(_series(f"{tap}{' (classifier under study)' * (name == beside)}", found, name == beside))
    title = "Fidelity trade-off: class" if beside else "Fidelity trade-off: error"
    caption = "ClaDec by the weight of the classification loss. " + (
        "Solid: fresh classifiers. Dashed: the classifier under study, which took part in the loss; what it alone "
        "reads is no class information."
        if beside
        else "Error against the original image."
    )
    unit, limits = ("accuracy", (0.0, 1.0)) if beside else ("mean squared error per pixel", None)
    return Lines(title, caption, [f"{s.alpha:g}" for s in study.decoders], "α", unit, series, limits)


def _learning(study: Study) -> Lines:
    series = []
    for tap in study.names:
        for source in (study.decoders[0], study.source("refae")):
            if source is not None:
                means = torch.tensor(study.curves[tap, source]).mean(0)
                series.append(
                    Series(
                        f"{tap}: {source.name}", means.tolist(), style="dashed" if source.kind == "refae" else "solid"
                    )
                )
    return Lines(
        "Learning curves", "Error on the training images, mean over seeds. The learning rate ends at 0, which "
        "flattens every curve: only more epochs show whether there is more to be had.",
        list(range(1, study.budget.epochs + 1)), "epoch", "mean squared error per pixel", series,
    )  # fmt: skip


def _attack(study: Study, reading: Reading) -> Lines:
    turned, first, places = reading.turned, study.decoders[0], ["image", *study.names]

    def column(measure: str, source: Source) -> list[Estimate | None]:
        return [reading.estimate(p, "" if p == "image" else source.name, measure) for p in places]

    series = [
        _series("read as the reached class", column("reached", first)),
        _series("read as the true class", column("true", first)),
        _series("nearer to the reached class", column("nearer", first)),
        _series("noise control: read as the reached class", column("control_reached", first), True),
    ]
    reference = study.source("refae")
    if reference is not None:
        series.append(_series("RefAE: read as the reached class", column("reached", reference), True))
    caption = (
        f"{len(turned.images)} images that {turned.label} turned ({len(turned.control)} noise controls), decoded with "
        f"{first.name} and read by fresh classifiers; 'image': not decoded. Nearer: the reconstruction lies nearer to "
        "the mean reconstruction of the reached class than to that of the true class."
    )
    return Lines(
        f"{turned.label}: from which layer on the reached class is decoded", caption, places, "tap, by depth",
        "share of turned images", series, (0.0, 1.0),
    )  # fmt: skip


def _rows(study: Study) -> list[tuple[int, str, Source]]:
    return [(depth, tap.name, source) for depth, tap in enumerate(study.taps) for source in study.sources]


def _alpha(source: Source) -> Value:
    return source.alpha if source.encoder == "own" else None


def _summary(study: Study) -> Table:
    pixels = study.images[0].numel()
    used = [m for m in MEASURES if study.retrained or not m.startswith("retrained")]
    originals: list[Value] = [None, None, "original", None, None, 0.0, 0.0]
    for measure in used[1:]:
        originals.append(1.0 if measure == "own_agreement" else study.measured.baseline(measure).mean)
    mean_image: list[Value] = [None, None, "mean image", None, None, study.mean_error, study.mean_error * pixels]
    rows: list[list[Value]] = [originals, mean_image + [None] * (len(used) - 1)]
    for depth, tap, source in _rows(study):
        means = [study.measured.estimate((tap, source), m).mean for m in used]
        weight = alpha_sum(source.alpha, pixels) if source.encoder == "own" else None
        rows.append([tap, depth, source.kind, _alpha(source), weight, means[0], means[0] * pixels, *means[1:]])
    caption = (
        "One row per tap and source of codes: means over images and seeds; alpha_sum: the same weight for an error "
        "that is summed over an image's values, as in summed_error."
    )
    columns = ["tap", "depth", "source", "alpha", "alpha_sum", "squared_error", "summed_error", *used[1:]]
    return Table("cladec-summary", caption, columns, rows)


def _measures(study: Study) -> Table:
    rows: list[list[Value]] = []
    for depth, tap, source in _rows(study):
        for measure in study.measured.values[tap, source]:
            found = study.measured.estimate((tap, source), measure)
            rows.append([tap, depth, source.kind, _alpha(source), measure, *_cells(found)])
    caption = f"Every mean with its 95 % interval over {len(study.images)} images and {study.seeds} seeds."
    columns = ["tap", "depth", "source", "alpha", "measure", "mean", "low", "high"]
    return Table("cladec-measures", caption, columns, rows)


def _differences(study: Study) -> Table:
    rows: list[list[Value]] = []
    others = [s for s in study.sources if s.encoder != "own"]
    for depth, tap in enumerate(study.names):
        for one in study.decoders:
            for other in others:
                for measure in study.measured.values[tap, one]:
                    found = study.measured.difference(tap, one, other, measure)
                    rows.append([tap, depth, one.alpha, other.kind, measure, *_cells(found)])
    caption = "ClaDec minus a control on the same images and seeds, with 95 % intervals."
    return Table(
        "cladec-differences", caption, ["tap", "depth", "alpha", "minus", "measure", "mean", "low", "high"], rows
    )


def _curves(study: Study) -> Table:
    rows: list[list[Value]] = [
        [tap, depth, source.kind, _alpha(source), seed, epoch, error]
        for depth, tap, source in _rows(study)
        for seed, curve in enumerate(study.curves[tap, source])
        for epoch, error in enumerate(curve, 1)
    ]
    columns = ["tap", "depth", "source", "alpha", "repetition", "epoch", "squared_error"]
    return Table("cladec-learning", "Error on the training images after every epoch.", columns, rows)


def _attacks(study: Study) -> Table:
    rows: list[list[Value]] = []
    for reading in study.readings:
        places: list[tuple[str, Value, Source | None]] = [("image", None, None)]
        places += [(tap, depth, source) for depth, tap, source in _rows(study)]
        for tap, depth, source in places:
            for prefix, count in (("", len(reading.turned.images)), ("control_", len(reading.turned.control))):
                for measure in ("reached", "true", "nearer"):
                    found = reading.estimate(tap, source.name if source else "", prefix + measure)
                    if found is not None:
                        name, alpha = (source.kind, _alpha(source)) if source else ("undecoded", None)
                        shown = "noise control" if prefix else "turned"
                        where: list[Value] = [tap, depth, name, alpha, reading.turned.label, shown, measure]
                        rows.append([*where, *_cells(found), count])
    caption = (
        "Turned images and their noise controls, decoded: the shares that fresh classifiers read as the reached and as "
        "the true class, and that lie nearer to the mean reconstruction of the reached class."
    )
    columns = ["tap", "depth", "source", "alpha", "perturbation", "images", "measure", "mean", "low", "high", "count"]
    return Table("cladec-perturbed", caption, columns, rows)


def _causes(study: Study) -> Table:
    rows: list[list[Value]] = []
    for (tap, source), found in study.causes.items():
        rho = found.correlation()
        rows.append([tap, study.names.index(tap), source.kind, len(found.units), *(rho or (None, None, None))])
    caption = (
        "Rank correlation, over units, between how much mixing a unit up between images moves the reconstruction and "
        "how much it moves the network's output, with 95 % intervals."
    )
    return Table("cladec-causes", caption, ["tap", "depth", "source", "units", "spearman", "low", "high"], rows)


def _units(study: Study) -> Table:
    rows: list[list[Value]] = [
        [tap, study.names.index(tap), source.kind, unit, image, output]
        for (tap, source), found in study.causes.items()
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
