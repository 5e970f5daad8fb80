"""What a reader should take away from coded layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ....harness.statistics.intervals import Estimate
from ...common.text import no_untrained, with_interval
from ...findings import Claim, Quoted
from ..measured import CLEAN, NOISE, PERTURBED, CodedLayer, Codes, Landing, Telescope


def claims(measured: Codes) -> list[Claim]:
    """The most important first."""
    found = [_meaning(measured), _topology(measured), _finite(measured), _telescope(measured)]
    if measured.landings:
        # The perturbation that fools the model most often: its shares have the narrowest intervals.
        label = max(measured.landings, key=lambda name: measured.landings[name][0].numbers[PERTURBED]["n"])
        found.insert(1, _landing(label, measured.landings[label]))
    else:
        text = "No perturbation succeeded often enough to say which units its images are assigned to."
        found.append(Claim("landing", "", {}, "too few images", text))
    return [*found, *no_untrained(measured.no_untrained)]


def _band(numbers: Mapping[str, float], column: str, digits: int = 2) -> str:
    return with_interval(_estimate(numbers, column), digits)


def _estimate(numbers: Mapping[str, float], column: str) -> Estimate:
    value, low, high = (numbers.get(name, math.nan) for name in (column, f"{column}_low", f"{column}_high"))
    return Estimate(value, low, high)


def _column(layers: Sequence[CodedLayer], column: str) -> list[float]:
    return [x.numbers.get(column, math.nan) for x in layers]


def _meaning(measured: Codes) -> Claim:
    trained, fresh, draws = measured.of("trained"), measured.of("untrained"), measured.by_tap()
    first, end = trained[0], trained[-1]
    text = (
        f"Units of the map and labels share an adjusted mutual information of {_band(first.numbers, 'ami_label')} at "
        f"the first tap ({first.tap}) and {_band(end.numbers, 'ami_label')} at the last ({end.tap}; at "
        f"most {end.numbers['ami_label_highest_possible']:.2f} is possible), on {measured.held} held-out images"
    )
    estimates: dict[str, Quoted] = {
        "first tap": _estimate(first.numbers, "ami_label").ends, "last tap": _estimate(end.numbers, "ami_label").ends,
        "shuffled": end.numbers["ami_shuffled_highest"],
    }  # fmt: skip
    if not fresh:
        text += f"; with shuffled labels at most {end.numbers['ami_shuffled_highest']:.2f}."
        return Claim("label-information", end.tap, estimates, sentence=text)
    highest = [max([y.numbers["ami_label_high"], *draws.get(y.tap, [])]) for y in fresh]
    apart = [x.tap for x, top in zip(trained, highest, strict=True) if x.numbers["ami_label_low"] > top]
    estimates |= {"draws": max(map(len, draws.values()), default=0), "taps above untrained": len(apart)}
    text += f"; the untrained network has {_range(fresh[0], draws)} and {_range(fresh[-1], draws)}. "
    if not apart:
        text += "At no tap are the trained network's codes significantly better than the untrained one's."
        return Claim("label-information", end.tap, estimates, "no better than untrained", text)
    text += (
        f"The trained network's codes are significantly better (intervals apart, every draw) at {len(apart)} of "
        f"{len(trained)} taps, first at {apart[0]}."
    )
    return Claim("label-information", end.tap, estimates, f"better than untrained from {apart[0]} on", text)


def _range(layer: CodedLayer, draws: Mapping[str, list[float]]) -> str:
    """The untrained network's value at a tap: its interval for one draw of weights, the range of several."""
    found = draws.get(layer.tap, [])
    if len(found) < 2:
        return f"{_band(layer.numbers, 'ami_label')} (one draw of its weights)"
    return f"{min(found):.2f} to {max(found):.2f} (in {len(found)} draws of its weights)"


def _topology(measured: Codes) -> Claim:
    som = measured.of("trained")
    differences, lows, highs = (_column(som, f"ami_above_kmeans{end}") for end in ("", "_low", "_high"))
    mean = sum(differences) / len(differences)
    ahead, behind = sum(low > 0 for low in lows), sum(high < 0 for high in highs)
    error = _column(som, "topographic_error")
    text = (
        "Does the map's topology carry more than codes alone? With the same number of k-means centroids the adjusted "
        f"mutual information with the label differs by {mean:+.3f} on average over taps (map minus k-means); the map "
        f"is significantly ahead at {ahead} and behind at {behind} of {len(differences)} taps. Its topographic error "
        f"is {min(error):.2f} to {max(error):.2f}."
    )
    estimates: dict[str, Quoted] = {"map minus k-means": mean, "ahead": ahead, "behind": behind}
    return Claim("topology", "", estimates, sentence=text)


def _finite(measured: Codes) -> Claim:
    som, fresh = measured.of("trained"), measured.of("untrained")
    codes, error, normal = (
        _column(som, name) for name in ("effective_codes", "relative_error", "relative_error_gaussian")
    )
    tighter = _tighter(som)
    text = (
        f"Number of patterns: {min(codes):.0f} to {max(codes):.0f} effective codes of {som[0].units} units "
        f"are in use, and their error is {min(error):.0%} to {max(error):.0%} of the mean distance to the centre; "
        f"codes of a normal cloud of the same covariance have {min(normal):.0%} to {max(normal):.0%}. Activations are "
        f"tighter than such a cloud by more than 5 % at {tighter} of {len(error)} taps"
    )
    if fresh:
        text += f" (untrained network: {_tighter(fresh)} of {len(fresh)})"
    estimates: dict[str, Quoted] = {"fewest codes": min(codes), "most codes": max(codes), "tighter taps": tighter}
    return Claim("finite-codes", "", estimates, sentence=f"{text}.")


def _tighter(layers: Sequence[CodedLayer]) -> int:
    """Taps where codes leave 5 % less of the activations than of a normal cloud."""
    pairs = (_column(layers, name) for name in ("relative_error", "relative_error_gaussian"))
    return sum(ours < 0.95 * normal for ours, normal in zip(*pairs, strict=True))


def _telescope(measured: Codes) -> Claim:
    trained, fresh = ([x for x in measured.telescope if x.network == n] for n in ("trained", "untrained"))
    ends = [
        f"{_band(x.numbers, 'participation_ratio', 1)} of {x.numbers['width']:.0f}" for x in (trained[0], trained[-1])
    ]
    values = [x.numbers["participation_ratio"] for x in trained]
    low, high = values.index(min(values)), values.index(max(values))
    text = (
        f"The telescope: the participation ratio of the activations is {ends[0]} maps at the first tap and {ends[1]} "
        f"at the last, lowest at {trained[low].tap} ({values[low]:.1f}) and highest at {trained[high].tap} "
        f"({values[high]:.1f})"
    )
    if fresh:
        text += f"; in the untrained network it goes from {_ends(fresh, 'participation_ratio', 1)}"
    text += f". The mean cosine between prototypes goes from {_ends(trained, 'prototype_cosine', 2)}"
    if fresh:
        text += f" (untrained: from {_ends(fresh, 'prototype_cosine', 2)})"
    estimates = {x.tap: _estimate(x.numbers, "participation_ratio").ends for x in trained}
    return Claim("telescope", "", dict(estimates), f"lowest at {trained[low].tap}", f"{text}.")


def _ends(rows: Sequence[Telescope], column: str, digits: int) -> str:
    first, last = (rows[i].numbers[column] for i in (0, -1))
    return f"{first:.{digits}f} to {last:.{digits}f}"


def _landing(label: str, landings: Sequence[Landing]) -> Claim:
    hit, noise, clean = (landings[-1].numbers[name] for name in (PERTURBED, NOISE, CLEAN))
    text = (
        f"Of {hit['n']:.0f} successes of {label}, {hit['reached_share']:.0%} are assigned at the last tap to units of "
        f"the predicted class and {hit['true_share']:.0%} to units of the true one"
    )
    beside, name = (noise, "noise of the same size") if noise["n"] else (clean, "clean")
    text += f" ({name}: {beside['reached_share']:.0%} and {beside['true_share']:.0%})"
    # A layer whose units say nothing about the class may lean either way: only what lasts to the end counts.
    flip = None
    for landing in reversed(landings):
        if not landing.numbers[PERTURBED]["reached_low"] > landing.numbers[PERTURBED]["true_high"]:
            break
        flip = landing.tap
    first = next(
        (x.tap for x in landings if x.numbers[PERTURBED]["reached_low"] > x.numbers[NOISE]["reached_high"]), None
    )
    if flip is None:
        text += "; at the last tap the predicted class does not significantly outweigh the true one"
    else:
        text += f"; from {flip} on the predicted class significantly outweighs the true one"
    if first is not None:
        text += f", and from {first} on more are assigned to it than under noise"
    estimates: dict[str, Quoted] = {
        kind: (hit[f"{kind}_share"], hit[f"{kind}_low"], hit[f"{kind}_high"]) for kind in ("reached", "true")
    }
    estimates["images"] = hit["n"]
    verdict = "" if flip is None else f"predicted class outweighs from {flip} on"
    return Claim("landing", label, estimates, verdict, f"{text}.")
