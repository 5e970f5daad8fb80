"""Galleries and curves of :mod:`~aftershock.analyses.ldam`."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ... import Lines, Pictures, Series
from ..averaging import AVERAGE, LAST
from ..measures import Estimate
from ..study import TOP, Group, Study, langevin_name

# Measures that are shares or ratios around 1, so that one axis holds them.
_DIAL = {
    "activation_percentile": "activation: share of data below",
    "diversity_features": "diversity in features",
    "diversity_pixels": "diversity in pixels",
    "realism": "realism: share of held-out data further out",
    "transfer": "read as the class by an independent classifier",
}


def figures(study: Study, columns: int) -> list[Lines | Pictures]:
    """In the order in which they are shown."""
    found: list[Lines | Pictures] = [_gallery(study, target.name, columns) for target in study.targets]
    found.append(_dial(study))
    found.append(_price(study))
    found += _traces(study)
    if study.taught is not None:
        found.append(_learning(study))
    if study.averaging is not None:
        found += _averaging(study, columns)
    if any(not r.reason for r in study.attacks):
        found.append(_attacks(study))
    return found


def last_images(group: Group, columns: int) -> Tensor:
    """The last image of each chain, (columns, channels, height, width); NaN where there are fewer chains."""
    seen = group.images[:columns, -1]
    if len(seen) < columns:
        seen = torch.cat([seen, torch.full((columns - len(seen), *seen.shape[1:]), math.nan)])
    return seen


def _gallery(study: Study, target: str, columns: int) -> Pictures:
    columns = min(columns, study.chains)
    rows = [study.groups[target, s] for s in study.settings]
    return Pictures(
        f"What excites {target}",
        "A row per setting, a column per chain (the last state of each); all but the data start from the same images: "
        "the reference measure's at temperature 1, while its row has the chains' temperature. Data: the images of the "
        "fit set with the highest activation, and held-out ones that chance chose"
        + (" from the class." if target.startswith("logit:") else "."),
        torch.stack([last_images(g, columns) for g in rows]),
        [g.setting for g in rows],
        [f"chain {i + 1}" for i in range(columns)],
    )


def _series(name: str, found: Sequence[Estimate], style: str = "solid") -> Series:
    y = [_known(e.mean) for e in found]
    low, high = ([_known(v) for v in ends] for ends in ([e.low for e in found], [e.high for e in found]))
    if all(v is None for v in low):
        return Series(name, y)
    return Series(name, y, low, high, "dashed" if style == "dashed" else "solid")


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _dial(study: Study) -> Lines:
    settings = [s for s in study.settings if s != TOP]
    series = []
    for measure, name in _DIAL.items():
        found = [study.over(s, measure) for s in settings]
        if any(math.isfinite(e.mean) for e in found):
            series.append(_series(name, found, "dashed" if measure == "diversity_pixels" else "solid"))
    return Lines(
        "Activation, diversity and realism by setting",
        "Means over targets with 95 % intervals over chains. The discriminator's weight is the dial; random data "
        "images show what is reached at best. Diversity is 1 where chains differ as much as random data images do.",
        settings, "setting", "share, or ratio to data", series,
    )  # fmt: skip


def _price(study: Study) -> Lines:
    settings = [s for s in study.settings if s != TOP]
    names = {
        "activation_sd": "activation, standard deviations of data",
        "distance_ratio": "distance to data, 1 = median image",
    }
    return Lines(
        "How strong an activation, and how far from data",
        "Means over targets with 95 % intervals over chains: the activation in standard deviations from the data's "
        "mean, and the distance to held-out data in an independent classifier's features.",
        settings, "setting", "standard deviations, or ratio", [
            _series(name, [study.over(s, measure) for s in settings]) for measure, name in names.items()
        ],
    )  # fmt: skip


def _traces(study: Study) -> list[Lines]:
    """Have the chains forgotten their starts? The range over chains on the way."""
    first = study.targets[0].name
    groups = [study.groups[first, s] for s in study.of("langevin")]
    steps = len(groups[0].trace) if groups else 0
    if steps < 2:
        return []
    at = torch.linspace(0, steps - 1, min(steps, 60)).long()
    series = []
    for group in groups:
        seen = group.trace[at]
        low, high = seen.min(1).values.tolist(), seen.max(1).values.tolist()
        series.append(Series(group.setting, seen.mean(1).tolist(), low, high))
    return [
        Lines(
            f"Chains on their way: {first}",
            "Activation after the burn-in, mean of the chains and the range from the lowest to the highest one. Chains "
            "that have mixed cross each other all the time; the table of chains has R-hat.",
            [float(i) for i in at],
            "step after the burn-in",
            "activation, standard deviations of data",
            series,
        )
    ]


def _learning(study: Study) -> Lines:
    taught = study.taught
    real = taught.real if taught is not None else []
    fake = taught.fake if taught is not None else []
    return Lines(
        "The discriminator while it learns",
        "Mean logit of data and of chain samples (half current, half earlier ones), by round. It is frozen afterwards.",
        [float(i + 1) for i in range(len(real))], "round", "logit for “real”",
        [Series("data", real), Series("chain samples", fake)],
    )  # fmt: skip


def _averaging(study: Study, columns: int) -> list[Lines | Pictures]:
    case = study.averaging
    if case is None:
        return []
    targets = list(dict.fromkeys(name for _, name, _ in case.groups))
    weights = list(dict.fromkeys(w for _, _, w in case.groups))
    columns = min(columns, study.chains)
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


def _attacks(study: Study) -> Lines:
    labels = list(dict.fromkeys(r.label for r in study.attacks))
    series = []
    for score, against in dict.fromkeys((r.score, r.against) for r in study.attacks):
        by = {r.label: r.area for r in study.attacks if (r.score, r.against) == (score, against)}
        nothing = Estimate(math.nan, math.nan, math.nan)
        if not any(math.isfinite(a.mean) for a in by.values()):
            continue
        style = "solid" if against == study.attacks[0].against else "dashed"
        series.append(_series(f"{score}, against {against}", [by.get(n, nothing) for n in labels], style))
    return Lines(
        "Does it look less real once it is attacked?",
        "AUROC of the frozen discriminator's and of the judge's score for successes of each perturbation, against "
        "clean images and against noise of the same size, with 95 % intervals. 0.5: no difference.",
        labels, "perturbation", "AUROC", series, (0.0, 1.0),
    )  # fmt: skip
