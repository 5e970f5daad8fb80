"""What a reader should take away from :mod:`~aftershock.analyses.cladec`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ....harness.statistics.intervals import Estimate
from ...common.text import percent, with_interval
from ...findings import Claim, Quoted
from ..measured import IMAGE, Decoded, Reading
from ..training import Source


def claims(measured: Decoded) -> list[Claim]:
    """Two to eight, the most important first."""
    reference, random = measured.source("refae"), measured.source("random")
    found: list[Claim] = []
    if reference is not None:
        found += [_class_information(measured, reference, random), _error(measured, reference, random)]
    else:
        found.append(_alone(measured))
    if len(measured.decoders) > 1:
        found.append(_trade_off(measured))
    found += [_fooling(measured, reading) for reading in measured.readings]
    if measured.powerless:
        names = ", ".join(measured.powerless)
        text = f"No image was misclassified after {names}: there is nothing to decode."
        found.append(Claim("perturbed", names, {}, "no image", text))
    if measured.causes:
        found.append(_causes(measured))
    return [*found, _limits(measured, reference)]


def _class_information(measured: Decoded, reference: Source, random: Source | None) -> Claim:
    first, deep = measured.decoders[0], measured.taps[-1]
    read = {s.name: measured.estimate(deep, s, "fresh_accuracy") for s in (first, reference, random) if s}
    read["originals"] = measured.baseline("fresh_accuracy")
    text = (
        f"At {deep}, fresh classifiers of clean images read the class from {first.name} in "
        f"{percent(read[first.name])} of the reconstructions, from the RefAE in {percent(read[reference.name])}"
    )
    if random is not None:
        text += f", from the random encoder in {percent(read[random.name])}"
    text += f", and from the originals in {percent(read['originals'])}"
    measures = [("fresh_accuracy", "read by them")]
    if measured.retrained:
        measures.append(("retrained_accuracy", "learnt from the reconstructions, the papers' measure"))
    estimates: dict[str, Quoted] = {name: found.ends for name, found in read.items()}
    verdict = ""
    for measure, how in measures:
        parts = []
        for tap in measured.taps:
            gap = measured.difference(tap, first, reference, measure)
            verdict = _more(gap)
            estimates[f"{measure} at {tap} beyond RefAE"] = gap.ends
            parts.append(f"{verdict} than the RefAE's at {tap} ({_points(gap)})")
        text += f"; class information {how}: {', '.join(parts)}"
    return Claim("class-information", deep, estimates, verdict, f"{text}.")


def _more(gap: Estimate) -> str:
    return ("more" if gap.value > 0 else "less") if gap.differs else "no different"


def _points(gap: Estimate) -> str:
    return with_interval(gap, 1, " points", 100, "+")


def _error(measured: Decoded, reference: Source, random: Source | None) -> Claim:
    first = measured.decoders[0]
    lower = [t for t in measured.taps if measured.difference(t, first, reference, "squared_error").low > 0]
    parts = []
    estimates: dict[str, Quoted] = {"mean image": measured.mean_error, "taps where RefAE is better": len(lower)}
    for tap in measured.taps:
        means = {s.name: measured.estimate(tap, s, "squared_error") for s in (first, reference, random) if s}
        estimates |= {f"{name} at {tap}": found.ends for name, found in means.items()}
        parts.append(f"at {tap} {', '.join(f'{name} {found.value:.4f}' for name, found in means.items())}")
    text = (
        f"The RefAE reconstructs reliably better in {len(lower)} of {len(measured.taps)} taps (mean squared error, "
        f"where the mean image has {measured.mean_error:.4f}: {'; '.join(parts)})."
    )
    return Claim("error", "", estimates, sentence=text)


def _alone(measured: Decoded) -> Claim:
    first = measured.decoders[0]
    read = {t: measured.estimate(t, first, "fresh_accuracy") for t in measured.taps}
    parts = [
        f"{percent(found)} at {t} (mean squared error {measured.estimate(t, first, 'squared_error').value:.4f})"
        for t, found in read.items()
    ]
    text = (
        "There is no untrained network of this architecture, so neither RefAE nor random encoder: what the decoders "
        f"show may be the architecture's own; small CNNs read the class in {', '.join(parts)} of the reconstructions."
    )
    estimates = {t: found.ends for t, found in read.items()}
    return Claim("class-information", "", dict(estimates), "no untrained network", text)


def _trade_off(measured: Decoded) -> Claim:
    low, high, deep = measured.decoders[0], measured.decoders[-1], measured.taps[-1]
    fresh = measured.difference(deep, high, low, "fresh_accuracy")
    own = measured.difference(deep, high, low, "own_accuracy")
    errors = [measured.estimate(deep, s, "squared_error").value for s in (low, high)]
    text = (
        f"From α = {low.alpha:g} to {high.alpha:g}, {deep}: error {errors[0]:.4f} to {errors[1]:.4f}, accuracy of "
        f"fresh classifiers {_points(fresh)}, of the classifier under study {_points(own)}; a gain that it alone "
        "shows is a pattern that it responds to, not class information."
    )
    estimates: dict[str, Quoted] = {"fresh classifiers": fresh.ends, "classifier under study": own.ends}
    return Claim("trade-off", deep, estimates, sentence=text)


def _fooling(measured: Decoded, reading: Reading) -> Claim:
    first, deep = measured.decoders[0].name, measured.taps[-1]
    tap = reading.turning(measured.taps, first)
    text = f"{reading.label} ({reading.images} successes): " + (
        f"from {tap} on, the decoded image is read as the predicted class more often than as the true one"
        if tap
        else "at no depth is the decoded image read as the reached class reliably more often than as the true one"
    )
    parts = []
    estimates: dict[str, Quoted] = {"images": reading.images}
    for where, source, name in ((IMAGE, "", "undecoded"), (deep, first, f"decoded from {deep}")):
        told = []
        for measure, words in (("reached", "reached"), ("true", "true"), ("control_reached", "noise control reached")):
            share = reading.estimate(where, source, measure)
            if share is not None:
                estimates[f"{name}: {words}"] = share.ends
                told.append(f"{words} {percent(share)}")
        parts.append(f"{name}: {', '.join(told)}")
    reference = measured.source("refae")
    share = None if reference is None else reading.estimate(deep, reference.name, "reached")
    if share is not None:
        estimates["RefAE: reached"] = share.ends
        parts.append(f"RefAE there: reached {percent(share)}")
    verdict = f"read as the predicted class from {tap} on" if tap else "at no depth"
    return Claim("perturbed", reading.label, estimates, verdict, f"{text} ({'; '.join(parts)}).")


def _causes(measured: Decoded) -> Claim:
    parts = []
    estimates: dict[str, Quoted] = {}
    for tap in measured.taps:
        values = []
        for who, rho in _correlations(measured, tap):
            estimates[f"{who} at {tap}"] = rho.ends
            values.append(f"{who} {with_interval(rho)}")
        parts.append(f"{tap}: {', '.join(values) or 'not defined'}")
    text = (
        "What can be decoded need not be used: over units, the rank correlation between how much a unit changes the "
        f"picture and how much it changes the network's output is {'; '.join(parts)}."
    )
    return Claim("used", "", estimates, sentence=text)


def _correlations(measured: Decoded, tap: str) -> Iterator[tuple[str, Estimate]]:
    for (name, source), found in measured.causes.items():
        rho = found.correlation() if name == tap else None
        if rho is not None:
            yield "classifier" if source.encoder == "own" else "untrained", rho


def _limits(measured: Decoded, reference: Source | None) -> Claim:
    text = (
        f"Decoders had {measured.budget.epochs} epochs of {measured.trained_on} images, {measured.seeds} "
        f"seed{'s' * (measured.seeds > 1)}, {measured.tested_on} evaluate images"
    )
    estimates: dict[str, Quoted] = {"seeds": measured.seeds, "images": measured.tested_on}
    falling = []
    for source in (measured.decoders[0], reference):
        if source is not None and measured.budget.epochs > 1:
            ends = torch.stack([torch.tensor(measured.curves[t, source]).mean(0)[-2:] for t in measured.taps])
            steepest = max(float((1 - ends[:, 1] / ends[:, 0].clamp_min(1e-12)).max()), 0)
            estimates[f"{source.name}: last epoch's gain"] = steepest
            falling.append(f"{source.name} by up to {100 * steepest:.1f} %")
    if falling:
        text += (
            f"; in the last epoch, with the learning rate going to 0, the error still fell for {' and '.join(falling)}"
        )
    if reference is not None:
        text += (
            "; RefAE and judges learnt from fit images alone, so part of a lead may come from whatever larger set the "
            "classifier was trained on"
        )
    if measured.seeds < 3:
        text += "; fewer than three seeds show little of the variation between trainings"
    return Claim("limits", "", estimates, sentence=f"{text}.")
