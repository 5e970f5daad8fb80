"""What self-introspection says, draws and tabulates: sentences, figures and tables of each of its parts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ....harness.statistics.detection import auroc, auroc_interval
from ....harness.statistics.intervals import FloatArray, mean_interval, mean_intervals, median_interval, proportion
from ....harness.tracing.traces import Traces
from ...base import PerturbedSet
from ...findings import Figure, Lines, Points, Series, Table, Value
from ..fringe import Merit, activation_norm, reconstruction, risk_by_coverage, unexplained
from ..latent_map import Code, Tracks, first_crossing, three
from ..tracks import Paths, Purity, gather_success

Interval = tuple[float, float, float]
COVERAGES = tuple(c / 20 for c in range(1, 21))
# Above so many classes the wrong predictions are one group: nobody tells forty colours apart.
_OWN_WRONG_GROUPS = 10
# Fewer images say nothing in a sentence; tables have them all.
FEWEST = 10


@dataclass(frozen=True, eq=False)
class Page:
    """A part of the findings."""

    sentences: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    arrays: Mapping[str, Tensor] = field(default_factory=dict)


def said(interval: Interval, digits: int = 3) -> str:
    """A number with its interval."""
    value, low, high = interval
    return f"{value:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def apart(interval: Interval) -> str:
    """Where a difference lies, in words."""
    _, low, high = interval
    return "higher" if low > 0 else "lower" if high < 0 else "no different within its interval"


def number(value: float) -> float | None:
    """A number for a curve; ``None`` where there is none."""
    return value if math.isfinite(value) else None


def band(name: str, values: Sequence[Interval], style: str = "solid") -> Series:
    """A curve with its intervals."""
    y, low, high = ([number(v) for v in column] for column in zip(*values, strict=True))
    return Series(name, y, low, high, style)  # type: ignore[arg-type]  # a literal


def fringe_page(found: Sequence[Merit], scores: Mapping[str, FloatArray], wrong: Tensor) -> Page:
    """Does the fringe know errors better than max-softmax does?"""
    count, errors = len(wrong), int(wrong.sum())
    if not found:
        text = (
            f"The model is wrong about {errors} of {count} held-out images, too few (or too many) to say whether "
            "errors lie in the fringe of the map."
        )
        return Page([text])
    by_name = {m.name: m for m in found}
    fringe, baseline, entropy = by_name["fringe, autoencoder"], by_name["max-softmax"], by_name["entropy"]
    sentences = [
        f"The fringe score finds the {errors} wrong predictions among {count} held-out images with AUROC "
        f"{said(fringe.auroc)}; max-softmax, which needs no code, has {said(baseline.auroc)} and the entropy "
        f"{said(entropy.auroc)}. The difference to max-softmax, {said(fringe.difference)}, is "
        f"{apart(fringe.difference)}; with principal components of the same size the fringe has "
        f"{said(by_name['fringe, pca'].auroc)}."
    ]
    curves = {name: risk_by_coverage(scores[name], wrong, COVERAGES) for name in by_name if "reconstr" not in name}
    styles = {name: "dashed" if name in ("max-softmax", "entropy") else "solid" for name in curves}
    figure = Lines(
        "Errors among the least suspicious images",
        "The error rate among the share of held-out images that each score finds least suspicious. A score that knows "
        "errors keeps its curve low; all end at the model's error rate.",
        list(COVERAGES), "share of images kept", "error rate among them",
        [Series(name, values, style=styles[name]) for name, values in curves.items()],  # type: ignore[arg-type]
    )  # fmt: skip
    merit_rows: list[list[Value]] = [[m.name, errors, count, *m.auroc, *m.difference] for m in found]
    risk_rows: list[list[Value]] = [
        [name, c, v] for name, values in curves.items() for c, v in zip(COVERAGES, values, strict=True)
    ]
    tables = [
        Table(
            "misclassification", "How well a score tells wrong predictions from right ones on clean held-out images.",
            ["score", "wrong", "images", "auroc", "auroc_low", "auroc_high", "minus_max_softmax", "minus_low",
             "minus_high"],
            merit_rows,
        ),
        Table(
            "risk-coverage", "Error rate among the share of images that a score finds least suspicious.",
            ["score", "share_kept", "error_rate"], risk_rows,
        ),
    ]  # fmt: skip
    return Page(sentences, [figure], tables)


def map_page(
    maps: Mapping[str, Tensor],
    traces: Traces,
    classes: Sequence[str],
    found: Sequence[Purity],
    paths: Sequence[Paths],
    shown: int,
    drawn: int,
) -> Page:
    """The maps with tracks, and how pure classes are in them."""
    labels, wrong = traces.labels, traces.predictions != traces.labels
    group, groups = _groups(labels, wrong, classes)
    figures = []
    errors = "a group of their own" if len(classes) > _OWN_WRONG_GROUPS else "crosses"
    for name, points in maps.items():
        encoder = name.removeprefix("untrained network, ").partition(",")[0]
        trained = not name.startswith("untrained")
        tracks, names = _tracks(encoder, paths[:shown], drawn) if trained else (torch.empty(0, 0, 3), [])
        along = (
            " Lines lead from clean images in equal steps to perturbed ones, and to noise of the same size."
            if len(names)
            else ""
        )
        control = "" if name == "autoencoder, 3 numbers" else " A control, see the purities."
        figures.append(
            Points(
                f"Latent map: {name}",
                f"All hidden activations of a held-out image as three numbers, coloured by its true class; wrong "
                f"predictions are {errors}.{along}{control} Axes and position are arbitrary.",
                ["z1", "z2", "z3"], three(points), group, groups, tracks, names,
            )
        )  # fmt: skip
    by_name = {p.space: p for p in found}
    chosen, linear = by_name["autoencoder, 3 numbers"], by_name["pca, 3 numbers"]
    text = (
        f"In the map of three numbers {said(chosen.share)} of an image's nearest neighbours have its class (chance "
        f"{chosen.chance:.3f}); with principal components it is {said(linear.share)}"
    )
    before = by_name.get("untrained network, autoencoder, 3 numbers")
    text += f", in an untrained network {said(before.share)}" if before is not None else ""
    pooled = by_name["last tap of the network, pooled"]
    text += f", in the pooled last layer, without a code, {said(pooled.share)}."
    purity_rows = [[p.space, p.size, *p.share, p.chance, number(p.silhouette)] for p in found]
    tables = [
        Table(
            "purity", "Share of an image's nearest held-out neighbours that have its class, in each space.",
            ["space", "numbers", "purity", "purity_low", "purity_high", "chance", "silhouette"], purity_rows,
        ),
        _map_table(maps, traces, classes),
    ]  # fmt: skip
    if paths:
        tables.append(_track_table(paths, [name.partition(",")[0] for name in maps if not name.startswith("un")]))
    arrays = {f"map/{name}": points for name, points in maps.items()}
    return Page([text], figures, tables, arrays)


def _groups(labels: Tensor, wrong: Tensor, classes: Sequence[str]) -> tuple[Tensor, list[str]]:
    count = len(classes)
    if count > _OWN_WRONG_GROUPS:
        return torch.where(wrong, count, labels), [*classes, "wrong prediction"]
    present = labels[wrong].unique().tolist()
    place = torch.zeros(count, dtype=torch.int64)
    place[present] = torch.arange(len(present)) + count
    return torch.where(wrong, place[labels], labels), [*classes, *(f"{classes[c]}, predicted wrongly" for c in present)]


def _tracks(encoder: str, paths: Sequence[Paths], drawn: int) -> tuple[Tensor, list[str]]:
    """Tracks to draw, those of one kind under one name; ``tracks`` in the tables says which image each belongs to."""
    tracks, names = [], []
    for path in paths:
        for name, found in ((path.label, path.attack), (f"noise as large as {path.label}", path.noise)):
            some = three(found.codes[encoder][:drawn])
            tracks.append(some)
            names += [name] * len(some)
    return (torch.cat(tracks), names) if tracks else (torch.empty(0, 0, 3), [])


def _map_table(maps: Mapping[str, Tensor], traces: Traces, classes: Sequence[str]) -> Table:
    rows: list[list[Value]] = []
    labels, predictions = traces.labels.tolist(), traces.predictions.tolist()
    for name, points in maps.items():
        for i, point in enumerate(three(points).tolist()):
            rows.append([name, i, classes[labels[i]], classes[predictions[i]], *point])
    caption = "Where each held-out image lies in each map; the predictions are the trained network's."
    return Table("map", caption, ["map", "image", "label", "prediction", "z1", "z2", "z3"], rows)


def _track_table(paths: Sequence[Paths], encoders: Sequence[str]) -> Table:
    rows: list[list[Value]] = []
    for path in paths:
        for kind, tracks in (("perturbation", path.attack), ("noise", path.noise)):
            predictions = tracks.logits.argmax(2)
            for encoder in encoders:
                for i, row in enumerate(path.rows):
                    points = three(tracks.codes[encoder][i]).tolist()
                    for t, predicted, point in zip(tracks.share.tolist(), predictions[i].tolist(), points, strict=True):
                        rows.append([path.label, kind, encoder, row, t, predicted, *point])
    caption = "Tracks through the maps: the code of x + t * (perturbation), and what the model predicts there."
    names = ["perturbation", "track", "map", "image", "t", "predicted", "z1", "z2", "z3"]
    return Table("tracks", caption, names, rows)


def track_page(paths: Sequence[Paths], codes: Mapping[str, Code], shown: int, seed: int) -> Page:
    """Where the prediction turns, and where the code comes nearer to the reached class."""
    if not paths:
        return Page(["No perturbation turned a prediction and had a noise control, so there are no tracks."])
    curves: list[list[Value]] = []
    crossings: list[list[Value]] = []
    series, sentences = [], []
    told = [path for path in paths if len(path.rows) >= FEWEST][:shown]
    for path in paths:
        flips = path.attack.flips()
        for name, code in codes.items():
            key = f"{name} scores"
            sides = {
                kind: tracks.nearing(key, code, path.clean, path.reached)
                for kind, tracks in (("perturbation", path.attack), ("noise", path.noise))
            }
            means = {kind: mean_intervals(values, seed) for kind, values in sides.items()}
            for i, t in enumerate(path.attack.share.tolist()):
                turned = [float((tracks.flips() <= t + 1e-12).double().mean()) for tracks in (path.attack, path.noise)]
                curves.append([path.label, name, t, *means["perturbation"][i], *means["noise"][i], *turned])
            row, texts = _crossing_row(path, sides, path.attack, flips, seed)
            crossings.append([path.label, name, len(path.rows), *row])
            if path in told and name == "autoencoder":
                series += [band(path.label, means["perturbation"])]
                series += [band(f"noise as large as {path.label}", means["noise"], "dashed")]
                sentences.append(f"On the way to {path.label} ({len(path.rows)} images) {texts}")
            elif path in told:
                series += [band(f"{path.label}, in {name}", means["perturbation"], "dotted")]
    figure = Lines(
        "Where tracks cross from class to class",
        "Mahalanobis distance in the scoring code to the mean of the clean class, minus that to the class that the "
        "perturbation reaches, along x + t times the perturbation; above 0 the code lies nearer to the reached class. "
        "Noise of the same size starts from the same images. Bands: 95% over images.",
        paths[0].attack.share.tolist(), "t, share of the perturbation", "distance to clean class minus reached class",
        series,
    )  # fmt: skip
    columns = ["mean", "low", "high"]
    tables = [
        Table(
            "crossings", "Where the prediction turns and where the code crosses to the reached class, among images "
            "whose code starts nearer to their own; beyond: the share that lies nearer to the reached class.",
            ["perturbation", "code", "images", *(f"flip_t_{c}" for c in columns), "start_beyond",
             "start_beyond_low", "start_beyond_high", "end_beyond", "end_beyond_low", "end_beyond_high",
             "noise_beyond", "noise_beyond_low", "noise_beyond_high", "crossing_images",
             *(f"crossing_t_{c}" for c in columns), *(f"crossing_minus_flip_{c}" for c in columns)],
            crossings,
        ),
        Table(
            "nearing", "Distance to the clean class minus that to the reached class along the tracks, and how many "
            "predictions have turned.",
            ["perturbation", "code", "t", *columns, *(f"noise_{c}" for c in columns), "turned", "noise_turned"],
            curves,
        ),
    ]  # fmt: skip
    if not told:
        return Page([f"No perturbation turned {FEWEST} predictions, too few to draw tracks."], [], tables)
    return Page(sentences, [figure], tables)


def _crossing_row(
    path: Paths, sides: Mapping[str, Tensor], attack: Tracks, flips: Tensor, seed: int
) -> tuple[list[Value], str]:
    values = sides["perturbation"]
    # An image that lies nearer to the reached class from the start has nothing to cross.
    started = values[:, 0] > 0
    crossings = torch.where(started, torch.nan, first_crossing(attack.share, values))
    start = proportion(int(started.sum()), len(values))
    ends = {kind: proportion(int((v[:, -1] > 0).sum()), len(v)) for kind, v in sides.items()}
    flip = mean_interval(flips[flips.isfinite()], seed)
    both = crossings.isfinite() & flips.isfinite()
    crossing = mean_interval(crossings[both], seed)
    lag = mean_interval((crossings - flips)[both], seed)
    crossed = int(both.sum())
    if not crossed:
        when = "No image's code crosses to the reached class on the way"
    elif crossed < FEWEST:
        when = f"The code of all layers crosses to the reached class in {crossed} of them, too few to say when"
    else:
        word = "later" if lag[1] > 0 else "earlier" if lag[2] < 0 else "neither earlier nor later"
        when = (
            f"The code of all layers crosses to the reached class in {crossed} of them, at "
            f"t = {said(crossing, 2)}, {word} than the prediction turns (difference {said(lag, 2)})"
        )
    text = (
        f"the prediction turns at t = {said(flip, 2)}. {when}; nearer to the reached class lie {said(start, 2)} of the "
        f"images at the start, {said(ends['perturbation'], 2)} at the end, and {said(ends['noise'], 2)} with noise of "
        "the same size."
    )
    return [*flip, *start, *ends["perturbation"], *ends["noise"], crossed, *crossing, *lag], text


def reconstruction_page(
    perturbed: Mapping[str, PerturbedSet], traces: Traces, raw: Tensor, codes: Mapping[str, Code], shown: int
) -> Page:
    """What the code misses by layer, and whether that tells an attack from clean images or only from noise."""
    taps = traces.tap_names()
    units = [traces.units(tap, "full") for tap in taps]
    wrong = traces.predictions != traces.labels
    sets = {"clean, right": raw[~wrong], "clean, wrong": raw[wrong]}
    compared: list[list[Value]] = []
    sentences: list[str] = []
    # Activations (n, d) to one number per image.
    scores: dict[str, Callable[[Tensor], Tensor]] = {
        f"reconstruction, {name}": partial(reconstruction, code) for name, code in codes.items()
    }
    scores["activation norm"] = partial(activation_norm, next(iter(codes.values())))
    drawn = list(sets)
    for each in perturbed.values():
        attack, rows, noise, noise_rows = gather_success(each, len(traces))
        if not len(attack):
            continue
        sets |= {each.label: attack, f"noise as large as {each.label}": noise}
        if len(drawn) < 2 + 2 * shown:
            drawn += [each.label, f"noise as large as {each.label}"]
        merit: dict[tuple[str, str], Interval] = {}
        for name, score in scores.items():
            high = score(attack)
            for against, other, sources in (("clean", raw[rows], rows), ("noise", noise, noise_rows)):
                if len(other):
                    merit[name, against] = _area(high, score(other), rows, sources)
                    compared.append([each.label, name, against, len(attack), len(other), *merit[name, against]])
        if len(attack) >= FEWEST and len(sentences) < shown and ("reconstruction, autoencoder", "noise") in merit:
            sentences.append(
                f"The reconstruction error tells {each.label} from its clean images with AUROC "
                f"{said(merit['reconstruction, autoencoder', 'clean'])}, and from noise of the same size with "
                f"{said(merit['reconstruction, autoencoder', 'noise'])} (principal components "
                f"{said(merit['reconstruction, pca', 'noise'])}, plain activation norm "
                f"{said(merit['activation norm', 'noise'])})."
            )
    rows_out: list[list[Value]] = []
    series = []
    for name, code in codes.items():
        for label, values in sets.items():
            if not len(values):
                continue
            missed = unexplained(code, values, units)
            medians = [median_interval(layer) for layer in missed.T]
            rows_out += [
                [tap, i, name, label, len(values), *median, float(mean)]
                for i, (tap, median, mean) in enumerate(zip(taps, medians, missed.mean(0), strict=True))
            ]
            if name == "autoencoder" and label in drawn:
                series.append(band(label, medians, "dashed" if label.startswith("noise") else "solid"))
            elif label == drawn[0]:
                series.append(band(f"{label}, in {name}", medians, "dotted"))
    figure = Lines(
        "What the code misses, by layer",
        "Squared reconstruction error of each layer over its variance on fit images, the median image: 0 is perfect, 1 "
        "is about what the layer's mean would miss. Bands: 95% over images.",
        list(taps), "tap, in execution order", "variance not explained", series,
    )  # fmt: skip
    tables = [
        Table(
            "reconstruction", "Share of a layer's variance that the code misses, by set of images.",
            ["tap", "depth", "code", "images_of", "images", "unexplained_median", "unexplained_low",
             "unexplained_high", "unexplained_mean"],
            rows_out,
        )
    ]  # fmt: skip
    if compared:
        tables.append(
            Table(
                "reconstruction-auroc", "How well reconstruction errors tell successes from clean images and noise.",
                ["perturbation", "score", "against", "positives", "negatives", "auroc", "auroc_low", "auroc_high"],
                compared,
            )
        )  # fmt: skip
    return Page(sentences, [figure], tables)


def _area(positive: Tensor, negative: Tensor, rows: Tensor, other_rows: Tensor) -> Interval:
    up, down = positive.numpy(), negative.numpy()
    low, high = auroc_interval(up, down, positive_source=rows.numpy(), negative_source=other_rows.numpy())
    return auroc(up, down), low, high
