"""Galleries and curves of :mod:`~aftershock.analyses.ldam`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ....harness.statistics.intervals import Estimate
from ...common.text import Style, known, methods, series
from ...findings import Lines, Pictures, Series
from ..averaging import AVERAGE, LAST
from ..measured import TOP, Group, Learning, Sampled, langevin_name

# Measures that are shares or ratios around 1, so that one axis holds them.
_DIAL = {
    "activation_percentile": "activation: share of data below",
    "diversity_features": "diversity in features",
    "diversity_pixels": "diversity in pixels",
    "realism": "realism: share of held-out data further out",
    "transfer": "read as the class by an independent classifier",
}


def figures(measured: Sampled, columns: int) -> list[Lines | Pictures]:
    """In the order in which they are shown."""
    found: list[Lines | Pictures] = [_gallery(measured, target.name, columns) for target in measured.targets]
    found.append(_dial(measured))
    found.append(_price(measured))
    found += _traces(measured)
    if measured.learning is not None:
        found.append(_learning(measured))
    if measured.averaging is not None:
        found += _averaging(measured, columns)
    if any(not r.reason for r in measured.attacks):
        found.append(_attacks(measured))
    return found


def last_images(group: Group, columns: int) -> Tensor:
    """The last image of each chain, (columns, channels, height, width); NaN where there are fewer chains."""
    seen = group.images[:columns, -1]
    if len(seen) < columns:
        seen = torch.cat([seen, torch.full((columns - len(seen), *seen.shape[1:]), math.nan)])
    return seen


def _gallery(measured: Sampled, target: str, columns: int) -> Pictures:
    columns = min(columns, measured.chains)
    rows = [measured.groups[target, s] for s in measured.settings]
    return Pictures(
        f"What excites {target}",
        "A row per setting, a column per chain (the last state of each); all but the data start from the same images: "
        "the reference measure's at temperature 1, while its row has the chains' temperature. Data: the images of the "
        "fit set with the highest activation, and held-out ones drawn at random"
        + (" from the class." if target.startswith("logit:") else "."),
        torch.stack([last_images(g, columns) for g in rows]),
        [g.setting for g in rows],
        [f"chain {i + 1}" for i in range(columns)],
    )


def _curve(name: str, found: Sequence[Estimate | None], style: Style = "solid") -> Series:
    banded = any(e is not None and known(e.low) is not None for e in found)
    return series(name, found, style if banded else "solid", banded)


def _dial(measured: Sampled) -> Lines:
    settings = [s for s in measured.settings if s != TOP]
    curves, seen = [], list[Estimate]()
    for measure, name in _DIAL.items():
        found = [measured.over(s, measure) for s in settings]
        seen += found
        if any(math.isfinite(e.value) for e in found):
            curves.append(_curve(name, found, "dashed" if measure == "diversity_pixels" else "solid"))
    return Lines(
        "Activation, diversity and realism by setting",
        f"Means over targets with {methods(seen)} over chains. The discriminator's weight is varied; random data "
        "images show the best possible values. Diversity is 1 where chains differ as much as random data images do.",
        settings, "setting", "share, or ratio to data", curves,
    )  # fmt: skip


def _price(measured: Sampled) -> Lines:
    settings = [s for s in measured.settings if s != TOP]
    names = {
        "activation_sd": "activation, standard deviations of data",
        "distance_ratio": "distance to data, 1 = median image",
    }
    found = {name: [measured.over(s, measure) for s in settings] for measure, name in names.items()}
    return Lines(
        "Strength of the activation, and distance from data",
        f"Means over targets with {methods(e for each in found.values() for e in each)} over chains: the activation in "
        "standard deviations from the data's mean, and the distance to held-out data in an independent classifier's "
        "features.",
        settings, "setting", "standard deviations, or ratio", [_curve(name, each) for name, each in found.items()],
    )  # fmt: skip


def _traces(measured: Sampled) -> list[Lines]:
    """Have the chains forgotten their starts? The range over chains on the way."""
    first = measured.targets[0].name
    groups = [measured.groups[first, s] for s in measured.of("langevin")]
    steps = len(groups[0].trace) if groups else 0
    if steps < 2:
        return []
    at = torch.linspace(0, steps - 1, min(steps, 60)).long()
    curves = []
    for group in groups:
        seen = group.trace[at]
        low, high = seen.min(1).values.tolist(), seen.max(1).values.tolist()
        curves.append(Series(group.setting, seen.mean(1).tolist(), low, high))
    return [
        Lines(
            f"Traces of the chains: {first}",
            "Activation after the burn-in, mean of the chains and the range from the lowest to the highest one. Chains "
            "that have mixed cross each other all the time; the table of chains has R-hat.",
            [float(i) for i in at],
            "step after the burn-in",
            "activation, standard deviations of data",
            curves,
        )
    ]


def _learning(measured: Sampled) -> Lines:
    learning = measured.learning or Learning((), ())
    return Lines(
        "The discriminator while it learns",
        "Mean logit of data and of chain samples (half current, half earlier ones), by round. It is frozen afterwards.",
        [float(i + 1) for i in range(len(learning.real))], "round", "logit for “real”",
        [Series("data", learning.real), Series("chain samples", learning.fake)],
    )  # fmt: skip


def _averaging(measured: Sampled, columns: int) -> list[Lines | Pictures]:
    case = measured.averaging
    if case is None:
        return []
    targets = list(dict.fromkeys(name for _, name, _ in case.groups))
    weights = list(dict.fromkeys(w for _, _, w in case.groups))
    columns = min(columns, measured.chains)
    pictures: list[Lines | Pictures] = []
    for target in targets:
        rows = [(w, n) for w in weights for n in (LAST, AVERAGE)]
        pictures.append(
            Pictures(
                f"Last and averaged weights: {target}",
                f"After {case.steps} steps of SGD at a constant rate. Columns start from the same image and share "
                "their noise; only the network differs.",
                torch.stack([last_images(case.groups[n, target, w], columns) for w, n in rows]),
                [f"{n} weights, {langevin_name(w)}" for w, n in rows],
                [f"chain {i + 1}" for i in range(columns)],
            )
        )
    return pictures


def _attacks(measured: Sampled) -> Lines:
    labels = list(dict.fromkeys(r.label for r in measured.attacks))
    curves = []
    for score, against in dict.fromkeys((r.score, r.against) for r in measured.attacks):
        by = {r.label: r.area for r in measured.attacks if (r.score, r.against) == (score, against)}
        if not any(math.isfinite(a.value) for a in by.values()):
            continue
        style: Style = "solid" if against == measured.attacks[0].against else "dashed"
        curves.append(_curve(f"{score}, against {against}", [by.get(n) for n in labels], style))
    return Lines(
        "Do attacked images look less real?",
        "AUROC of the frozen discriminator's and of the judge's score for successes of each perturbation, against "
        "clean images and against noise of the same size, with 95 % intervals. 0.5: no difference.",
        labels, "perturbation", "AUROC", curves, (0.0, 1.0),
    )  # fmt: skip
