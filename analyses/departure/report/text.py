"""What a reader should take away from :mod:`~aftershock.analyses.departure`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..events import FEWEST, Half, cumulative, half, share
from ..examples import Example
from ..study import CONTROL, FAILED, SUCCESS, TARGET, Study
from .figures import changed_beyond
from .tables import comparisons

# After Holm's correction.
_LEVEL = 0.05


def sentences(study: Study, shown: Sequence[Example], indices: Sequence[int] = ()) -> Iterator[str]:
    """The most important first."""
    if not study.usable.any():
        yield (
            f"No tap's {study.reader} reader is better than the most frequent class ({study.chance:.0%}) on held-out "
            "images, so nothing can be said about a departure."
        )
        return
    drawn = [p for p in study.perturbations if study.enough(p, SUCCESS, FEWEST)]
    few = [p for p in study.perturbations if p not in drawn]
    if drawn:
        yield _lead(study, drawn)
        yield from _left(study, drawn)
        yield from _first(study, drawn)
        yield from _parting(study, drawn)
        yield from _order(study, drawn)
        yield from _arrived(study, drawn)
    if few:
        counts = ", ".join(f"{p} ({_judged(study, p, SUCCESS)} successes)" for p in few)
        yield f"Fewer than {FEWEST} images that can be judged make no curve: {counts}."
    yield from _readers(study)
    yield from _absent(indices, shown)


def _judged(study: Study, label: str, population: str) -> int:
    return int(study.crowd(label, population).judged.any(1).sum())


def _depth(study: Study, middle: Half) -> str:
    if middle.low is None:
        return study.place(middle.median or 0)
    low, high = (study.depth(v) for v in (middle.low, middle.high))
    last = f"{study.total + 1}: only the output"
    return f"{study.place(middle.median or 0)} [{low}, {high if high != study.total + 1 else last}]"


def _lead(study: Study, drawn: Sequence[str]) -> str:
    """Depths alone, the earliest first."""
    middles = sorted((half(study.crowd(label, SUCCESS).good).median or 0, label) for label in drawn)
    inside = [f"{study.depth(at)} ({label})" for at, label in middles if at < len(study.taps)]
    outside = [label for at, label in middles if at >= len(study.taps)]
    parts = [f"by tap {', '.join(inside)}"] if inside else []
    parts += [f"only at the output ({', '.join(outside)})"] if outside else []
    return (
        f"Of {study.total} taps, half of the images whose prediction turned have left their class for good "
        f"{', or '.join(parts)}."
    )


def _left(study: Study, drawn: Sequence[str]) -> Iterator[str]:
    parts = []
    for label in drawn:
        middle = half(study.crowd(label, SUCCESS).good)
        at = min(middle.median or 0, len(study.taps) - 1)
        noise = study.crowd(label, CONTROL)
        beside = ""
        if study.enough(label, CONTROL, FEWEST):
            n, found = share(noise.changed, noise.judged)[at]
            gone = cumulative(noise.good, len(study.taps))[at][0]
            beside = f"; noise: {found[0]:.0%} read as another class there, {gone:.0%} left for good" if n else ""
        parts.append(f"{label} {_depth(study, middle)} (n = {middle.images}{beside})")
    yield (
        "By name, with the 95 % interval of that depth, and beside noise of the same size: "
        f"{'; '.join(parts)}. (As a control noise keeps its prediction by its making, "
        "so it can hardly leave for good near the output; what it is read as before is free.)"
    )


def _first(study: Study, drawn: Sequence[str]) -> Iterator[str]:
    parts = []
    for label in drawn:
        if study.enough(label, CONTROL, FEWEST):
            success, noise = (half(study.crowd(label, p).first) for p in (SUCCESS, CONTROL))
            parts.append(f"{label} {study.place(success.median or 0)}, noise {study.place(noise.median or 0)}")
    if parts:
        yield (
            "A first change of verdict comes earlier and also to noise: half of the images have seen one by "
            f"{'; '.join(parts)}.{_failed(study)}"
        )


def _parting(study: Study, drawn: Sequence[str]) -> Iterator[str]:
    parts = []
    for label in drawn:
        if not study.enough(label, CONTROL, FEWEST):
            continue
        at = parting(study, label)
        if at is None:
            parts.append(f"{label} at no tap")
            continue
        shares = [share(c.changed, c.judged)[at][1][0] for c in (study.crowd(label, p) for p in (SUCCESS, CONTROL))]
        parts.append(f"{label} {study.place(at)}, {shares[0]:.0%} against {shares[1]:.0%}")
    if parts:
        yield (
            "From these taps on successes are read as another class more often than noise of the same size on the same "
            f"images, with intervals of the difference above 0 at every further tap: {'; '.join(parts)}."
        )


def parting(study: Study, label: str) -> int | None:
    """The first tap from which on successes change more often than their controls (95 %); ``None`` for none."""
    found = None
    for t, (_, low, _) in reversed(list(enumerate(changed_beyond(study, label)))):
        if np.isnan(low):
            continue
        if low <= 0:
            break
        found = t
    return found


def _order(study: Study, drawn: Sequence[str]) -> Iterator[str]:
    if len(drawn) < 2:
        return
    known = [c for c in comparisons(study) if c.holm is not None]
    clear = [c for c in known if c.holm is not None and c.holm < _LEVEL and c.difference]
    if not known:
        yield f"No two perturbations move {FEWEST} of the same images, so their order in depth cannot be told."
    elif not clear:
        yield (
            f"Paired by image, no perturbation leaves earlier or later than another ({len(known)} Wilcoxon signed rank "
            "tests, Holm's correction)."
        )
    else:
        parts = []
        for c in sorted(clear, key=lambda c: -abs(c.difference or 0)):
            early, late = (c.first, c.second) if (c.difference or 0) < 0 else (c.second, c.first)
            counts = (c.earlier, c.later) if early == c.first else (c.later, c.earlier)
            parts.append(
                f"{early} before {late} by {abs(c.difference or 0):.1f} taps ({counts[0]} of {c.images} images "
                f"earlier, {counts[1]} later, p = {c.holm:.2g})"
            )
        shown = parts[:4]
        more = f", and {len(parts) - 4} more" if len(parts) > 4 else ""
        yield (
            f"Paired by image, {len(clear)} of {len(known)} pairs of perturbations leave at different depths (Wilcoxon "
            f"signed rank, Holm's correction): {'; '.join(shown)}{more}."
        )


def _arrived(study: Study, drawn: Sequence[str]) -> Iterator[str]:
    parts = []
    for label in drawn:
        success, target = study.crowd(label, SUCCESS), study.crowd(label, TARGET)
        arrived, clean = half(success.arrival), half(target.arrival)
        beside = f"clean images of those classes: {study.place(clean.median or 0)}; " if len(target) >= FEWEST else ""
        only = (success.good == len(study.taps)).sum() / _judged(study, label, SUCCESS)
        parts.append(f"{label} {study.place(arrived.median or 0)} ({beside}{only:.0%} leave only at the output)")
    yield f"Half are read as the class that the network predicts, from there on at every tap, by: {'; '.join(parts)}."


def _failed(study: Study) -> str:
    """How often readers are wrong about images whose prediction is right."""
    parts = [
        f"{label} {cumulative(study.crowd(label, FAILED).good, len(study.taps))[-1][0]:.0%}"
        for label in study.perturbations
        if study.enough(label, FAILED, FEWEST)
    ]
    return (
        f" Of failed images, whose prediction is still right, have left for good: {', '.join(parts)}." if parts else ""
    )


def _readers(study: Study) -> Iterator[str]:
    trained = [v[0] for v in study.accuracy["trained"]]
    text = (
        f"The {study.reader} reader, fitted on {study.fitted} images, reads {trained[0]:.0%} of {study.checked} "
        f"held-out clean images as their class at {study.place(0)} and {trained[-1]:.0%} at "
        f"{study.place(len(trained) - 1)} "
        f"(most frequent class: {study.chance:.0%})"
    )
    if "untrained" in study.accuracy:
        other = [v[0] for v in study.accuracy["untrained"]]
        ahead = [
            t
            for t, (a, b) in enumerate(zip(study.accuracy["trained"], study.accuracy["untrained"], strict=True))
            if a[1] > b[2]
        ]
        text += f"; in the untrained network {other[0]:.0%} and {other[-1]:.0%}"
        if ahead:
            text += f", and {study.place(ahead[0])} is the first tap where training clearly helps"
    silent = int((~study.usable).sum())
    if silent:
        names = [study.taps[i] for i in np.flatnonzero(~study.usable)[:3]]
        text += (
            f". {silent} taps are no better than chance and are left out ({', '.join(names)}{', ...' * (silent > 3)})"
        )
    yield f"{text}."
    if study.no_twin:
        yield f"There is no untrained network to compare with: {study.no_twin}"


def _absent(indices: Sequence[int], shown: Sequence[Example]) -> Iterator[str]:
    missing = sorted(set(indices) - {e.row for e in shown})
    if missing:
        yield (
            f"Of the chosen images {', '.join(map(str, missing))} cannot be shown: the model gets them wrong, so "
            "nothing perturbs them."
        )
