"""ClaDec's curves and galleries: originals beside what the sources decode."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ....harness.statistics.intervals import Estimate
from ...common.text import methods, series
from ...findings import Figure, Lines, Pictures, Series
from ..measured import Decoded, Reading
from ..training import Source
from .tables import MEASURES


def figures(measured: Decoded) -> list[Figure]:
    """In the order in which they are shown."""
    found: list[Figure] = [_gallery(measured, tap) for tap in measured.taps]
    found += [
        _by_depth(measured, "squared_error", "Reconstruction error", "mean squared error per pixel"),
        _by_depth(measured, "fresh_accuracy", "What fresh classifiers read in the reconstructions", "accuracy"),
    ]
    if measured.retrained:
        found.append(_by_depth(measured, "retrained_accuracy", "What can be learnt from reconstructions", "accuracy"))
    if len(measured.decoders) > 1:
        found += [_trade_off(measured, "squared_error"), _trade_off(measured, "fresh_accuracy", "own_accuracy")]
    found.append(_learning(measured))
    for reading in measured.readings:
        found += [_attack(measured, reading), _attacked_gallery(measured, reading)]
    return found


def _curve(name: str, found: Sequence[Estimate | None], dashed: bool = False) -> Series:
    return series(name, found, "dashed" if dashed else "solid")


def _flat(name: str, value: float, count: int) -> Series:
    return Series(name, [value] * count, style="dotted")


def _by_depth(measured: Decoded, measure: str, title: str, unit: str) -> Lines:
    found = [[measured.estimate(t, s, measure) for t in measured.taps] for s in measured.sources]
    curves = [_curve(s.name, f, s.encoder != "own") for s, f in zip(measured.sources, found, strict=True)]
    if measure == "squared_error":
        curves.append(_flat("mean image", measured.mean_error, len(measured.taps)))
    else:
        curves.append(_flat("originals", measured.baseline(measure).value, len(measured.taps)))
    caption = (
        f"{MEASURES[measure].capitalize()}, on {measured.tested_on} evaluate images and {measured.seeds} "
        f"seed{'s' * (measured.seeds > 1)}; bands: {methods(found[0])}."
    )
    return Lines(
        title, caption, measured.taps, "tap, by depth", unit, curves, (0.0, 1.0) if unit == "accuracy" else None
    )


def _trade_off(measured: Decoded, measure: str, beside: str | None = None) -> Lines:
    curves = []
    for tap in measured.taps:
        for name in (measure, beside) if beside else (measure,):
            found = [measured.estimate(tap, s, name) for s in measured.decoders]
            curves.append(_curve(f"{tap}{' (classifier under study)' * (name == beside)}", found, name == beside))
    title = "Fidelity trade-off: class" if beside else "Fidelity trade-off: error"
    caption = "ClaDec by the weight of the classification loss. " + (
        "Solid: fresh classifiers. Dashed: the classifier under study, which took part in the loss; what it alone "
        "reads is not class information."
        if beside
        else "Error against the original image."
    )
    unit, limits = ("accuracy", (0.0, 1.0)) if beside else ("mean squared error per pixel", None)
    return Lines(title, caption, [f"{s.alpha:g}" for s in measured.decoders], "α", unit, curves, limits)


def _learning(measured: Decoded) -> Lines:
    curves = []
    for tap in measured.taps:
        for source in (measured.decoders[0], measured.source("refae")):
            if source is not None:
                means = torch.tensor(measured.curves[tap, source]).mean(0)
                curves.append(
                    Series(
                        f"{tap}: {source.name}", means.tolist(), style="dashed" if source.kind == "refae" else "solid"
                    )
                )
    return Lines(
        "Learning curves", "Error on the training images, mean over seeds. The learning rate ends at 0, which "
        "flattens every curve: only more epochs show whether more training would help.",
        list(range(1, measured.budget.epochs + 1)), "epoch", "mean squared error per pixel", curves,
    )  # fmt: skip


def _attack(measured: Decoded, reading: Reading) -> Lines:
    first, places = measured.decoders[0], ["image", *measured.taps]

    def column(measure: str, source: Source) -> list[Estimate | None]:
        return [reading.estimate(p, "" if p == "image" else source.name, measure) for p in places]

    curves = [
        _curve("read as the predicted class", column("reached", first)),
        _curve("read as the true class", column("true", first)),
        _curve("nearer to the predicted class", column("nearer", first)),
        _curve("noise control: read as the predicted class", column("control_reached", first), True),
    ]
    reference = measured.source("refae")
    if reference is not None:
        curves.append(_curve("RefAE: read as the predicted class", column("reached", reference), True))
    caption = (
        f"{reading.images} successes of {reading.label} ({reading.controls} noise controls), decoded with "
        f"{first.name} and read by fresh classifiers; 'image': not decoded. Nearer: the reconstruction lies nearer to "
        "the mean reconstruction of the predicted class than to that of the true class. Bands: "
        f"{methods(column('reached', first))}."
    )
    return Lines(
        f"{reading.label}: from which layer on the predicted class is decoded", caption, places, "tap, by depth",
        "share of successes", curves, (0.0, 1.0),
    )  # fmt: skip


def _gallery(measured: Decoded, tap: str) -> Pictures:
    """Originals, RefAE, ClaDec, their difference, and the random encoder at one tap, by the first seed."""
    first, reference, random = measured.decoders[0], measured.source("refae"), measured.source("random")
    decoded = measured.gallery[tap, first]
    rows: list[tuple[str, Tensor]] = [("original", measured.images[: len(decoded)])]
    if reference is not None:
        rows.append((reference.name, measured.gallery[tap, reference]))
    rows += [(s.name, measured.gallery[tap, s]) for s in measured.decoders]
    if reference is not None:
        rows.append(("|ClaDec − RefAE|", (decoded - measured.gallery[tap, reference]).abs()))
    if random is not None:
        rows.append((random.name, measured.gallery[tap, random]))
    caption = "Evaluate images, decoded by the first repetition; columns are true classes." + (
        f" How {first.name} differs from the RefAE is what ClaDec shows of the classifier: both share the blur."
        if reference is not None
        else ""
    )
    labels = [measured.classes[int(c)] for c in measured.labels[: len(decoded)]]
    images = torch.stack([images for _, images in rows]).clamp(0, 1)
    return Pictures(f"Decoded from {tap}", caption, images, [name for name, _ in rows], labels)


def _attacked_gallery(measured: Decoded, reading: Reading) -> Pictures:
    """Originals, successes, and what ClaDec decodes from them at every tap."""
    first = measured.decoders[0]
    count = len(reading.shown[measured.taps[0], first])
    rows = [("original", reading.originals[:count]), (f"after {reading.label}", reading.perturbed[:count])]
    rows += [(tap, reading.shown[tap, first]) for tap in measured.taps]
    labels = [
        f"{measured.classes[a]} → {measured.classes[b]}"
        for a, b in zip(reading.true[:count].tolist(), reading.reached[:count].tolist(), strict=True)
    ]
    images = torch.stack([images for _, images in rows]).clamp(0, 1)
    return Pictures(
        f"{reading.label}: decoded from every tap",
        f"Successes and what {first.name} decodes of them (first repetition); columns: true class → class that the "
        "model predicts now.",
        images, [name for name, _ in rows], labels,
    )  # fmt: skip
