"""Every number of :mod:`~aftershock.analyses.self_introspection`."""

from __future__ import annotations

import math

from ...common.text import known, methods
from ...findings import Table, Value
from ..latent_map import three
from ..measured import ATTACK, NOISE, Introspection
from ..relevance import Orders
from ..strips import ORDERS


def tables(measured: Introspection) -> list[Table]:
    """In the order in which they are shown."""
    found = _errors(measured) if measured.errors.merits else []
    found += [_purity(measured), _map(measured)]
    if measured.paths:
        found += [_tracks(measured), _crossings(measured), _nearing(measured)]
    found.append(_reconstruction(measured))
    if measured.told:
        found.append(_told(measured))
    return [*found, _layers(measured), _orders(measured), _units(measured)]


def _errors(measured: Introspection) -> list[Table]:
    errors = measured.errors
    return [
        Table(
            "misclassification", "How well a score separates wrong from right predictions on clean held-out images, "
            f"and beyond max-softmax, with {methods([errors.merits[0].auroc, errors.merits[0].difference])}.",
            ["score", "wrong", "images", "auroc", "auroc_low", "auroc_high", "minus_max_softmax", "minus_low",
             "minus_high"],
            [[m.name, errors.wrong, errors.images, *m.auroc.ends, *m.difference.ends] for m in errors.merits],
        ),
        Table(
            "risk-coverage", "Error rate among the share of images that a score finds least suspicious.",
            ["score", "share_kept", "error_rate"],
            [[n, c, v] for n, rates in errors.risk.items() for c, v in zip(errors.coverages, rates, strict=True)],
        ),
    ]  # fmt: skip


def _purity(measured: Introspection) -> Table:
    return Table(
        "purity", "Share of an image's nearest held-out neighbours that have its class, in each space, with "
        f"{methods(p.share for p in measured.purities)}.",
        ["space", "numbers", "purity", "purity_low", "purity_high", "chance", "silhouette"],
        [[p.space, p.size, *p.share.ends, p.chance, known(p.silhouette)] for p in measured.purities],
    )  # fmt: skip


def _map(measured: Introspection) -> Table:
    labels, predictions = ([measured.classes[c] for c in x.tolist()] for x in (measured.labels, measured.predictions))
    rows: list[list[Value]] = [
        [name, i, labels[i], predictions[i], *point]
        for name, points in measured.maps.items()
        for i, point in enumerate(three(points).tolist())
    ]
    caption = "Where each held-out image lies in each map; the predictions are the trained network's."
    return Table("map", caption, ["map", "image", "label", "prediction", "z1", "z2", "z3"], rows)


def _tracks(measured: Introspection) -> Table:
    rows: list[list[Value]] = []
    for path in measured.paths:
        for kind, codes in path.codes.items():
            for encoder, points in codes.items():
                ways = zip(path.rows, path.predictions[kind].tolist(), three(points).tolist(), strict=True)
                for row, predicted, way in ways:
                    steps = zip(path.share.tolist(), predicted, way, strict=True)
                    rows += [[path.label, kind, encoder, row, t, p, *point] for t, p, point in steps]
    caption = "Tracks through the maps: the code of x + t * (perturbation), and what the model predicts there."
    names = ["perturbation", "track", "map", "image", "t", "predicted", "z1", "z2", "z3"]
    return Table("tracks", caption, names, rows)


_ENDS = ("mean", "low", "high")


def _crossings(measured: Introspection) -> Table:
    rows: list[list[Value]] = [
        [
            c.label,
            c.code,
            c.images,
            *c.flip.ends,
            *c.start.ends,
            *c.end[ATTACK].ends,
            *c.end[NOISE].ends,
            c.crossed,
            *c.crossing.ends,
            *c.lag.ends,
        ]
        for c in measured.crossings
    ]
    return Table(
        "crossings", "Where the prediction changes and where the code crosses to the predicted class, among images "
        "whose code starts nearer to their own; beyond: the share that lies nearer to the predicted class; "
        f"{methods(e for c in measured.crossings for e in (c.flip, c.start))}.",
        ["perturbation", "code", "images", *(f"flip_t_{c}" for c in _ENDS), "start_beyond",
         "start_beyond_low", "start_beyond_high", "end_beyond", "end_beyond_low", "end_beyond_high",
         "noise_beyond", "noise_beyond_low", "noise_beyond_high", "crossing_images",
         *(f"crossing_t_{c}" for c in _ENDS), *(f"crossing_minus_flip_{c}" for c in _ENDS)],
        rows,
    )  # fmt: skip


def _nearing(measured: Introspection) -> Table:
    rows: list[list[Value]] = [
        [
            c.label,
            c.code,
            t,
            *c.nearing[ATTACK][i].ends,
            *c.nearing[NOISE][i].ends,
            c.changed[ATTACK][i],
            c.changed[NOISE][i],
        ]
        for c in measured.crossings
        for i, t in enumerate(c.share)
    ]
    return Table(
        "nearing", "Distance to the clean class minus that to the predicted class along the tracks, with "
        f"{methods(measured.crossings[0].nearing[ATTACK])}, and how many predictions have changed (turned).",
        ["perturbation", "code", "t", *_ENDS, *(f"noise_{c}" for c in _ENDS), "turned", "noise_turned"], rows,
    )  # fmt: skip


def _reconstruction(measured: Introspection) -> Table:
    rows: list[list[Value]] = [
        [tap, i, m.code, m.images_of, m.images, *median.ends, mean]
        for m in measured.missed
        for i, (tap, median, mean) in enumerate(zip(measured.taps, m.median, m.mean, strict=True))
    ]
    return Table(
        "reconstruction", "Share of a layer's variance that the code misses, by set of images, with "
        f"{methods(v for m in measured.missed for v in m.median)} of the median.",
        ["tap", "depth", "code", "images_of", "images", "unexplained_median", "unexplained_low", "unexplained_high",
         "unexplained_mean"],
        rows,
    )  # fmt: skip


def _told(measured: Introspection) -> Table:
    return Table(
        "reconstruction-auroc", "How well reconstruction errors separate successes from clean images and noise, with "
        f"{methods(t.auroc for t in measured.told)}.",
        ["perturbation", "score", "against", "positives", "negatives", "auroc", "auroc_low", "auroc_high"],
        [[t.label, t.score, t.against, t.positives, t.negatives, *t.auroc.ends] for t in measured.told],
    )  # fmt: skip


def _layers(measured: Introspection) -> Table:
    rows: list[list[Value]] = [
        [tap, depth, network, name, *share.ends, *orders.within[depth].ends]
        for network, orders in measured.orders.items()
        for k, name in enumerate(ORDERS)
        for depth, (tap, share) in enumerate(zip(measured.taps, orders.shares[k], strict=True))
    ]
    seen = [*measured.orders["trained"].shares[0], measured.orders["trained"].agreement]
    return Table(
        "relevance-layers", "Share of relevance to the predicted class by layer, and the rank correlation of both "
        f"orders inside the layer, with {methods(seen)}.",
        ["tap", "depth", "network", "order", "share", "share_low", "share_high", "within_layer", "within_layer_low",
         "within_layer_high"],
        rows,
    )  # fmt: skip


def mean_within(orders: Orders) -> float:
    """The rank correlation of both orders inside a layer, mean over layers that have one."""
    found = [one.value for one in orders.within if math.isfinite(one.value)]
    return sum(found) / len(found) if found else math.nan


def _orders(measured: Introspection) -> Table:
    return Table(
        "relevance-orders", "Spearman's rank correlation of the two orders of units, over all layers and inside "
        "layers; of each order with itself on the other half of the images; mean |correlation| after shuffling; "
        f"{methods(o.agreement for o in measured.orders.values())}.",
        ["network", "rank_correlation", "low", "high", "within_layers_mean", "halves_correlation",
         "halves_gradient_x_activation", "shuffled_mean_correlation"],
        [[n, *o.agreement.ends, mean_within(o), *o.halves, o.permuted] for n, o in measured.orders.items()],
    )  # fmt: skip


def _units(measured: Introspection) -> Table:
    output = measured.classes[measured.output]
    rows: list[list[Value]] = [
        [s.tap, s.depth, output, s.order, place, unit, score, known(s.agreement)]
        for s in measured.strips
        for place, (unit, score) in enumerate(zip(s.units, s.relevance, strict=True))
    ]
    return Table(
        "units", f"The drawn units of the rearranged layers, by relevance to {output}; unit counts within the units "
        "that were read of the tap.",
        ["tap", "depth", "output", "order", "place", "unit", "relevance", "rank_correlation_of_orders"], rows,
    )  # fmt: skip
