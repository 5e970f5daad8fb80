"""The units of a network in order of relevance: pictures, tables and what they say."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...findings import HeatMaps, Lines, Panel, Table, Value
from ..relevance import Evidence, Orders, rank_correlation, relevance_to
from .tables import Page, band, number, said

ORDERS = ("correlation", "gradient x activation")
_UNITS = 64
_IMAGES = 200
_CLIP = 2.5
_NAMED = 20


def relevance_page(
    taps: Sequence[str],
    labels: Tensor,
    classes: Sequence[str],
    networks: Mapping[str, tuple[Evidence, Orders]],
    pictured: int,
) -> Page:
    """How relevance is spread over layers, whether two orders of the units agree, and the rearranged layers."""
    trained = networks["trained"][1]
    series = []
    layer_rows: list[list[Value]] = []
    order_rows: list[list[Value]] = []
    for network, (_, orders) in networks.items():
        style = "solid" if network == "trained" else "dashed"
        for k, name in enumerate(ORDERS):
            values = list(zip(orders.shares[k].tolist(), orders.low[k].tolist(), orders.high[k].tolist(), strict=True))
            series.append(band(name if network == "trained" else f"{name}, {network}", values, style))
            layer_rows += [
                [tap, depth, network, name, *share, *orders.within[depth]]
                for depth, (tap, share) in enumerate(zip(taps, values, strict=True))
            ]
        order_rows.append([network, *orders.agreement, _mean_within(orders), *orders.halves, orders.permuted])
    tables = [
        Table(
            "relevance-layers", "Share of relevance to the predicted class by layer, and the rank correlation of both "
            "orders inside the layer.",
            ["tap", "depth", "network", "order", "share", "share_low", "share_high", "within_layer",
             "within_layer_low", "within_layer_high"],
            layer_rows,
        ),
        Table(
            "relevance-orders", "Spearman's rank correlation of the two orders of units, over all layers and inside "
            "layers; of each order with itself on the other half of the images; mean |correlation| after shuffling.",
            ["network", "rank_correlation", "low", "high", "within_layers_mean", "halves_correlation",
             "halves_gradient_x_activation", "shuffled_mean_correlation"],
            order_rows,
        ),
    ]  # fmt: skip
    shares = Lines(
        "Relevance by layer",
        "Share of the summed relevance to the predicted class that each layer has (mean of its sampled units times all "
        "its units), in two ways to measure it. Bands: 95% over images.",
        list(taps), "tap, in execution order", "share of relevance", series,
    )  # fmt: skip
    figures, more = _strips(taps, labels, classes, networks["trained"][0], pictured)
    arrays = {
        "relevance/correlation": trained.correlation,
        "relevance/gradient_x_activation": trained.attribution,
    }
    return Page(_sentences(taps, networks), [shares, *figures], [*tables, *more], arrays)


def _mean_within(orders: Orders) -> float:
    known = [value for value, _, _ in orders.within if math.isfinite(value)]
    return sum(known) / len(known) if known else math.nan


def _sentences(taps: Sequence[str], networks: Mapping[str, tuple[Evidence, Orders]]) -> list[str]:
    trained = networks["trained"][1]
    text = (
        f"Units ordered by correlation with the predicted class's logit and by gradient times activation agree with "
        f"rank correlation {said(trained.agreement, 2)} over all layers and {_mean_within(trained):.2f} on average "
        f"inside a layer (each order with itself on other images: {trained.halves[0]:.2f} and {trained.halves[1]:.2f})"
    )
    if "untrained" in networks:
        before = networks["untrained"][1]
        text += f"; in the untrained network {said(before.agreement, 2)} and {_mean_within(before):.2f}"
    tops = []
    for k, name in enumerate(ORDERS):
        top = int(trained.shares[k].argmax())
        share = (float(trained.shares[k, top]), float(trained.low[k, top]), float(trained.high[k, top]))
        tops.append(f"{name}: {taps[top]} with {said(share, 2)}")
    return [f"{text}.", f"The layer with the largest share of relevance is, by {'; by '.join(tops)}."]


def _strips(
    taps: Sequence[str], labels: Tensor, classes: Sequence[str], evidence: Evidence, pictured: int
) -> tuple[list[HeatMaps], list[Table]]:
    """Rearranged layers for the output that is predicted most often."""
    output = int(torch.bincount(evidence.logits.argmax(1), minlength=len(classes)).argmax())
    relevances = dict(zip(ORDERS, relevance_to(evidence, output), strict=True))
    blocks, order_of_classes = _by_class(labels, classes)
    chosen = sorted({round(i * (len(taps) - 1) / max(1, pictured - 1)) for i in range(min(pictured, len(taps)))})
    starts = torch.tensor([0, *evidence.units]).cumsum(0).tolist()
    panels: dict[str, list[Panel]] = {name: [] for name in ORDERS}
    rows: list[list[Value]] = []
    for depth in chosen:
        part = slice(starts[depth], starts[depth + 1])
        values = evidence.activations[:, part].double()
        deviation = values.std(0, correction=0)
        varying = deviation > 0
        standard = ((values - values.mean(0)) / torch.where(varying, deviation, 1.0)).clamp(-_CLIP, _CLIP)
        agreement = rank_correlation(*(relevances[name][part][varying] for name in ORDERS))
        for name in ORDERS:
            score = torch.where(varying, relevances[name][part], -1.0)
            order = score.argsort(descending=True, stable=True)[: min(_UNITS, int(varying.sum()))]
            panels[name].append(Panel(taps[depth], _with_gaps(standard[:, order], blocks)))
            rows += [
                [taps[depth], depth, classes[output], name, place, int(unit), float(score[unit]), number(agreement)]
                for place, unit in enumerate(order)
            ]
    figures = [
        HeatMaps(
            f"Units by relevance to {classes[output]}: {name}",
            f"Activations of the units of a layer in standard deviations (cut at {_CLIP}). Rows: units, the most "
            f"relevant to the output {classes[output]} first. Columns: held-out images by class, with a gap after each "
            f"class: {_listed(order_of_classes)}.",
            panels[name], -_CLIP, _CLIP,
        )
        for name in ORDERS
    ]  # fmt: skip
    table = Table(
        "units", f"The drawn units of the rearranged layers, by relevance to {classes[output]}; unit counts within "
        "the units that were read of the tap.",
        ["tap", "depth", "output", "order", "place", "unit", "relevance", "rank_correlation_of_orders"], rows,
    )  # fmt: skip
    return figures, [table]


def _by_class(labels: Tensor, classes: Sequence[str]) -> tuple[list[Tensor], list[str]]:
    """Rows of the images of each class, at most 200 in all, and the names of the classes that have one."""
    each = max(1, _IMAGES // len(classes))
    found = [((labels == c).nonzero().squeeze(1)[:each], name) for c, name in enumerate(classes)]
    kept = [(rows, name) for rows, name in found if len(rows)][:_IMAGES]
    return [rows for rows, _ in kept], [name for _, name in kept]


def _with_gaps(values: Tensor, blocks: Sequence[Tensor]) -> Tensor:
    """Columns (d, n) of blocks of images from (n, d), an empty one between two blocks, float32."""
    gap = torch.full((values.shape[1], 1), math.nan)
    parts = [part for rows in blocks for part in (gap, values[rows].T.float())]
    return torch.cat(parts[1:], 1).contiguous()


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= _NAMED else f"{', '.join(names[:_NAMED])} and so on"
