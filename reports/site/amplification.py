"""How much more the layers amplify a perturbation than noise of its norm, by depth, and from where on."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from ...harness.statistics.detection import MIN_IMAGES
from ..read.run_directory import Row
from .matrices_and_curves import grouped

# The measure that both are compared in: how far the activation moved, relative to its own length.
METRIC = "relative_l2"
# Names of others that a sentence lists.
_NAMED = 6


@dataclass(frozen=True)
class Spread:
    """Mean and 5 % to 95 % range over images of the relative L2 shift at one tap."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Depth:
    """A perturbation against noise of its norm at one tap.

    Attributes:
        attack: of images that fool the model.
        control: of noise.
        beyond: the attack moves the activation further, and each mean lies outside the range of the other in every
            seed.
    """

    attack: Spread
    control: Spread
    beyond: bool

    @property
    def ratio(self) -> float:
        """Mean of the attack over mean of the control."""
        return self.attack.mean / self.control.mean


@dataclass(frozen=True)
class Amplified:
    """A perturbation against noise of its norm, at every tap.

    Attributes:
        perturbation: its label.
        knowing: it knows a detector.
        images: the smallest number of images behind a mean, over taps, seeds and both populations.
        depths: by tap, from the input on; ``None`` where it was not measured.
        reason: why it is left out; empty where it is not.
    """

    perturbation: str
    knowing: bool
    images: int
    depths: Sequence[Depth | None] = ()
    reason: str = ""

    @property
    def apart(self) -> tuple[int, int] | None:
        """First and last tap of the longest stretch beyond the spread, of equal ones the deepest; else ``None``."""
        best: tuple[int, int] | None = None
        start = None
        for i, depth in enumerate([*self.depths, None]):
            if depth is not None and depth.beyond:
                start = i if start is None else start
            elif start is not None:
                if best is None or i - 1 - start >= best[1] - best[0]:
                    best = start, i - 1
                start = None
        return best

    def ratios(self, first: int = 0, last: int | None = None) -> str:
        """Return the smallest and the largest ratio of some taps in words: ``1.5 to 2.2``."""
        known = [d.ratio for d in self.depths[first : None if last is None else last + 1] if d is not None]
        low, high = times(min(known)), times(max(known))
        return low if low == high else f"{low} to {high}"


@dataclass(frozen=True)
class Amplification:
    """All perturbations of a model against noise of their norms.

    Attributes:
        taps: names of the taps, from the input on.
        perturbations: those that are shown, in the order of the run.
        left_out: the others, with reasons.
    """

    taps: Sequence[str]
    perturbations: Sequence[Amplified]
    left_out: Sequence[Amplified]


def times(ratio: float) -> str:
    """Return a ratio as text: ``3.4``, of a large one ``42``."""
    return f"{ratio:.1f}" if ratio < 10 else f"{ratio:.3g}"


def amplification(rows: Sequence[Row], kinds: Mapping[str, str]) -> Amplification | None:
    """Return how much more perturbations are amplified than noise, from the rows of ``propagation.csv`` of a model.

    Seeds in which fewer than 30 images fool the model, or have a control, are left out.

    Args:
        rows: of one model, all seeds.
        kinds: of perturbations, by label.

    Returns:
        ``None`` where no shift was measured against noise.
    """
    wanted = [r for r in rows if r.text("metric") == METRIC and r.text("population") in ("success", "control")]
    if not any(r.text("population") == "control" for r in wanted):
        return None
    depths: dict[str, float] = {}
    for row in wanted:
        depths.setdefault(row.text("tap"), row.number("depth") or 0.0)
    taps = sorted(depths, key=lambda tap: depths[tap])
    found = [
        _amplified(name, kinds.get(name) == "adaptive" or "@" in name, own, taps)
        for (name,), own in grouped(wanted, "perturbation").items()
    ]
    return Amplification(taps, [a for a in found if not a.reason], [a for a in found if a.reason])


def _amplified(name: str, knowing: bool, rows: Sequence[Row], taps: Sequence[str]) -> Amplified:
    kept: list[list[Row]] = []
    fewest, most = 0, 0
    for own in grouped(rows, "seed").values():
        counts = [min((r.number("n") or 0.0 for r in own if r.text("population") == p), default=0.0)
                  for p in ("success", "control")]  # fmt: skip
        least = int(min(counts))
        most = max(most, least)
        if least >= MIN_IMAGES:
            fewest = least if not kept else min(fewest, least)
            kept.append(own)
    if not kept:
        why = f"{most} image{'' if most == 1 else 's'} that fool{'s' if most == 1 else ''} the model and ha" \
              f"{'s' if most == 1 else 've'} a control, fewer than {MIN_IMAGES}"  # fmt: skip
        return Amplified(name, knowing, most, reason=why)
    at = {tap: own for (tap,), own in grouped([r for own in kept for r in own], "tap").items()}
    depths = [_depth(at.get(tap, ())) for tap in taps]
    if not any(depths):
        return Amplified(name, knowing, fewest, reason="no shift was measured beside that of noise")
    return Amplified(name, knowing, fewest, depths)


def _depth(rows: Sequence[Row]) -> Depth | None:
    """Return one tap, the mean over the seeds that have both populations."""
    pairs = []
    for own in grouped(rows, "seed").values():
        attack, control = (_spread([r for r in own if r.text("population") == p]) for p in ("success", "control"))
        if attack is not None and control is not None and control.mean > 0:
            pairs.append((attack, control))
    if not pairs:
        return None
    beyond = all(a.mean > c.high and c.mean < a.low for a, c in pairs)
    return Depth(_average([a for a, _ in pairs]), _average([c for _, c in pairs]), beyond)


def _spread(rows: Sequence[Row]) -> Spread | None:
    for row in rows:
        mean, low, high = (row.number(c) for c in ("mean", "q05", "q95"))
        if mean is not None and low is not None and high is not None:
            return Spread(mean, low, high)
    return None


def _average(spreads: Sequence[Spread]) -> Spread:
    n = len(spreads)
    return Spread(sum(s.mean for s in spreads) / n, sum(s.low for s in spreads) / n, sum(s.high for s in spreads) / n)


def readable(taps: Sequence[str]) -> list[str]:
    """Return names of taps as people read them: ``layer3.1.relu:2`` as ``layer3.1 (2nd)``.

    The last part of a name is left out where all names of several parts share it; names stay as they are where two
    would become the same.
    """
    split = [tap.partition(":") for tap in taps]
    last = {name.rpartition(".")[2] for name, _, _ in split if "." in name}
    shared = f".{next(iter(last))}" if len(last) == 1 else None
    names = [
        (name.removesuffix(shared) if shared else name) + (f" ({_ordinal(call)})" if sign else "")
        for name, sign, call in split
    ]
    return names if len(set(names)) == len(names) else list(taps)


def _ordinal(call: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,3}", call):
        return call
    n = int(call)
    return f"{n}{'th' if n % 100 in (11, 12, 13) else {1: 'st', 2: 'nd', 3: 'rd'}.get(n % 10, 'th')}"


def where(first: int, last: int, taps: Sequence[str], counted: bool = True) -> str:
    """Return a stretch of taps in words: ``from layer3.1 (depth 7 of 9) on``, the bracket only where ``counted``."""
    end = len(taps) - 1
    if first == 0 and last == end:
        return "at every depth"
    if first == last:
        place = "the last" if first == end else f"depth {first + 1}"
        return f"at {taps[first]}" + (f" ({place} of {len(taps)})" if counted else "")
    if last == end:
        return f"from {taps[first]}" + (f" (depth {first + 1} of {len(taps)})" if counted else "") + " on"
    depths = f" (depths {first + 1} to {last + 1} of {len(taps)})" if counted else ""
    return f"from {taps[first]} to {taps[last]}{depths}"


def foremost(found: Amplification, budget: Collection[str]) -> Amplified | None:
    """Return the perturbation that the sentence and the figure are about.

    It is the one that fools the model on most images, the first of those; one that knows no detector and is at the
    budget of the threat model, where there is such a one.

    Args:
        found: of a model.
        budget: labels of the attacks at the budget.
    """
    plain = [a for a in found.perturbations if not a.knowing]
    among = [a for a in plain if a.perturbation in budget] or plain or found.perturbations
    return max(among, key=lambda a: a.images, default=None)


def sentences(found: Amplification, first: Amplified) -> list[str]:
    """Return what is amplified more than noise of its norm and from where on; what is not is said to be not."""
    taps = readable(found.taps)
    made = [_sentence(first, taps)]
    others = [a for a in found.perturbations if a is not first and not a.knowing]
    apart = [f"{a.perturbation} {where(*a.apart, taps, counted=False)}" for a in others if a.apart]
    if apart:
        made.append(f"Beyond the spread of images, too: {_listed(apart)}.")
    within = [a.perturbation for a in others if not a.apart]
    if within:
        made.append(f"Not beyond it: {_listed(within)}.")
    return made


def _sentence(about: Amplified, taps: Sequence[str]) -> str:
    if about.apart is None:
        return (
            f"At no depth is {about.perturbation} amplified more than noise of its norm beyond the spread of images: "
            f"it moves the activations {about.ratios()} times as far."
        )
    place = where(*about.apart, taps)
    return (
        f"{place[0].upper()}{place[1:]}, {about.perturbation} is amplified {about.ratios(*about.apart)} times as much "
        "as noise of its norm."
    )


def _listed(names: Sequence[str]) -> str:
    shown = list(names[:_NAMED])
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")
