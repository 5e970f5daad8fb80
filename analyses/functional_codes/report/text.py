"""What a reader should take away from coded layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..attacked import Landing
from ..layers import LAYER_COLUMNS, TELESCOPE_COLUMNS
from .figures import draws_by_tap

Rows = Sequence[Sequence[str | float | None]]


def telling(
    rows: Rows, telescope: Rows, landings: Mapping[str, Sequence[Landing]], held: int, draws: Rows = ()
) -> list[str]:
    """The sentences, the most important first.

    Args:
        rows: of :data:`LAYER_COLUMNS`.
        telescope: of :data:`TELESCOPE_COLUMNS`.
        landings: by perturbation, at every tap.
        held: how many held-out images there are.
        draws: number, tap, depth and information of each draw of the untrained network.
    """
    layers = [dict(zip(LAYER_COLUMNS, row, strict=True)) for row in rows]
    found = [_meaning(layers, held, draws_by_tap(draws)), _topology(layers), _finite(layers)]
    found.append(_telescope([dict(zip(TELESCOPE_COLUMNS, row, strict=True)) for row in telescope]))
    if landings:
        # The perturbation that turned most: its shares are the surest.
        label = max(landings, key=lambda name: landings[name][0].numbers["perturbed"]["n"])
        found.insert(1, _landing(label, landings[label]))
    else:
        found.append("No perturbation turned enough predictions to say on which units its images land.")
    return found


def _of(layers: Sequence[Mapping[str, str | float | None]], network: str, coder: str, column: str) -> list[float]:
    return [_number(x[column]) for x in layers if x["network"] == network and x["coder"] == coder]


def _number(value: str | float | None) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _meaning(layers: Sequence[Mapping[str, str | float | None]], held: int, draws: Mapping[str, list[float]]) -> str:
    last = [x for x in layers if x["coder"] == "som" and x["network"] == "trained"]
    first, end = last[0], last[-1]
    text = (
        f"Units of the map and labels share an adjusted mutual information of {_band(first, 'ami_label')} at the first "
        f"tap ({first['tap']}) and {_band(end, 'ami_label')} at the last ({end['tap']}; at "
        f"most {_number(end['ami_label_highest_possible']):.2f} is possible), on {held} held-out images"
    )
    fresh = [x for x in layers if x["network"] == "untrained"]
    if not fresh:
        return text + f"; with shuffled labels at most {_number(end['ami_shuffled_highest']):.2f}."
    highest = [max([_number(y["ami_label_high"]), *draws.get(str(y["tap"]), [])]) for y in fresh]
    apart = [str(x["tap"]) for x, top in zip(last, highest, strict=True) if _number(x["ami_label_low"]) > top]
    text += f"; the untrained network has {_range(fresh[0], draws)} and {_range(fresh[-1], draws)}. "
    if not apart:
        return text + "At no tap are the trained network's codes surely better than the untrained one's."
    return text + (
        f"The trained network's codes are surely better (intervals apart, every draw) at {len(apart)} of {len(last)} "
        f"taps, first at {apart[0]}."
    )


def _range(layer: Mapping[str, str | float | None], draws: Mapping[str, list[float]]) -> str:
    """The untrained network's value at a tap: its interval for one draw of weights, the range of several."""
    found = draws.get(str(layer["tap"]), [])
    if len(found) < 2:
        return f"{_band(layer, 'ami_label')} (one draw of its weights)"
    return f"{min(found):.2f} to {max(found):.2f} (in {len(found)} draws of its weights)"


def _topology(layers: Sequence[Mapping[str, str | float | None]]) -> str:
    differences, lows, highs = (
        _of(layers, "trained", "som", f"ami_above_kmeans{end}") for end in ("", "_low", "_high")
    )
    mean = sum(differences) / len(differences)
    ahead, behind = sum(low > 0 for low in lows), sum(high < 0 for high in highs)
    error = _of(layers, "trained", "som", "topographic_error")
    return (
        "Does the map's topology say more than codes alone? With as many centroids of k-means the adjusted mutual "
        f"information with the label differs by {mean:+.3f} on average over taps (map minus k-means); the map is "
        f"surely ahead at {ahead} and surely behind at {behind} of {len(differences)} taps. Its topographic error is "
        f"{min(error):.2f} to {max(error):.2f}."
    )


def _finite(layers: Sequence[Mapping[str, str | float | None]]) -> str:
    codes = _of(layers, "trained", "som", "effective_codes")
    units = _of(layers, "trained", "som", "units")[0]
    error = _of(layers, "trained", "som", "relative_error")
    normal = _of(layers, "trained", "som", "relative_error_gaussian")
    text = (
        f"How finite the patterns are: {min(codes):.0f} to {max(codes):.0f} effective codes of {units:.0f} units are "
        f"in use, and their error is {min(error):.0%} to {max(error):.0%} of the mean distance to the centre; codes of "
        f"a normal cloud of the same covariance have {min(normal):.0%} to {max(normal):.0%}. Activations are tighter "
        f"than such a cloud by more than 5 % at {_tighter(layers, 'trained')} of {len(error)} taps"
    )
    fresh = _of(layers, "untrained", "som", "relative_error")
    if fresh:
        text += f" (untrained network: {_tighter(layers, 'untrained')} of {len(fresh)})"
    return text + "."


def _tighter(layers: Sequence[Mapping[str, str | float | None]], network: str) -> int:
    """Taps where codes leave 5 % less of the activations than of a normal cloud."""
    pairs = (_of(layers, network, "som", name) for name in ("relative_error", "relative_error_gaussian"))
    return sum(ours < 0.95 * normal for ours, normal in zip(*pairs, strict=True))


def _telescope(rows: Sequence[Mapping[str, str | float | None]]) -> str:
    trained = [x for x in rows if x["network"] == "trained"]
    fresh = [x for x in rows if x["network"] == "untrained"]
    ends = [f"{_band(x, 'participation_ratio', 1)} of {_number(x['width']):.0f}" for x in (trained[0], trained[-1])]
    values = [_number(x["participation_ratio"]) for x in trained]
    low, high = values.index(min(values)), values.index(max(values))
    text = (
        f"The telescope: the participation ratio of the activations is {ends[0]} maps at the first tap and {ends[1]} "
        f"at the last, lowest at {trained[low]['tap']} ({values[low]:.1f}) and highest at {trained[high]['tap']} "
        f"({values[high]:.1f})"
    )
    if fresh:
        text += f"; in the untrained network it goes from {_ends(fresh, 'participation_ratio', 1)}"
    text += f". The mean cosine between prototypes goes from {_ends(trained, 'prototype_cosine', 2)}"
    if fresh:
        text += f" (untrained: from {_ends(fresh, 'prototype_cosine', 2)})"
    return text + "."


def _ends(rows: Sequence[Mapping[str, str | float | None]], column: str, digits: int) -> str:
    first, last = (_number(rows[i][column]) for i in (0, -1))
    return f"{first:.{digits}f} to {last:.{digits}f}"


def _landing(label: str, landings: Sequence[Landing]) -> str:
    numbers = [(x.layer.tap, x.numbers["perturbed"], x.numbers["noise"], x.numbers["clean"]) for x in landings]
    count, last = numbers[0][1]["n"], numbers[-1]
    text = (
        f"Of {count:.0f} images that {label} turns, {last[1]['reached_share']:.0%} land at the last tap on units of "
        f"the reached class and {last[1]['true_share']:.0%} on units of the true one"
    )
    if last[2]["n"]:
        text += f" (noise of the same size: {last[2]['reached_share']:.0%} and {last[2]['true_share']:.0%})"
    else:
        text += f" (clean: {last[3]['reached_share']:.0%} and {last[3]['true_share']:.0%})"
    # A layer whose units say nothing about the class may lean either way: only what lasts to the end counts.
    flip = None
    for tap, hit, _, _ in reversed(numbers):
        if not hit["reached_low"] > hit["true_high"]:
            break
        flip = tap
    first = next((tap for tap, hit, noise, _ in numbers if hit["reached_low"] > noise["reached_high"]), None)
    if flip is None:
        text += "; at the last tap the reached class does not surely outweigh the true one"
    else:
        text += f"; from {flip} on the reached class surely outweighs the true one"
    if first is not None:
        text += f", and from {first} on more land there than under noise"
    return text + "."


def _band(row: Mapping[str, str | float | None], column: str, digits: int = 2) -> str:
    value, low, high = (_number(row[name]) for name in (column, f"{column}_low", f"{column}_high"))
    if math.isnan(low):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
