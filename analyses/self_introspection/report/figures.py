"""The curves and maps of :mod:`~aftershock.analyses.self_introspection`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...common.text import methods, series
from ...findings import Figure, HeatMaps, Lines, Panel, Points, Series
from ..latent_map import three
from ..measured import ATTACK, NOISE, Introspection
from ..reconstruction import RIGHT, WRONG, noise_of
from ..strips import CLIP, ORDERS

# Number of classes above which wrong predictions are one group: forty colours cannot be told apart.
_OWN_WRONG_GROUPS = 10
# Fewer images are not mentioned in sentences; tables have them all.
FEWEST = 10
_NAMED = 20


def figures(measured: Introspection, shown: int, drawn: int) -> list[Figure]:
    """In the order in which they are shown.

    Args:
        measured: what was measured.
        shown: perturbations in figures, the first that succeed.
        drawn: tracked images of each.
    """
    found: list[Figure] = [_errors(measured)] if measured.errors.merits else []
    found += [_map(measured, name, shown, drawn) for name in measured.maps]
    found += [*_tracks(measured, shown), _reconstruction(measured, shown), _relevance(measured)]
    return [*found, *_strips(measured)]


def _errors(measured: Introspection) -> Lines:
    curves = [
        Series(name, values, style="dashed" if name in ("max-softmax", "entropy") else "solid")
        for name, values in measured.errors.risk.items()
    ]
    return Lines(
        "Errors among the least suspicious images",
        "The error rate among the share of held-out images that each score finds least suspicious. A score that finds "
        "errors keeps its curve low; all end at the model's error rate.",
        list(measured.errors.coverages), "share of images kept", "error rate among them", curves,
    )  # fmt: skip


def _map(measured: Introspection, name: str, shown: int, drawn: int) -> Points:
    group, groups = _groups(measured)
    wrong = "a group of their own" if len(measured.classes) > _OWN_WRONG_GROUPS else "crosses"
    tracks, names = _ways(measured, name.partition(",")[0], shown, drawn)
    along = (
        " Lines lead from clean images in equal steps to perturbed ones, and to noise of the same size."
        if names
        else ""
    )
    control = "" if name == "autoencoder, 3 numbers" else " A control, see the purities."
    return Points(
        f"Latent map: {name}",
        f"All hidden activations of a held-out image as three numbers, coloured by its true class; wrong "
        f"predictions are {wrong}.{along}{control} Axes and position are arbitrary.",
        ["z1", "z2", "z3"], three(measured.maps[name]), group, groups, tracks, names,
    )  # fmt: skip


def _groups(measured: Introspection) -> tuple[Tensor, list[str]]:
    labels, classes, count = measured.labels, measured.classes, len(measured.classes)
    wrong = measured.predictions != labels
    if count > _OWN_WRONG_GROUPS:
        return torch.where(wrong, count, labels), [*classes, "wrong prediction"]
    present = labels[wrong].unique().tolist()
    place = torch.zeros(count, dtype=torch.int64)
    place[present] = torch.arange(len(present)) + count
    return torch.where(wrong, place[labels], labels), [*classes, *(f"{classes[c]}, predicted wrongly" for c in present)]


def _ways(measured: Introspection, encoder: str, shown: int, drawn: int) -> tuple[Tensor, list[str]]:
    """Tracks to draw, those of one kind under one name; ``tracks`` in the tables says which image each belongs to."""
    tracks, names = [torch.empty(0, 0, 3)], []
    for path in measured.paths[:shown]:
        for kind, name in ((ATTACK, path.label), (NOISE, noise_of(path.label))):
            if encoder in path.codes[kind]:
                tracks.append(three(path.codes[kind][encoder][:drawn]))
                names += [name] * len(tracks[-1])
    return (torch.cat(tracks[1:]), names) if names else (tracks[0], names)


def shown_paths(measured: Introspection, shown: int) -> list[str]:
    """Labels of the perturbations whose tracks are drawn and told."""
    return [path.label for path in measured.paths if len(path.rows) >= FEWEST][:shown]


def _tracks(measured: Introspection, shown: int) -> Iterator[Lines]:
    told = shown_paths(measured, shown)
    curves = []
    for c in measured.crossings:
        if c.label in told and c.code == "autoencoder":
            curves += [series(c.label, c.nearing[ATTACK]), series(noise_of(c.label), c.nearing[NOISE], "dashed")]
        elif c.label in told:
            curves.append(series(f"{c.label}, in {c.code}", c.nearing[ATTACK], "dotted"))
    if told:
        yield Lines(
            "Where tracks cross from class to class",
            "Mahalanobis distance in the scoring code to the mean of the clean class, minus that to the class that the "
            "perturbation reaches, along x + t times the perturbation; above 0 the code lies nearer to the predicted "
            "class. Noise of the same size starts from the same images. Bands: "
            f"{methods(measured.crossings[0].nearing[ATTACK])} over images.",
            list(measured.crossings[0].share), "t, share of the perturbation",
            "distance to clean class minus predicted class", curves,
        )  # fmt: skip


def _reconstruction(measured: Introspection, shown: int) -> Lines:
    labels = [m.images_of for m in measured.missed if not m.images_of.startswith(("clean, ", "noise as large as "))]
    drawn = [RIGHT, WRONG]
    for label in list(dict.fromkeys(labels))[:shown]:
        drawn += [label, noise_of(label)]
    curves = []
    for m in measured.missed:
        if m.code == "autoencoder" and m.images_of in drawn:
            curves.append(series(m.images_of, m.median, "dashed" if m.images_of.startswith("noise") else "solid"))
        elif m.images_of == RIGHT:
            curves.append(series(f"{m.images_of}, in {m.code}", m.median, "dotted"))
    return Lines(
        "What the code misses, by layer",
        "Squared reconstruction error of each layer over its variance on fit images, the median image: 0 is perfect, 1 "
        "is about what the layer's mean would miss. Bands: "
        f"{methods(v for m in measured.missed for v in m.median)} over images.",
        list(measured.taps), "tap, in execution order", "variance not explained", curves,
    )  # fmt: skip


def _relevance(measured: Introspection) -> Lines:
    curves = [
        series(
            name if network == "trained" else f"{name}, {network}",
            orders.shares[k],
            "solid" if network == "trained" else "dashed",
        )
        for network, orders in measured.orders.items()
        for k, name in enumerate(ORDERS)
    ]
    return Lines(
        "Relevance by layer",
        "Share of the summed relevance to the predicted class that each layer has (mean of its sampled units times all "
        f"its units), in two ways to measure it. Bands: {methods(measured.orders['trained'].shares[0])} over images.",
        list(measured.taps), "tap, in execution order", "share of relevance", curves,
    )  # fmt: skip


def _strips(measured: Introspection) -> list[HeatMaps]:
    output = measured.classes[measured.output]
    blocks = _listed([measured.classes[c] for c in measured.blocks])
    return [
        HeatMaps(
            f"Units by relevance to {output}: {name}",
            f"Activations of the units of a layer in standard deviations (cut at {CLIP}). Rows: units, the most "
            f"relevant to the output {output} first. Columns: held-out images by class, with a gap after each "
            f"class: {blocks}.",
            [Panel(s.tap, s.activations) for s in measured.strips if s.order == name], -CLIP, CLIP,
        )
        for name in ORDERS
    ]  # fmt: skip


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _NAMED else f"{', '.join(names[:_NAMED])} and so on"
