"""What a reader should take away from a ClaDec study."""

from __future__ import annotations

import torch

from ..attacked import IMAGE, Reading
from ..measures import Estimate
from ..study import Study
from ..training import Source


def sentences(study: Study) -> list[str]:
    """Two to eight sentences, the most important first."""
    reference, random = study.source("refae"), study.source("random")
    found = []
    if reference is not None:
        found += [_class_information(study, reference, random), _error(study, reference, random)]
    else:
        found.append(_alone(study))
    if len(study.decoders) > 1:
        found.append(_trade_off(study))
    found += [_turned(study, reading) for reading in study.readings]
    if study.unturned:
        found.append(f"No image was turned by {', '.join(study.unturned)}: nothing to decode there.")
    if study.causes:
        found.append(_causes(study))
    found.append(_limits(study, reference))
    return found


def _class_information(study: Study, reference: Source, random: Source | None) -> str:
    first, deep = study.decoders[0], study.names[-1]
    text = (
        f"At {deep}, fresh classifiers of clean images read the class from {first.name} in "
        f"{study.measured.estimate((deep, first), 'fresh_accuracy').percent()} of the reconstructions, from the "
        f"RefAE in {study.measured.estimate((deep, reference), 'fresh_accuracy').percent()}"
    )
    if random is not None:
        text += f", from the random encoder in {study.measured.estimate((deep, random), 'fresh_accuracy').percent()}"
    text += f", and from the originals in {study.measured.baseline('fresh_accuracy').percent()}"
    claims = [("fresh_accuracy", "read by them")]
    if study.retrained:
        claims.append(("retrained_accuracy", "learnt from the reconstructions, the papers' measure"))
    for measure, how in claims:
        text += f"; class information {how}: {_verdicts(study, first, reference, measure)}"
    return text + "."


def _verdicts(study: Study, one: Source, other: Source, measure: str) -> str:
    """More, less or no different than the reference, tap by tap."""
    parts = []
    for tap in study.names:
        gap = study.measured.difference(tap, one, other, measure)
        word = ("more" if gap.mean > 0 else "less") if gap.differs else "no different"
        parts.append(f"{word} than the RefAE's at {tap} ({_points(gap)})")
    return ", ".join(parts)


def _points(gap: Estimate) -> str:
    return f"{100 * gap.mean:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"


def _error(study: Study, reference: Source, random: Source | None) -> str:
    first, measured = study.decoders[0], study.measured
    lower = [t for t in study.names if measured.difference(t, first, reference, "squared_error").low > 0]
    parts = []
    for tap in study.names:
        values = [f"{first.name} {measured.estimate((tap, first), 'squared_error').mean:.4f}"]
        values += [
            f"{s.name} {measured.estimate((tap, s), 'squared_error').mean:.4f}" for s in (reference, random) if s
        ]
        parts.append(f"at {tap} {', '.join(values)}")
    return (
        f"The RefAE reconstructs reliably better in {len(lower)} of {len(study.names)} taps (mean squared error, where "
        f"the mean image has {study.mean_error:.4f}: {'; '.join(parts)})."
    )


def _alone(study: Study) -> str:
    first = study.decoders[0]
    parts = [
        f"{study.measured.estimate((t, first), 'fresh_accuracy').percent()} at {t} (mean squared error "
        f"{study.measured.estimate((t, first), 'squared_error').mean:.4f})"
        for t in study.names
    ]
    return (
        "There is no untrained network of this architecture, so neither RefAE nor random encoder: what the decoders "
        f"show may be the architecture's own; small CNNs read the class in {', '.join(parts)} of the reconstructions."
    )


def _trade_off(study: Study) -> str:
    low, high, deep = study.decoders[0], study.decoders[-1], study.names[-1]
    measured = study.measured
    fresh = measured.difference(deep, high, low, "fresh_accuracy")
    own = measured.difference(deep, high, low, "own_accuracy")
    errors = [measured.estimate((deep, s), "squared_error").mean for s in (low, high)]
    return (
        f"From α = {low.alpha:g} to {high.alpha:g}, {deep}: error {errors[0]:.4f} to {errors[1]:.4f}, accuracy of "
        f"fresh classifiers {_points(fresh)}, of the classifier under study {_points(own)}; a gain that it alone "
        "sees is a pattern that it likes, not class information."
    )


def _turned(study: Study, reading: Reading) -> str:
    first, turned = study.decoders[0].name, reading.turned
    tap = reading.turning(study.names, first)
    deep = study.names[-1]
    text = f"{turned.label} ({len(turned.images)} turned images): " + (
        f"from {tap} on, the decoded image is read as the reached class more often than as the true one"
        if tap
        else "at no depth is the decoded image read as the reached class reliably more often than as the true one"
    )
    parts = []
    for where, source, name in ((IMAGE, "", "undecoded"), (deep, first, f"decoded from {deep}")):
        shares = [reading.estimate(where, source, m) for m in ("reached", "true", "control_reached")]
        values = [
            f"reached {shares[0].percent()}" if shares[0] else "",
            f"true {shares[1].percent()}" if shares[1] else "",
        ]
        if shares[2]:
            values.append(f"noise control reached {shares[2].percent()}")
        parts.append(f"{name}: {', '.join(values)}")
    reference = study.source("refae")
    if reference is not None:
        share = reading.estimate(deep, reference.name, "reached")
        if share is not None:
            parts.append(f"RefAE there: reached {share.percent()}")
    return f"{text} ({'; '.join(parts)})."


def _causes(study: Study) -> str:
    parts = []
    for tap in study.names:
        values = []
        for (name, source), found in study.causes.items():
            rho = found.correlation() if name == tap else None
            if rho is not None:
                who = "classifier" if source.encoder == "own" else "untrained"
                values.append(f"{who} {rho[0]:.2f} [{rho[1]:.2f}, {rho[2]:.2f}]")
        parts.append(f"{tap}: {', '.join(values) or 'not defined'}")
    return (
        "Decodable is not yet used: over units, the rank correlation between how much a unit moves the picture and how "
        f"much it moves the network's output is {'; '.join(parts)}."
    )


def _limits(study: Study, reference: Source | None) -> str:
    text = (
        f"Decoders had {study.budget.epochs} epochs of {study.trained_on} images, {study.seeds} "
        f"seed{'s' * (study.seeds > 1)}, {len(study.images)} evaluate images"
    )
    falling = []
    for source in (study.decoders[0], reference):
        if source is not None and study.budget.epochs > 1:
            ends = torch.stack([torch.tensor(study.curves[t, source]).mean(0)[-2:] for t in study.names])
            steepest = float((1 - ends[:, 1] / ends[:, 0].clamp_min(1e-12)).max())
            falling.append(f"{source.name} by up to {100 * max(steepest, 0):.1f} %")
    if falling:
        text += (
            f"; in the last epoch, with the learning rate going to 0, the error still fell for {' and '.join(falling)}"
        )
    if reference is not None:
        text += (
            "; RefAE and judges learnt from fit images alone, so part of a lead may come from whatever larger set the "
            "classifier was trained on"
        )
    if study.seeds < 3:
        text += "; fewer than three seeds say little about chance in training"
    return text + "."
