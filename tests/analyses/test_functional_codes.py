"""Functional codes against scikit-learn, SciPy, MiniSom and plain loops, on planted layers, and in a whole run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.analyses.base import AnalysisInput, ImageSet, PerturbedSet
from aftershock.analyses.findings import Claim, Findings, HeatMaps, Lines, Pictures
from aftershock.analyses.functional_codes import measures
from aftershock.analyses.functional_codes.analysis import FunctionalCodes
from aftershock.analyses.functional_codes.layers import Classes, Layer, Sizes, code_layer
from aftershock.detectors.codes.codebook import Codebook
from aftershock.detectors.codes.som import SOM
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.traced_model import TracedModel
from aftershock.harness.tracing.traces import TapInfo, Traces
from minisom import MiniSom
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy, f_oneway, sem, t
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_mutual_info_score
from support.commands import Forks
from support.findings import findings_table, value_of
from support.suites import Tiny
from torch import Tensor, nn

TAPS = (TapInfo("noise", "relu", (5,)), TapInfo("classes", "relu", (4,)))
# Far apart and in a row: a map of one by three units has one for each.
CENTRES = torch.tensor([[1.0], [10.0], [19.0]]).expand(3, 4)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Twin(nn.Module):
    """Two taps that say nothing about the image's class."""

    def __init__(self) -> None:
        super().__init__()
        self.noise, self.classes = nn.Linear(4, 5), nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.classes(self.noise(images.flatten(1)))


def traces(analysis: FunctionalCodes, labels: Tensor, at: Tensor, predicted: Tensor, seed: int) -> Traces:
    """At the first tap noise; at the second the cluster of class ``at``."""
    g = draws(seed)
    codes: Mapping[str, Any] = {
        "pooled:mean": {
            "noise": torch.randn(len(labels), 5, generator=g),
            "classes": CENTRES[at] + 0.1 * torch.randn(len(labels), 4, generator=g),
        }
    }
    logits = 5 * torch.nn.functional.one_hot(predicted, 3).float()
    return Traces(logits, TAPS, codes, analysis.needs, label_rows=labels)


def images_of(classes: Tensor, seed: int) -> Callable[[slice], Tensor]:
    """2 x 2 images, each as bright as its class, with noise."""
    pixels = (classes.float() / 4 + 0.2).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    noisy = (pixels + 0.02 * torch.randn(pixels.shape, generator=draws(seed))).clamp(0, 1)
    return lambda rows: noisy[rows]


def planted(analysis: FunctionalCodes, twin: bool = True, n: int = 90, turned: bool = True) -> AnalysisInput:
    """Three classes; a perturbation that moves every second evaluate image into the next class's cluster."""
    labels = torch.arange(n) % 3

    def clean(seed: int) -> ImageSet:
        return ImageSet(traces(analysis, labels, labels, labels, seed), images_of(labels, seed))

    # Neither ascending nor the identity, so that a mix-up of rows would show.
    rows = torch.arange(n).flip(0)
    success = (torch.arange(n) % 2 == 0) if turned else torch.zeros(n, dtype=torch.bool)
    true = labels[rows]
    now = torch.where(success, (true + 1) % 3, true)
    control_rows = rows[success].flip(0)[5:]
    kept = labels[control_rows]
    perturbed = PerturbedSet(
        "shift", "attack", ImageSet(traces(analysis, true, now, now, 7), images_of(true, 7)), rows, success,
        ImageSet(traces(analysis, kept, kept, kept, 8), images_of(kept, 8)), control_rows,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Twin().eval()
    taps = tuple(TapInfo(t.name, "module", t.shape) for t in TAPS)
    traced_model = TracedModel(model, taps, ("noise", "classes"), model)

    def untrained(draw: int = 0) -> TracedModel:
        if not twin:
            raise UsageError("The model comes ready from its factory.")
        return traced_model

    return AnalysisInput(
        traced_model, untrained, ("a", "b", "c"), clean(1), clean(2), {"shift": perturbed}, seed=3
    )  # fmt: skip


def small(**more: Any) -> FunctionalCodes:
    return FunctionalCodes(
        **{"rows": 1, "columns": 3, "pictured_taps": 2, "pictured_units": 2, "nearest": 2, "permutations": 5, **more}
    )


def row_of(rows: list[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    (found,) = [row for row in rows if all(row[k] == v for k, v in wanted.items())]
    return found


def claim(found: Findings, kind: str) -> Claim:
    return next(c for c in found.claims if c.kind == kind)


@pytest.fixture(scope="module")
def found(study: Callable[..., Findings]) -> Findings:
    analysis = small()
    return study(analysis, planted(analysis))


# Statistics


def test_participation_ratio_of_known_clouds() -> None:
    g = draws()
    x = torch.randn(400, 6, generator=g, dtype=torch.float64)
    white = torch.linalg.qr(x - x.mean(0))[0]
    assert measures.participation_ratio(white) == pytest.approx(6, rel=1e-9)
    line = torch.randn(50, 1, generator=g, dtype=torch.float64) * torch.randn(1, 30, generator=g, dtype=torch.float64)
    assert measures.participation_ratio(line + 3) == pytest.approx(1, rel=1e-9)
    assert math.isnan(measures.participation_ratio(torch.ones(5, 3)))
    for shape in ((60, 8), (8, 60)):
        cloud = torch.randn(shape, generator=g, dtype=torch.float64).cumsum(1)
        values = np.linalg.eigvalsh(np.cov(cloud.numpy().T))
        assert measures.participation_ratio(cloud) == pytest.approx(values.sum() ** 2 / (values**2).sum(), rel=1e-8)


@pytest.mark.parametrize("shape", [(60, 8), (9, 40)])
def test_components_are_scikit_learns(shape: tuple[int, int]) -> None:
    cloud = torch.randn(shape, generator=draws(), dtype=torch.float64).cumsum(1)
    assert measures.components_for(cloud, 0.9) == PCA(n_components=0.9, svd_solver="full").fit(cloud).n_components_
    assert measures.components_for(torch.ones(5, 3), 0.9) == 0


def test_entropy_is_scipys() -> None:
    counts = torch.tensor([3, 0, 5, 1])
    assert measures.entropy(counts) == pytest.approx(entropy(counts.numpy(), base=2), rel=1e-12)
    assert measures.entropy(torch.tensor([4, 0])) == 0


@pytest.mark.parametrize(("units", "classes", "n"), [(64, 10, 500), (3, 3, 40), (1, 4, 30), (30, 2, 30), (1, 1, 5)])
def test_mutual_information_is_scikit_learns(units: int, classes: int, n: int) -> None:
    g = draws()
    labels = torch.randint(classes, (n,), generator=g)
    for code in (torch.randint(units, (n,), generator=g), labels, labels.flip(0), (labels + 1) % max(1, classes)):
        expected = adjusted_mutual_info_score(labels.numpy(), code.numpy())
        assert measures.mutual_information(code, labels) == pytest.approx(expected, abs=1e-9)


def test_the_highest_information_is_that_of_pure_units() -> None:
    units = torch.randint(12, (300,), generator=draws())
    pure = units // 4
    reached = adjusted_mutual_info_score(pure.numpy(), units.numpy())
    assert measures.highest_information(units, pure) == pytest.approx(reached, abs=1e-9)
    assert measures.highest_information(units, pure[torch.randperm(300, generator=draws())]) == pytest.approx(reached)
    assert reached < 1
    assert math.isnan(measures.highest_information(torch.zeros(5), torch.arange(5)))


def test_jackknife_of_a_mean_has_its_standard_error() -> None:
    x = torch.randn(10, generator=draws(), dtype=torch.float64)
    value, low, high = measures.over_images(lambda kept: float(x[kept].mean()), 10).ends
    assert value == pytest.approx(float(x.mean()))
    # Groups of one image: the standard error of a mean, exactly; 2.262 is Student's quantile with 9 degrees.
    assert (high - low) / 2 == pytest.approx(2.2621571627 * float(x.std()) / math.sqrt(10), rel=1e-8)


def test_majority_is_the_most_frequent_class_and_an_empty_unit_takes_its_neighbours() -> None:
    prototypes = torch.tensor([[0.0], [1.0], [10.0]])
    counts = measures.class_counts(torch.tensor([0, 0, 0, 2]), torch.tensor([1, 1, 0, 2]), (3, 3))
    assert counts.tolist() == [[1, 0, 0], [2, 0, 0], [0, 0, 1]]
    assert measures.majority_classes(counts, prototypes).tolist() == [1, 1, 2]


def test_neighbour_distances_are_those_of_a_loop() -> None:
    som = SOM(torch.randn(12, 5, generator=draws()), 3, 4)
    grid = som.prototypes.reshape(3, 4, 5)
    for r in range(3):
        for c in range(4):
            beside = [(r + a, c + b) for a, b in ((0, 1), (1, 0), (0, -1), (-1, 0))]
            known = [float((grid[r, c] - grid[p]).norm()) for p in beside if 0 <= p[0] < 3 and 0 <= p[1] < 4]
            assert float(measures.neighbour_distances(som)[r, c]) == pytest.approx(np.mean(known), rel=1e-5)


def test_class_distances_are_those_of_a_loop_over_pairs() -> None:
    g = draws()
    som = SOM(torch.zeros(12, 2), 3, 4)
    units, labels = torch.randint(12, (25,), generator=g), torch.randint(3, (25,), generator=g)
    same, other = list[float](), list[float]()
    for i in range(25):
        for j in range(i):
            (same if labels[i] == labels[j] else other).append(
                float(som.grid_distance(units[i : i + 1], units[j : j + 1]))
            )
    assert measures.class_distances(som, units, labels) == pytest.approx((np.mean(same), np.mean(other)), rel=1e-6)


def test_mean_cosine_is_that_of_a_loop_over_pairs() -> None:
    x = torch.rand(7, 4, generator=draws())
    pairs = [float(torch.nn.functional.cosine_similarity(x[i], x[j], dim=0)) for i in range(7) for j in range(i)]
    assert measures.mean_cosine(torch.cat([x, torch.zeros(1, 4)])) == pytest.approx(np.mean(pairs), rel=1e-5)


def test_variance_share_is_the_adjusted_correlation_ratio_of_an_analysis_of_variance() -> None:
    g = draws()
    units = torch.randint(4, (60,), generator=g)
    x = torch.randn(60, generator=g, dtype=torch.float64) + units
    f = f_oneway(*[x[units == u].numpy() for u in range(4)]).statistic
    expected = 3 * (f - 1) / (3 * f + 60 - 4)
    assert measures.variance_share(x[:, None], units, 6) == pytest.approx(expected, rel=1e-9)
    chance = [
        measures.variance_share(torch.randn(60, 3, generator=g), torch.randint(4, (60,), generator=g), 4)
        for _ in range(200)
    ]
    assert abs(np.mean(chance)) < 4 * np.std(chance) / math.sqrt(200)


def test_divergence_is_scipys_class_by_class() -> None:
    g = draws()
    reference = torch.randint(0, 9, (3, 5), generator=g)
    reference[2] = 0
    units, groups = torch.randint(5, (40,), generator=g), torch.randint(3, (40,), generator=g)
    expected, weight = 0.0, 0
    for c in (0, 1):
        mine = torch.bincount(units[groups == c], minlength=5)
        expected += len(units[groups == c]) * jensenshannon(mine.numpy(), reference[c].numpy(), base=2)
        weight += len(units[groups == c])
    assert measures.divergence(units, groups, reference) == pytest.approx(expected / weight, rel=1e-9)
    assert math.isnan(measures.divergence(units[:0], groups[:0], reference))


def test_relative_error_of_a_lone_prototype_at_the_centre_is_one() -> None:
    x = torch.randn(50, 3, generator=draws())
    centre = x.mean(0)
    assert measures.relative_error(Codebook(centre[None]), x, centre) == pytest.approx(1, abs=1e-6)
    assert measures.relative_error(Codebook(x), x, centre) == 0


def test_the_normal_cloud_has_the_mean_and_covariance_of_the_samples() -> None:
    x = torch.randn(500, 3, generator=draws()) @ torch.tensor([[2.0, 1, 0], [0, 1, 0.5], [0, 0, 0.3]]) + 4
    cloud = measures.gaussian_like(x, 20000, draws(1))
    # Standard errors at 20,000 samples are below 0.04 for variances of up to 5.
    assert torch.allclose(cloud.mean(0), x.mean(0), atol=0.1)
    assert torch.allclose(cloud.T.cov(), x.T.cov(), atol=0.25)


# One layer


def coded(x: Tensor, held: Tensor, labels: tuple[Tensor, Tensor], rows: int, columns: int) -> list[Layer]:
    analysis = small()
    classes = Classes(int(labels[0].max()) + 1, *labels, labels[1].flip(0))
    sizes = Sizes(rows, columns, 30, 10)
    return code_layer(planted(analysis), ("tap", 1, "trained"), (x, held), classes, sizes)[0]


def test_errors_and_information_are_minisoms_and_scikit_learns() -> None:
    g = draws()
    x, held = (torch.randn(n, 4, generator=g) * torch.tensor([1.0, 2, 3, 4]) + 5 for n in (200, 80))
    labels = (torch.randint(3, (200,), generator=g), (held[:, 3] > 5).long())
    for layer in coded(x, held, labels, 4, 5):
        scaled = ((held - x.mean(0)) / x.std(0, correction=0)).double().numpy()
        if layer.coder == "som":
            other = MiniSom(4, 5, 4)
            other._weights = layer.book.prototypes.double().numpy().reshape(4, 5, 4).copy()
            assert layer.numbers["quantisation_error"] == pytest.approx(other.quantization_error(scaled), rel=1e-5)
            assert layer.numbers["topographic_error"] == pytest.approx(other.topographic_error(scaled), abs=1e-9)
        nearest = np.linalg.norm(scaled[:, None] - layer.book.prototypes.numpy(), axis=2).argmin(1)
        assert layer.held_units.tolist() == nearest.tolist()
        for name, classes in (("ami_label", labels[1]), ("ami_prediction", labels[1].flip(0))):
            expected = adjusted_mutual_info_score(classes.numpy(), nearest)
            assert layer.numbers[name] == pytest.approx(expected, abs=1e-12)
            assert layer.numbers[f"{name}_low"] < layer.numbers[name] < layer.numbers[f"{name}_high"]


def test_a_ring_is_mapped_in_order() -> None:
    angle = torch.rand(600, generator=draws()) * 2 * math.pi
    ring = torch.stack([angle.cos(), angle.sin()], 1)
    labels = (angle / math.pi).long()
    layer = coded(ring[:400], ring[400:], (labels[:400], labels[400:]), 1, 12)[0]
    assert layer.numbers["topographic_error"] < 0.15
    at = torch.atan2(layer.book.prototypes[:, 1], layer.book.prototypes[:, 0])
    steps = torch.remainder(at.diff() + math.pi, 2 * math.pi) - math.pi
    assert bool((steps > 0).all()) or bool((steps < 0).all())


def test_a_constant_layer_breaks_nothing() -> None:
    labels = torch.arange(60) % 3
    layer = coded(torch.ones(60, 4), torch.ones(60, 4), (labels, labels), 2, 2)[0]
    assert layer.numbers["ami_label"] == pytest.approx(0, abs=1e-9)
    assert layer.numbers["effective_codes"] == 1


# The whole analysis on planted layers


def test_planted_classes_are_found_and_noise_is_not(found: Findings) -> None:
    rows = findings_table(found, "functional-codes")
    for coder in ("som", "kmeans"):
        classes = row_of(rows, tap="classes", network="trained", coder=coder)
        assert classes["accuracy"] == 1
        assert classes["ami_label"] == pytest.approx(1)
        assert classes["ami_prediction"] == pytest.approx(1)
        assert abs(classes["ami_shuffled"]) < 0.05
        # The three classes' brightness is most of what differs between the images.
        assert classes["pixel_share"] > 0.9
        noise = row_of(rows, tap="noise", network="trained", coder=coder)
        assert noise["ami_label"] < 0.1
        assert abs(noise["pixel_share"]) < 0.15
    classes = row_of(rows, tap="classes", network="trained", coder="som")
    # One unit for each class: what the rest of these tests stands on.
    assert classes["effective_codes"] == pytest.approx(3)
    assert classes["same_class_steps"] == 0
    # A unit at either end is pulled to the middle by exp(−1 / 2r²) of the last radius r = 0.5: 0.119 of a step.
    assert classes["relative_error"] == pytest.approx(math.exp(-2) / (1 + math.exp(-2)), abs=0.02)
    assert classes["relative_error"] < 0.5 * classes["relative_error_gaussian"]
    assert {(r["tap"], r["network"], r["coder"]) for r in rows} == {
        (tap, *kind) for tap in ("noise", "classes")
        for kind in (("trained", "som"), ("trained", "kmeans"), ("untrained", "som"))
    }  # fmt: skip


def test_perturbed_images_land_on_the_reached_class_and_noise_does_not(found: Findings) -> None:
    rows = findings_table(found, "functional-codes-landing")
    hit = row_of(rows, tap="classes", images="perturbed")
    assert (hit["n"], hit["reached_share"], hit["true_share"], hit["changed_share"]) == (45, 1, 0, 1)
    assert (hit["distance_to_reached"], hit["distance_to_true"]) == pytest.approx((0, 1), abs=1e-6)
    # Units of three classes in a row: two of three ways to the next class are one step, the third is two.
    steps = [1] * 30 + [2] * 15
    ends = t.interval(0.95, 44, 4 / 3, sem(steps))
    assert (hit["map_steps"], hit["map_steps_low"], hit["map_steps_high"]) == pytest.approx((4 / 3, *ends))
    for images, count in (("noise", 40), ("clean", 45)):
        row = row_of(rows, tap="classes", images=images)
        assert (row["n"], row["reached_share"], row["true_share"], row["changed_share"]) == (count, 0, 1, 0)
        assert (row["distance_to_reached"], row["distance_to_true"]) == pytest.approx((1, 0), abs=1e-6)
        assert row["map_steps"] == 0
    told = claim(found, "landing")
    assert told is found.claims[1] and told.subject == "shift"
    assert [value_of(told, name) for name in ("images", "reached", "true")] == [45, 1, 0]
    assert told.verdict == "predicted class outweighs from classes on"


def test_units_hold_the_images_of_one_class(found: Findings) -> None:
    pictures = next(f for f in found.figures if isinstance(f, Pictures) and f.title.endswith("at classes"))
    assert pictures.images.shape == (2, 3, 1, 2, 2)
    for row, label in zip(pictures.images, pictures.row_labels, strict=True):
        brightness = "abc".index(label.split(": ")[1][0]) / 4 + 0.2
        # A mean of 30 images of four pixels with deviation 0.02, and single ones of four pixels.
        assert float(row[0].mean()) == pytest.approx(brightness, abs=0.01)
        assert torch.allclose(row[1:].mean((1, 2, 3)), torch.tensor(brightness), atol=0.05)


def test_every_number_that_is_drawn_is_in_a_table(found: Findings) -> None:
    known = {v for t in found.tables for row in t.rows for v in row if isinstance(v, int | float)}
    for figure in found.figures:
        if isinstance(figure, Lines):
            drawn = [y for s in figure.series if s.name not in ("the network itself", "the most frequent class")
                     for y in (*s.y, *s.low, *s.high) if y is not None]  # fmt: skip
        elif isinstance(figure, HeatMaps):
            drawn = [float(v) for p in figure.panels for v in p.values.flatten() if not math.isnan(v)]
        else:
            continue
        assert drawn
        # Heat maps hold float32.
        assert max(min(abs(v - k) for k in known) for v in drawn) < 2e-6


def test_findings_survive_storage_and_a_second_study_is_the_same(
    found: Findings, study: Callable[..., Findings]
) -> None:
    tensors, value = found.stored()
    back = Findings.read(tensors, json.loads(json.dumps(value, allow_nan=False)))
    assert back.claims == found.claims
    assert [t.rows for t in back.tables] == [[list(r) for r in t.rows] for t in found.tables]
    analysis = small()
    again = study(analysis, planted(analysis))
    assert again.claims == found.claims and all(c.sentence for c in again.claims)
    assert [t.rows for t in again.tables] == [t.rows for t in found.tables]


def test_other_draws_of_the_untrained_network_are_measured(study: Callable[..., Findings]) -> None:
    analysis = small(untrained_draws=3)
    material = planted(analysis)
    asked: list[int] = []
    given = material.untrained

    def untrained(draw: int = 0) -> TracedModel:
        asked.append(draw)
        return given()

    found = study(analysis, replace(material, untrained=untrained))
    assert asked == [0, 1, 2]
    rows = findings_table(found, "functional-codes-untrained")
    assert [row["draw"] for row in rows] == [0, 0, 1, 1, 2, 2] and len({row["tap"] for row in rows}) == 2
    # The same weights in every draw here, so the same numbers; and they are those of the layer's own row.
    own = row_of(findings_table(found, "functional-codes"), tap="classes", network="untrained", coder="som")
    assert {row["ami_label"] for row in rows if row["tap"] == "classes"} == {own["ami_label"]}
    assert claim(found, "label-information").estimates["draws"] == 3


def test_no_untrained_network_and_no_success_are_said(study: Callable[..., Findings]) -> None:
    analysis = small()
    found = study(analysis, planted(analysis, twin=False, turned=False))
    assert claim(found, "no-untrained-network").verdict == "The model comes ready from its factory."
    assert claim(found, "landing").verdict == "too few images"
    assert {row["network"] for row in findings_table(found, "functional-codes")} == {"trained"}
    assert "functional-codes-landing" not in {t.name for t in found.tables}


def test_noise_labels_are_called_no_better_than_untrained(study: Callable[..., Findings]) -> None:
    analysis = small(layers=["noise"])
    found = study(analysis, planted(analysis))
    assert claim(found, "label-information").verdict == "no better than untrained"


@pytest.mark.parametrize(
    "wrong",
    [{"rows": 0}, {"epochs": 0}, {"statistic": "median"}, {"images": 3}, {"layers": ""}, {"rows": 1, "columns": 1}],
)
def test_wrong_parameters_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        FunctionalCodes(**wrong)


def test_too_few_images_are_refused(study: Callable[..., Findings]) -> None:
    analysis = small()
    with pytest.raises(UsageError, match="at least 20"):
        study(analysis, planted(analysis, n=12))


# A whole run


def test_in_a_run(tmp_path: Path, forks: Forks, tiny: Tiny, of_run: Callable[..., Findings]) -> None:
    suite = tiny(tmp_path / "suite.toml", detectors=[{"name": "msp"}])
    lines = '[[analyses]]\nname = "functional_codes"\nrows = 3\ncolumns = 3\nepochs = 5\npictured_taps = 1\n'
    suite.write_text(suite.read_text() + "\n" + lines)
    ended = forks("run", suite, "--out", tmp_path / "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert ended.status == 0, ended.output
    layers = findings_table(of_run(tmp_path / "run", FunctionalCodes(), "functional_codes"), "functional-codes")
    first = layers[0]
    assert first["network"] == "trained"
    # Digits are far from noise even for a hardly trained network.
    assert first["ami_label_low"] > first["ami_shuffled_highest"]
    assert "untrained" in {row["network"] for row in layers}
