"""What a reader should take away from :mod:`~aftershock.analyses.departure`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ...common.populations import CONTROL, FAILED, SUCCESS, TARGET
from ...common.text import ends, no_untrained
from ...findings import Claim, Quoted
from ..events import FEWEST, Half, cumulative, half, share
from ..measured import Departed
from .figures import changed_beyond
from .tables import comparisons

# After Holm's correction.
_LEVEL = 0.05


def claims(measured: Departed) -> list[Claim]:
    """The most important first."""
    if not measured.usable.any():
        text = (
            f"No tap's {measured.reader} reader is better than the most frequent class ({measured.chance:.0%}) on "
            "held-out images, so departures cannot be measured."
        )
        return [Claim("readers", measured.reader, {"chance": measured.chance}, "none better than chance", text)]
    drawn = measured.drawn()
    found: list[Claim] = []
    if drawn:
        found += [_lead(measured, drawn), _left(measured, drawn), *_first(measured, drawn), *_parting(measured, drawn)]
        found += [*_order(measured, drawn), _arrived(measured, drawn)]
    few: dict[str, Quoted] = {p: _judged(measured, p, SUCCESS) for p in measured.perturbations if p not in drawn}
    if few:
        counts = ", ".join(f"{p} ({n} successes)" for p, n in few.items())
        text = f"Fewer than {FEWEST} images that can be judged make no curve: {counts}."
        found.append(Claim("few-images", "", few, "not drawn", text))
    return [*found, _readers(measured), *no_untrained(measured.no_untrained), *_absent(measured)]


def _judged(measured: Departed, label: str, population: str) -> int:
    return int(measured.of(label, population).judged.any(1).sum())


def _depth(measured: Departed, middle: Half) -> str:
    if middle.low is None:
        return measured.place(middle.median or 0)
    low, high = (measured.depth(v) for v in (middle.low, middle.high))
    last = f"{measured.total + 1}: only the output"
    return f"{measured.place(middle.median or 0)} [{low}, {high if high != measured.total + 1 else last}]"


def _depths(measured: Departed, middle: Half) -> Quoted:
    return measured.depth(middle.median), measured.depth(middle.low), measured.depth(middle.high)


def _lead(measured: Departed, drawn: Sequence[str]) -> Claim:
    """Depths alone, the earliest first."""
    middles = sorted((half(measured.of(label, SUCCESS).good).median or 0, label) for label in drawn)
    inside = [f"{measured.depth(at)} ({label})" for at, label in middles if at < len(measured.taps)]
    outside = [label for at, label in middles if at >= len(measured.taps)]
    parts = [f"by tap {', '.join(inside)}"] if inside else []
    parts += [f"only at the output ({', '.join(outside)})"] if outside else []
    text = f"Of {measured.total} taps, half of the successes have left their class for good {', or '.join(parts)}."
    return Claim("half-left", "", {label: measured.depth(at) for at, label in middles}, sentence=text)


def _left(measured: Departed, drawn: Sequence[str]) -> Claim:
    parts: list[str] = []
    estimates: dict[str, Quoted] = {}
    for label in drawn:
        middle = half(measured.of(label, SUCCESS).good)
        estimates[label] = _depths(measured, middle)
        at = min(middle.median or 0, len(measured.taps) - 1)
        noise = measured.of(label, CONTROL)
        beside = ""
        if measured.enough(label, CONTROL):
            n, found = share(noise.changed, noise.judged)[at]
            gone = cumulative(noise.good, len(measured.taps))[at].value
            beside = f"; noise: {found.value:.0%} read as another class there, {gone:.0%} left for good" if n else ""
        parts.append(f"{label} {_depth(measured, middle)} (n = {middle.images}{beside})")
    text = (
        "By name, with the 95 % interval of that depth, and beside noise of the same size: "
        f"{'; '.join(parts)}. (Noise controls keep the clean prediction by construction, "
        "so they can hardly leave for good near the output; before that they may.)"
    )
    return Claim("left-for-good", "", estimates, sentence=text)


def _first(measured: Departed, drawn: Sequence[str]) -> Iterator[Claim]:
    parts: list[str] = []
    estimates: dict[str, Quoted] = {}
    for label in drawn:
        if measured.enough(label, CONTROL):
            success, noise = (half(measured.of(label, p).first) for p in (SUCCESS, CONTROL))
            estimates |= {label: _depths(measured, success), f"{label}, noise": _depths(measured, noise)}
            parts.append(f"{label} {measured.place(success.median or 0)}, noise {measured.place(noise.median or 0)}")
    if parts:
        # How often readers are wrong about images whose prediction is right.
        failed = {
            label: cumulative(measured.of(label, FAILED).good, len(measured.taps))[-1]
            for label in measured.perturbations
            if measured.enough(label, FAILED)
        }
        told = ", ".join(f"{label} {found.value:.0%}" for label, found in failed.items())
        more = f" Of failed images, whose prediction is still right, have left for good: {told}." if failed else ""
        text = (
            "A first change of verdict comes earlier and also to noise: half of the images have seen one by "
            f"{'; '.join(parts)}.{more}"
        )
        shares = {f"{label}, failed": ends(found) for label, found in failed.items()}
        yield Claim("first-change", "", {**estimates, **shares}, sentence=text)


def _parting(measured: Departed, drawn: Sequence[str]) -> Iterator[Claim]:
    parts: list[str] = []
    estimates: dict[str, Quoted] = {}
    for label in drawn:
        if not measured.enough(label, CONTROL):
            continue
        at = parting(measured, label)
        estimates[label] = measured.depth(at)
        if at is None:
            parts.append(f"{label} at no tap")
            continue
        populations = (measured.of(label, p) for p in (SUCCESS, CONTROL))
        shares = [share(followed.changed, followed.judged)[at][1].value for followed in populations]
        parts.append(f"{label} {measured.place(at)}, {shares[0]:.0%} against {shares[1]:.0%}")
    if parts:
        text = (
            "From these taps on successes are read as another class more often than noise of the same size on the same "
            f"images, with intervals of the difference above 0 at every further tap: {'; '.join(parts)}."
        )
        yield Claim("beyond-noise", "", estimates, sentence=text)


def parting(measured: Departed, label: str) -> int | None:
    """The first tap from which on successes change more often than their controls (95 %); ``None`` for none."""
    found = None
    for t, gap in reversed(list(enumerate(changed_beyond(measured, label)))):
        if np.isnan(gap.low):
            continue
        if gap.low <= 0:
            break
        found = t
    return found


def _order(measured: Departed, drawn: Sequence[str]) -> Iterator[Claim]:
    if len(drawn) < 2:
        return
    known = [c for c in comparisons(measured) if c.holm is not None]
    clear = [c for c in known if c.holm is not None and c.holm < _LEVEL and c.difference]
    if not known:
        text = f"No two perturbations move {FEWEST} of the same images, so their order in depth is unknown."
        yield Claim("order", "", {}, "unknown", text)
    elif not clear:
        text = (
            f"Paired by image, no perturbation leaves earlier or later than another ({len(known)} Wilcoxon signed rank "
            "tests, Holm's correction)."
        )
        yield Claim("order", "", {"tests": len(known)}, "no difference", text)
    else:
        parts: list[str] = []
        estimates: dict[str, Quoted] = {}
        for c in sorted(clear, key=lambda c: -abs(c.difference or 0)):
            early, late = (c.first, c.second) if (c.difference or 0) < 0 else (c.second, c.first)
            counts = (c.earlier, c.later) if early == c.first else (c.later, c.earlier)
            estimates[f"{early} before {late}"] = abs(c.difference or 0)
            parts.append(
                f"{early} before {late} by {abs(c.difference or 0):.1f} taps ({counts[0]} of {c.images} images "
                f"earlier, {counts[1]} later, p = {c.holm:.2g})"
            )
        more = f", and {len(parts) - 4} more" if len(parts) > 4 else ""
        text = (
            f"Paired by image, {len(clear)} of {len(known)} pairs of perturbations leave at different depths (Wilcoxon "
            f"signed rank, Holm's correction): {'; '.join(parts[:4])}{more}."
        )
        yield Claim("order", "", estimates, "different", text)


def _arrived(measured: Departed, drawn: Sequence[str]) -> Claim:
    parts: list[str] = []
    estimates: dict[str, Quoted] = {}
    for label in drawn:
        success, target = measured.of(label, SUCCESS), measured.of(label, TARGET)
        arrived, clean = half(success.arrival), half(target.arrival)
        estimates[label] = _depths(measured, arrived)
        place = measured.place(clean.median or 0)
        beside = f"clean images of those classes: {place}; " if len(target) >= FEWEST else ""
        only = (success.good == len(measured.taps)).sum() / _judged(measured, label, SUCCESS)
        parts.append(f"{label} {measured.place(arrived.median or 0)} ({beside}{only:.0%} leave only at the output)")
    text = f"Half are read as the class that the network predicts, from there on at every tap, by: {'; '.join(parts)}."
    return Claim("arrived", "", estimates, sentence=text)


def _readers(measured: Departed) -> Claim:
    trained = measured.accuracy["trained"]
    text = (
        f"The {measured.reader} reader, fitted on {measured.fitted} images, reads {trained[0].value:.0%} of "
        f"{measured.checked} held-out clean images as their class at {measured.place(0)} and {trained[-1].value:.0%} "
        f"at {measured.place(len(trained) - 1)} (most frequent class: {measured.chance:.0%})"
    )
    estimates: dict[str, Quoted] = {
        "first tap": trained[0].ends,
        "last tap": trained[-1].ends,
        "chance": measured.chance,
    }
    verdict = ""
    if "untrained" in measured.accuracy:
        other = measured.accuracy["untrained"]
        estimates |= {"untrained, first tap": other[0].ends, "untrained, last tap": other[-1].ends}
        ahead = [t for t, (a, b) in enumerate(zip(trained, other, strict=True)) if a.low > b.high]
        text += f"; in the untrained network {other[0].value:.0%} and {other[-1].value:.0%}"
        if ahead:
            verdict = f"training helps from {measured.taps[ahead[0]]} on"
            text += f", and {measured.place(ahead[0])} is the first tap where training clearly helps"
    silent = int((~measured.usable).sum())
    estimates["left out"] = silent
    if silent:
        names = [measured.taps[i] for i in np.flatnonzero(~measured.usable)[:3]]
        text += (
            f". {silent} taps are no better than chance and are left out ({', '.join(names)}{', ...' * (silent > 3)})"
        )
    return Claim("readers", measured.reader, estimates, verdict, f"{text}.")


def _absent(measured: Departed) -> Iterator[Claim]:
    missing = sorted(set(measured.asked) - {measured.row(e) for e in measured.examples})
    if missing:
        text = (
            f"Of the chosen images {', '.join(map(str, missing))} cannot be shown: the model gets them wrong, so "
            "nothing perturbs them."
        )
        yield Claim("not-shown", ", ".join(map(str, missing)), {}, "the model gets them wrong", text)
