"""Self-introspection on planted networks and worlds, and once through a run."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.analyses.base import AnalysisInput, ImageSet, PerturbedSet
from aftershock.analyses.findings import Findings, HeatMaps, Points
from aftershock.analyses.self_introspection.analysis import SelfIntrospection
from aftershock.analyses.self_introspection.fringe import error_scores, merits, risk_by_coverage
from aftershock.analyses.self_introspection.latent_map import (
    Tracks,
    activations,
    chance_purity,
    first_crossing,
    fit_code,
    purity,
    trace_tracks,
)
from aftershock.analyses.self_introspection.reconstruction import unexplained
from aftershock.analyses.self_introspection.relevance import (
    Evidence,
    attribute,
    by_correlation,
    compare_orders,
    layer_shares,
    rank_correlation,
    relevance,
    relevance_to,
)
from aftershock.analyses.self_introspection.report import figures as drawn
from aftershock.analyses.self_introspection.report import text as told
from aftershock.analyses.self_introspection.tracks import pairs
from aftershock.detectors.activations.latent import Latent
from aftershock.harness.core.errors import UsageError
from aftershock.harness.statistics.intervals import auroc_difference, fisher_interval, median_interval, proportion
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel
from aftershock.harness.tracing.traces import Need, TapInfo, Traces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import hadamard
from scipy.stats import entropy, spearmanr
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from support.commands import Forks
from support.findings import findings_table
from support.suites import Tiny
from torch import Tensor, nn

CLASSES = 3


class Planted(nn.Module):
    """One hidden layer that passes the pixels on, and a linear output."""

    def __init__(self, output: Tensor, inplace: bool = False) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace)
        self.output = nn.Parameter(output)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.relu(x.flatten(1) * 1.0)
        return hidden @ self.output.T


class Deep(nn.Module):
    """Two hidden layers with weights of a seed."""

    def __init__(self, pixels: int, seed: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(seed)
        sizes = ((20, pixels), (12, 20), (CLASSES, 12))
        self.weights = nn.ParameterList([torch.randn(s, generator=draw) / s[1] ** 0.5 for s in sizes])

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1) - 0.5
        for weight in self.weights[:-1]:
            x = torch.relu(x @ weight.T)
        return x @ self.weights[-1].T


def traced_model(model: nn.Module, side: int = 4) -> TracedModel:
    model = model.eval()
    return TracedModel(model, discover(model, torch.rand(1, 1, side, side)))


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def planted_traces(points: Tensor, logits: Tensor, labels: Tensor) -> Traces:
    need = Need("full", units=64)
    return Traces(
        logits, (TapInfo("relu", "relu", (points.shape[1],)),), {need.code: {"relu": points}}, (need,),
        label_rows=labels,
    )  # fmt: skip


class TestRelevance:
    def test_a_planted_network_gets_its_order_back(self) -> None:
        """Uncorrelated units of equal mean and variance: both orders are that of the output's weights."""
        weights = torch.zeros(CLASSES, 16)
        strengths = torch.linspace(0.2, 1.7, 16)[torch.randperm(16, generator=torch.Generator().manual_seed(3))]
        weights[0] = strengths * torch.where(torch.arange(16) % 2 == 0, 1.0, -1.0)
        device = traced_model(Planted(torch.cat([weights[:1], weights[1:] - 10])))
        design = torch.from_numpy(hadamard(32)[:, 1:17]).float()
        images = (0.5 + 0.4 * design).view(-1, 1, 4, 4)
        codes = device.codes(SelfIntrospection(units=16).needs, images)
        raw = codes.full("relu")
        attributions = attribute(device, device.taps, 16, images)
        evidence = Evidence(raw, codes.logits, attributions, [16], [16])
        assert bool((codes.predictions == 0).all())
        correlation, gradient = relevance_to(evidence, 0)
        expected = strengths.argsort().tolist()
        assert gradient.argsort().tolist() == expected
        assert correlation.argsort().tolist() == expected
        torch.testing.assert_close(correlation.float(), strengths / strengths.norm())
        torch.testing.assert_close(gradient.float(), 0.5 * strengths)
        orders = compare_orders(evidence, torch.Generator().manual_seed(0))
        assert orders.agreement.value == pytest.approx(1, abs=1e-9)

    @pytest.mark.parametrize("inplace", [False, True])
    def test_attributions_are_gradient_times_activation(self, inplace: bool) -> None:
        weights = torch.randn(CLASSES, 16, generator=torch.Generator().manual_seed(1))
        device = traced_model(Planted(weights, inplace))
        images = rand(130, 1, 4, 4, seed=5)
        found = attribute(device, device.taps, 16, images)
        top = (images.flatten(1) @ weights.T).argmax(1)
        torch.testing.assert_close(found, (images.flatten(1) * weights[top]).abs())

    def test_gradients_reach_every_layer_and_sampled_units_fit_the_codes(self) -> None:
        device = traced_model(Deep(16, 0))
        images = rand(40, 1, 4, 4, seed=2)
        found = attribute(device, device.taps, 8, images)
        assert found.shape == (40, 16)
        weights = [w.detach() for w in device.model.weights]  # type: ignore[union-attr]
        first = torch.relu((images.flatten(1) - 0.5) @ weights[0].T)
        second = torch.relu(first @ weights[1].T)
        top = (second @ weights[2].T).argmax(1)
        at_second = weights[2][top] * (second > 0)
        at_first = at_second @ weights[1]
        whole = [(first * at_first).abs(), (second * at_second).abs()]
        need = Need("full", units=8)
        reader = SelfIntrospection(units=8)
        codes = device.codes(reader.needs, images)
        for name, activation, expected, part in zip(
            codes.tap_names(), (first, second), whole, found.split(8, 1), strict=True
        ):
            kept = [int((activation == c.unsqueeze(1)).all(0).nonzero()[0]) for c in codes.full(name).T]
            torch.testing.assert_close(part, expected[:, kept])
        assert need in reader.needs
        assert all(p.grad is None for p in device.model.parameters())

    def test_correlation_is_numpys_and_weights_count_like_copies(self) -> None:
        draw = torch.Generator().manual_seed(0)
        a, logits = torch.randn(50, 6, generator=draw), torch.randn(50, CLASSES, generator=draw)
        a[:, 2] = 7
        found = by_correlation(a, logits)
        columns = [0, 1, 3, 4, 5]
        expected = np.corrcoef(a[:, columns].double().T, logits.double().T)[5:, :5]
        np.testing.assert_allclose(found[:, columns], expected, atol=1e-12)
        assert found[:, 2].tolist() == [0] * CLASSES
        counts = torch.randint(0, 4, (50,), generator=draw)
        copies = torch.arange(50).repeat_interleave(counts)
        weighted = by_correlation(a, logits, counts.double() / counts.sum())
        torch.testing.assert_close(weighted, by_correlation(a[copies], logits[copies]))
        evidence = Evidence(a, logits, a.abs(), [6], [6])
        for one, other in zip(
            relevance(evidence, counts.double() / counts.sum()), relevance(evidence.take(copies)), strict=True
        ):
            torch.testing.assert_close(one, other)

    def test_a_layer_counts_with_all_its_units(self) -> None:
        shares = layer_shares(torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64), [2, 1], [4, 6])
        torch.testing.assert_close(shares, torch.tensor([8 / 20, 12 / 20], dtype=torch.float64))

    def test_ranks_are_scipys_also_with_ties(self) -> None:
        draw = torch.Generator().manual_seed(0)
        a, b = torch.randint(0, 6, (2, 40), generator=draw).double()
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
        assert math.isnan(rank_correlation(a, torch.ones(40)))

    def test_orders_without_anything_in_common_do_not_agree(self) -> None:
        draw = torch.Generator().manual_seed(1)
        a, logits = torch.randn(200, 300, generator=draw), torch.randn(200, CLASSES, generator=draw)
        evidence = Evidence(a, logits, torch.rand(300, generator=draw).expand(200, 300), [150, 150], [150, 150])
        orders = compare_orders(evidence, draw)
        assert orders.agreement.low < 0 < orders.agreement.high
        assert orders.halves[1] == pytest.approx(1)
        # What chance makes of a correlation: the mean of |r| under independence is about sqrt(2 / (pi n)).
        assert orders.permuted == pytest.approx(math.sqrt(2 / (math.pi * 200)), rel=0.1)


class TestMap:
    def test_planted_clusters_are_pure_and_shuffled_ones_are_not(self) -> None:
        labels = torch.arange(90) % 3
        points = torch.randn(90, 3, generator=torch.Generator().manual_seed(0)) + 100 * labels.unsqueeze(1)
        assert purity(points, labels, 10).tolist() == [1.0] * 90
        assert chance_purity(labels) == pytest.approx(29 / 89)
        mixed = labels[torch.randperm(90, generator=torch.Generator().manual_seed(1))]
        assert float(purity(points, mixed, 10).mean()) == pytest.approx(29 / 89, abs=0.1)

    def test_an_image_is_not_its_own_neighbour_even_among_twins(self) -> None:
        points = torch.zeros(4, 2)
        found = purity(points, torch.tensor([0, 1, 2, 3]), 10)
        assert found.tolist() == [0.0] * 4

    @pytest.mark.parametrize("encoder", ["autoencoder", "pca"])
    def test_tracks_start_at_the_clean_code_and_end_at_the_perturbed_one(self, encoder: Any) -> None:
        device = traced_model(Deep(16, 0))
        reader = SelfIntrospection(units=8)
        fit_images, clean, other = rand(80, 1, 4, 4), rand(30, 1, 4, 4, seed=1), rand(30, 1, 4, 4, seed=2)
        fit = device.codes(reader.needs, fit_images)
        fit = replace(fit, label_rows=fit.predictions)
        code = fit_code(Latent(encoder, latent=3, units=8, hidden=(8,), epochs=2), fit, torch.Generator())
        tracks = trace_tracks(reader.needs, device, {"map": code}, clean, other, steps=7)
        for step, images in ((0, clean), (-1, other), (3, (clean + other) / 2)):
            traces = device.codes(reader.needs, images)
            torch.testing.assert_close(tracks.codes["map"][:, step], code.encode(activations(traces)))
            torch.testing.assert_close(tracks.logits[:, step], traces.logits)
        assert tracks.share.tolist() == pytest.approx([i / 6 for i in range(7)])

    @given(st.floats(0.01, 0.99), st.floats(0.1, 10), st.integers(2, 30))
    @settings(max_examples=40, deadline=None)
    def test_a_line_crosses_where_it_crosses(self, at: float, slope: float, steps: int) -> None:
        share = torch.linspace(0, 1, steps, dtype=torch.float64)
        rows = torch.stack([slope * (share - at), -1 - share, 1 + share])
        found = first_crossing(share, rows)
        assert float(found[0]) == pytest.approx(at, abs=1e-9)
        assert math.isnan(found[1])
        assert found[2] == 0

    def test_flips_and_nearing_follow_a_planted_track(self) -> None:
        share = torch.linspace(0, 1, 11, dtype=torch.float64)
        # Class 1 overtakes class 0 at t = 0.3; in the second row it never does.
        logits = torch.stack([torch.stack([0.3 - share, share * 0, share * 0 - 9], 1) * s for s in (1, 0)]).float()
        logits[1] += torch.tensor([1.0, 0, 0])
        points = torch.stack([share * 10, share * 0], 1).float()
        labels = torch.arange(60) % 2
        near = torch.randn(60, 2, generator=torch.Generator().manual_seed(0)) * 0.1
        fit = planted_traces(near + torch.tensor([10.0, 0]) * labels.unsqueeze(1), one_hot(labels), labels)
        code = fit_code(Latent("pca", latent=2), fit, torch.Generator())
        tracks = Tracks(share, {"map": code.encode(points).expand(2, -1, -1)}, logits)
        assert float(tracks.flips()[0]) == pytest.approx(0.3, abs=1e-6)
        assert math.isnan(tracks.flips()[1])
        sides = tracks.nearing("map", code, torch.tensor([0, 0]), torch.tensor([1, 1]))
        np.testing.assert_allclose(first_crossing(share, sides), [0.5, 0.5], atol=0.02)
        torch.testing.assert_close(sides[:, 0], -sides[:, -1], rtol=0.1, atol=0.5)

    def test_a_pair_is_a_success_with_its_own_noise(self) -> None:
        found = pairs(torch.tensor([0, 2, 5, 9]), torch.tensor([True, False, True, True]), torch.tensor([9, 5]), 9, 5)
        assert found == [(2, 1, 5)]

    def test_what_a_linear_code_misses_is_what_scikit_learn_says(self) -> None:
        draw = torch.Generator().manual_seed(0)
        points = torch.randn(30, 4, generator=draw) @ torch.randn(4, 10, generator=draw)
        labels = torch.arange(30) % 2
        code = fit_code(Latent("pca", latent=2), planted_traces(points, one_hot(labels), labels), torch.Generator())
        standard = ((points - points.mean(0)) / points.std(0, correction=0)).double().numpy()
        explained = PCA(2).fit(standard).explained_variance_ratio_.sum()
        assert float(unexplained(code, points, [10]).mean()) == pytest.approx(1 - explained, rel=1e-4)


def one_hot(labels: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(labels, CLASSES).float() * 4


def planted_errors(n: int, seed: int, wrong_in_fringe: bool) -> tuple[Traces, Tensor]:
    """Two classes at 0 and 10; a fifth lies between and is wrong there, or wrong images lie anywhere."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 2, (n,), generator=draw)
    wrong = torch.rand(n, generator=draw) < 0.2
    centres = 10.0 * torch.where(wrong, 1 - labels, labels)
    if wrong_in_fringe:
        centres = torch.where(wrong, 5.0, centres)
    points = 0.8 * torch.randn(n, 4, generator=draw) + centres.unsqueeze(1)
    predictions = torch.where(wrong, 1 - labels, labels)
    # Every prediction is equally sure, up to noise: max-softmax knows nothing.
    return planted_traces(points, one_hot(predictions) + 0.01 * torch.rand(n, CLASSES, generator=draw), labels), wrong


class TestFringe:
    @pytest.mark.parametrize(("in_fringe", "expected"), [(True, 1.0), (False, 0.5)])
    def test_errors_in_the_fringe_are_found_and_others_are_not(self, in_fringe: bool, expected: float) -> None:
        fit, _ = planted_errors(400, 0, in_fringe)
        held_out, wrong = planted_errors(500, 1, in_fringe)
        code = fit_code(Latent("pca", latent=2, component="fringe"), fit, torch.Generator())
        scores = error_scores(held_out, held_out.full("relu"), {"pca": code}, 10)
        found = {m.name: m for m in merits(scores, wrong, "max-softmax", seed=0)}
        fringe = found["fringe, pca"]
        assert fringe.auroc.value == pytest.approx(expected, abs=0.02 if in_fringe else 0.08)
        assert fringe.auroc.value == pytest.approx(roc_auc_score(wrong, scores["fringe, pca"]))
        assert found["max-softmax"].auroc.value == pytest.approx(0.5, abs=0.08)
        assert fringe.difference.value == pytest.approx(fringe.auroc.value - found["max-softmax"].auroc.value)
        assert (fringe.difference.low > 0) == in_fringe

    def test_neighbours_of_one_class_have_no_entropy_and_of_two_have_some(self) -> None:
        labels = torch.arange(80) % 2
        points = torch.randn(80, 4, generator=torch.Generator().manual_seed(0)) + 20 * labels.unsqueeze(1)
        code = fit_code(Latent("pca", latent=1), planted_traces(points, one_hot(labels), labels), torch.Generator())
        at = torch.stack([points[0], points[labels == 0].mean(0) / 2 + points[labels == 1].mean(0) / 2])
        scores = error_scores(planted_traces(at, one_hot(torch.tensor([0, 0])), labels[:2]), at, {"pca": code}, 80)
        whole = scores["neighbour entropy, pca"]
        known = np.bincount(code.detector.classes["point_classes"])
        assert len(known) == 2
        assert whole == pytest.approx([float(entropy(known))] * 2)
        scores = error_scores(planted_traces(at, one_hot(torch.tensor([0, 0])), labels[:2]), at, {"pca": code}, 5)
        assert scores["neighbour entropy, pca"][0] == 0

    def test_too_few_errors_have_no_auroc(self) -> None:
        assert merits({"a": np.arange(9.0)}, torch.arange(9) < 4, "a", 0) == []

    def test_errors_are_kept_last_by_a_perfect_score(self) -> None:
        wrong = torch.arange(20) >= 15
        assert risk_by_coverage(np.arange(20.0), wrong, [0.5, 0.75, 1.0]) == [0, 0, 0.25]
        assert risk_by_coverage(-np.arange(20.0), wrong, [0.05, 0.25, 1.0]) == [1, 1, 0.25]


class TestIntervals:
    def test_a_difference_covers_the_difference_and_knows_equal_scores(self) -> None:
        draw = np.random.default_rng(0)
        positive = draw.random(300) < 0.3
        good, bad = draw.normal(size=300) + 2 * positive, draw.normal(size=300)
        estimate, low, high = auroc_difference(good, bad, positive, 0).ends
        assert estimate == pytest.approx(roc_auc_score(positive, good) - roc_auc_score(positive, bad))
        assert 0 < low < estimate < high
        assert auroc_difference(good, good, positive, 0).ends == (0, 0, 0)

    def test_the_interval_of_a_difference_is_as_wide_as_its_spread_over_samples(self) -> None:
        widths, estimates = [], []
        for seed in range(150):
            draw = np.random.default_rng(seed)
            positive = np.arange(120) < 30
            signal = draw.normal(size=120) + positive
            scores = signal + draw.normal(size=120), signal + 0.3 * draw.normal(size=120)
            estimate, low, high = auroc_difference(*scores, positive, seed).ends
            estimates.append(estimate)
            widths.append((high - low) / 3.92)
        assert np.mean(widths) == pytest.approx(np.std(estimates), rel=0.2)

    def test_a_correlation_keeps_its_centre(self) -> None:
        draw = np.random.default_rng(0)
        value, low, high = fisher_interval(0.8, np.tanh(math.atanh(0.7) + 0.1 * draw.normal(size=4000))).ends
        assert value == 0.8
        assert math.atanh(high) - math.atanh(0.8) == pytest.approx(0.196, rel=0.05)
        assert math.atanh(0.8) - math.atanh(low) == pytest.approx(0.196, rel=0.05)

    def test_medians_and_shares_of_few(self) -> None:
        assert median_interval(torch.tensor([1.0, 2, 9])).ends == (2, 1, 9)
        value, low, high = median_interval(torch.arange(1000.0)).ends
        assert value == 499.5 and [low, high] == pytest.approx([469, 530], abs=2)
        assert all(math.isnan(v) for v in proportion(0, 0).ends)
        assert proportion(0, 10).ends[:2] == (0, 0)
        assert 0.2 < proportion(0, 10).high < 0.35


def material(untrained: bool = True, wrong: bool = True) -> AnalysisInput:
    """A small network on made-up images whose labels are its own predictions, some of them changed."""
    device = traced_model(Deep(16, 0))
    reader = small()

    def images(n: int, seed: int) -> ImageSet:
        pixels = rand(n, 1, 4, 4, seed=seed)
        traces = device.codes(reader.needs, pixels)
        labels = traces.predictions.clone()
        if wrong:
            labels[::5] = (labels[::5] + 1) % CLASSES
        return ImageSet(replace(traces, label_rows=labels), lambda rows: pixels[rows])

    evaluate = images(60, 2)
    right = (evaluate.traces.predictions == evaluate.traces.labels).nonzero().squeeze(1)[:20]
    start = torch.cat([evaluate.read(slice(int(r), int(r) + 1)) for r in right])
    ends = {"far": rand(20, 1, 4, 4, seed=9), "near": (start + 0.01 * rand(20, 1, 4, 4, seed=10)).clamp(0, 1)}

    def made(pixels: Tensor, rows: Tensor) -> ImageSet:
        traces = device.codes(reader.needs, pixels)
        return ImageSet(replace(traces, label_rows=evaluate.traces.labels[rows]), lambda part: pixels[part])

    turned = made(ends["far"], right)
    success = turned.traces.predictions != turned.traces.labels
    control = made(ends["near"][success], right[success])
    perturbed = PerturbedSet("far", "attack", turned, right, success, control, right[success])

    def fresh(draw: int = 0) -> TracedModel:
        if not untrained:
            raise UsageError("the model is a closed box")
        return replace(device, model=Deep(16, 77).eval())

    return AnalysisInput(device, fresh, ("a", "b", "c"), images(120, 1), evaluate, {"far": perturbed}, seed=5)


def small(**more: Any) -> SelfIntrospection:
    return SelfIntrospection(**{"units": 16, "latent": 4, "hidden": (8,), "epochs": 3, "steps": 5, **more})


@pytest.fixture(scope="module")
def studied(study: Callable[..., Findings]) -> Findings:
    return study(small(drawn=2), material())


class TestStudy:
    def test_the_findings_can_be_stored_and_are_the_same_again(
        self, studied: Findings, study: Callable[..., Findings]
    ) -> None:
        first, second = studied, study(small(drawn=2), material())
        assert first.claims == second.claims and all(c.sentence for c in first.claims)
        tensors, value = first.stored()
        again = Findings.read(tensors, json.loads(json.dumps(value)))
        assert [t.name for t in again.tables] == [t.name for t in first.tables]
        for name, array in first.arrays.items():
            torch.testing.assert_close(array, second.arrays[name], rtol=0, atol=0)

    def test_tracks_in_the_figure_run_from_map_to_map(self, studied: Findings) -> None:
        given, found = material(), studied
        points = next(f for f in found.figures if isinstance(f, Points))
        rows = findings_table(found, "tracks")
        starts = {r["image"]: (r["z1"], r["z2"], r["z3"]) for r in rows if r["t"] == 0 and r["map"] == "autoencoder"}
        for row, place in starts.items():
            assert points.coordinates[row].tolist() == pytest.approx(place, abs=1e-4)
        assert points.tracks.shape == (4, 5, 3)
        assert list(points.track_names) == ["far"] * 2 + ["noise as large as far"] * 2
        first = next(iter(starts))
        torch.testing.assert_close(points.tracks[0, 0], points.coordinates[first], rtol=1e-4, atol=1e-4)
        truth = given.evaluate.traces.predictions
        for r in rows:
            if r["t"] == 0 or r["track"] == "noise":
                continue
            if r["t"] == 1:
                assert r["predicted"] != int(truth[r["image"]])
        wrong = (truth != given.evaluate.traces.labels).tolist()
        assert [points.groups[g].endswith("predicted wrongly") for g in points.group.tolist()] == wrong

    def test_without_an_untrained_network_the_rest_is_said(self, study: Callable[..., Findings]) -> None:
        found = study(small(), material(untrained=False))
        assert found.claims[-1].kind == "no-untrained-network" and "closed box" in found.claims[-1].verdict
        assert not any("untrained" in str(row) for row in findings_table(found, "purity"))
        assert {r["network"] for r in findings_table(found, "relevance-orders")} == {"trained"}

    def test_a_perfect_model_has_no_fringe_to_speak_of(self, study: Callable[..., Findings]) -> None:
        found = study(small(), material(wrong=False))
        errors = found.claims[0]
        assert (errors.kind, errors.verdict) == ("errors-in-fringe", "too few errors")
        assert errors.estimates == {"wrong": 0, "images": 60}
        assert "misclassification" not in [t.name for t in found.tables]

    def test_nothing_perturbed_leaves_map_and_relevance(self, study: Callable[..., Findings]) -> None:
        found = study(small(), replace(material(), perturbed={}))
        assert [c.verdict for c in found.claims if c.kind == "crossing"] == ["no tracks"]
        assert {"map", "purity", "relevance-layers"} <= {t.name for t in found.tables}

    def test_fewer_images_than_there_are(self, study: Callable[..., Findings]) -> None:
        found = study(small(images=30, tracked=3), material())
        assert {r["image"] for r in findings_table(found, "map")} == set(range(30))
        tracked = {r["image"] for r in findings_table(found, "tracks")}
        assert 0 < len(tracked) <= 3
        assert max(tracked) < 30

    def test_strips_show_the_images_by_class(self, studied: Findings) -> None:
        given, found = material(), studied
        strip = next(f for f in found.figures if isinstance(f, HeatMaps))
        values = strip.panels[0].values
        gaps = values.isnan().all(0)
        counts = torch.bincount(given.evaluate.traces.labels, minlength=3)
        assert gaps.nonzero().squeeze(1).tolist() == [int(counts[0]), int(counts[0] + counts[1]) + 1]
        assert not values[:, ~gaps].isnan().any()
        relevances = [
            r["relevance"] for r in findings_table(found, "units") if r["order"] == "correlation" and r["depth"] == 0
        ]
        assert relevances == sorted(relevances, reverse=True)
        assert len(relevances) == len(values)

    @pytest.mark.parametrize(
        "wrong",
        [{"steps": 1}, {"units": 0}, {"layers": ""}, {"tracked": 0}, {"images": 2}, {"epochs": 1.5}, {"shown": True}],
    )
    def test_a_wrong_parameter_is_named(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(UsageError, match=next(iter(wrong))):
            SelfIntrospection(**wrong)


def test_a_run_keeps_its_findings(forks: Forks, tiny: Tiny, tmp_path: Path, of_run: Callable[..., Findings]) -> None:
    suite = tiny(tmp_path / "suite.toml")
    lines = '[[analyses]]\nname = "self_introspection"\nhidden = [16]\nlatent = 4\nepochs = 2\nsteps = 4\ntracked = 5\n'
    suite.write_text(suite.read_text(encoding="utf-8") + lines, encoding="utf-8")
    done = forks("run", suite, "--out", tmp_path / "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
    assert done.status == 0, done.output
    found = of_run(tmp_path / "run", SelfIntrospection(), "self_introspection")
    assert any("untrained" in str(row) for row in findings_table(found, "purity"))
    assert {r["perturbation"] for r in findings_table(found, "crossings")} >= {"fgsm"}


def test_a_handful_of_images_makes_rows_and_no_claims(
    monkeypatch: pytest.MonkeyPatch, study: Callable[..., Findings]
) -> None:
    found = study(small(tracked=3), material())
    assert [(c.subject, c.verdict) for c in found.claims if c.kind == "crossing"] == [("", "too few images")]
    crossings = next(t for t in found.tables if t.name == "crossings")
    assert crossings.rows and all(row[crossings.columns.index("images")] == 3 for row in crossings.rows)
    for module in (drawn, told):
        monkeypatch.setattr(module, "FEWEST", 3)
    enough = study(small(tracked=3), material())
    assert [c.subject for c in enough.claims if c.kind == "crossing"] == ["far"]
