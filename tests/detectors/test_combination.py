"""Combinations of detectors and of columns of scores against SciPy, NumPy and planted members."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Self

import numpy as np
import pytest
import torch
from aftershock.detectors.base.detector import Detector, DetectorInfo
from aftershock.detectors.combine.columns import fit_columns, join_columns
from aftershock.detectors.combine.combination import CombinedScore, Method
from aftershock.detectors.combine.p_values import fit_tail, surprise
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.parameters import bind
from aftershock.harness.core.registry import DETECTORS, Entry, Origin
from aftershock.harness.core.state import join_state, split_state
from aftershock.harness.models.architectures import cnn
from aftershock.harness.tracing.extra_passes import InputGradient, View
from aftershock.harness.tracing.recorder import discover
from aftershock.harness.tracing.traced_model import TracedModel, fit_traces
from aftershock.harness.tracing.traces import LiveTrace, Need, Traces
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import combine_pvalues
from sklearn.metrics import roc_auc_score
from support.activations import Sample, World
from torch import Tensor


class Planted(Detector):
    """Scores are one column of the logits; remembers what it was fitted on; reads a view and a gradient on wish."""

    info = DetectorInfo(title="Planted", needs=(), surrogate="exact")

    def __init__(self, column: int = 0, extras: bool = False, learns: bool = False) -> None:
        self.column, self.extras, self.learns = column, extras, learns
        self.seen = 0
        self.taught = 0

    @property
    def supervised(self) -> bool:
        return self.learns

    @property
    def views(self) -> tuple[View, ...]:
        return (View("same"),) if self.extras else ()

    @property
    def gradients(self) -> tuple[InputGradient, ...]:
        return (InputGradient("same", lambda logits: logits.sum(1)),) if self.extras else ()

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        self.seen = len(clean)
        self.taught = 0 if perturbed is None else len(perturbed)
        assert len(clean.labels) == len(clean)
        return self

    def score(self, traces: Traces) -> Tensor:
        with pytest.raises(UsageError):
            _ = traces.labels
        found = traces.logits.double()[:, self.column]
        if self.extras:
            found = found + traces.view("same").logits.double()[:, self.column]
            found = found + traces.gradient("same").double().flatten(1).sum(1)
        return found

    def surrogate(self, live: LiveTrace) -> Tensor:
        return live.logits.double()[:, self.column]


@pytest.fixture(autouse=True)
def planted() -> Iterator[None]:
    DETECTORS._entries["planted"] = Entry("planted", Planted, Origin("session"))
    yield
    del DETECTORS._entries["planted"]


def of(*columns: int, **more: Any) -> list[dict[str, Any]]:
    return [{"name": "planted", "column": c, **more} for c in columns]


def scored(values: Tensor, fit: bool = False) -> Traces:
    labels = values.argmax(1) if fit else None
    return Traces(values, (), label_rows=labels, random=torch.Generator().manual_seed(0) if fit else None)


def normal(n: int, seed: int, columns: int = 3) -> Tensor:
    return torch.randn(n, columns, generator=torch.Generator().manual_seed(seed))


def test_fishers_statistic_is_that_of_scipy_where_scores_are_empirical() -> None:
    fit, test = normal(400, 1), 0.5 * normal(60, 2)
    detector = CombinedScore(of(0, 1, 2), held_out=0.5).fit(scored(fit, fit=True))
    knots = [tail["knots"].numpy() for tail in detector.tails]
    assert [len(k) for k in knots] == [200] * 3
    p = np.stack([(1 + (k[None] >= x[:, None]).sum(1)) / 201 for k, x in zip(knots, test.numpy().T, strict=True)], 1)
    expected = [combine_pvalues(row, method="fisher").statistic for row in p]
    # Interpolated between ranks: p moves by less than one rank.
    slack = 2 * np.log((p * 201 + 1) / (p * 201)).sum(1) + 1e-6
    found = detector.score(scored(test)).numpy()
    assert (np.abs(found - expected) <= slack).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40), st.integers(0, 999))
def test_surprise_increases_and_is_continuous(values: list[float], seed: int) -> None:
    fitted = fit_tail(torch.tensor(values, dtype=torch.float64))
    span = max(values) - min(values) + 1
    points = torch.linspace(min(values) - span, max(values) + span, 500, dtype=torch.float64)
    found = surprise(fitted, points)
    assert bool(found.isfinite().all()) and bool((found.diff() > -1e-12).all())
    outside = (points > max(values)) | (points < min(values))
    assert bool((found.diff()[outside[1:] & outside[:-1]] >= 0).all())
    at = torch.tensor(values, dtype=torch.float64)
    share = (at.unsqueeze(0) >= at.unsqueeze(1)).sum(1) + 1
    torch.testing.assert_close(surprise(fitted, at), -(share / (len(values) + 1)).double().log())
    step = 1e-6 / float(fitted["rate"])
    near = surprise(fitted, torch.tensor([max(values), max(values) + step], dtype=torch.float64))
    # Room for the rounding of the sum.
    assert float(near[1] - near[0]) < 1e-3


def test_the_tail_of_an_exponential_is_its_own() -> None:
    draws = torch.from_numpy(np.random.default_rng(0).exponential(2.0, 20_000))
    found = surprise(fit_tail(draws), torch.tensor([2.0, 8.0, 40.0]))
    np.testing.assert_allclose(found.numpy(), [1, 4, 20], rtol=0.1)


@pytest.mark.parametrize("method", ["fisher", "mean", "max", "logistic"])
def test_two_halves_of_the_evidence_beat_each_alone(method: Any) -> None:
    detector = CombinedScore(of(0, 1), method)
    shifted = normal(600, 2) + torch.tensor([1.5, 1.5, 0])
    detector.fit(scored(normal(600, 1), fit=True), scored(normal(300, 3) + torch.tensor([1.5, 1.5, 0]), fit=True))
    truth = [0] * 600 + [1] * 600
    clean = normal(600, 4)
    together = roc_auc_score(truth, torch.cat([detector.score(scored(x)) for x in (clean, shifted)]))
    alone = roc_auc_score(truth, torch.cat([clean, shifted])[:, 0])
    # In theory 0.856 alone and 0.933 for the mean, which is the best test here.
    assert together > alone + (0.02 if method == "max" else 0.04)
    chance = roc_auc_score(truth, torch.cat([detector.score(scored(x)) for x in (clean, normal(600, 5))]))
    assert abs(chance - 0.5) < 0.06


def test_mahalanobis_takes_correlation_into_account() -> None:
    """Two members that go together; the planted images have ordinary scores that contradict each other."""
    common = normal(500, 1, 1)
    clean = torch.cat([common, common + 0.1 * normal(500, 2, 1), common], 1)
    odd = torch.tensor([[1.5, -1.5, 0.0]]).repeat(50, 1)
    expected: dict[Method, tuple[float, float]] = {"mahalanobis": (0.999, 1.0), "mean": (0.0, 0.6)}
    for method, (least, most) in expected.items():
        detector = CombinedScore(of(0, 1), method).fit(scored(clean, fit=True))
        scores = torch.cat([detector.score(scored(clean)), detector.score(scored(odd))])
        assert least <= roc_auc_score([0] * 500 + [1] * 50, scores) <= most


def test_members_and_calibration_share_no_image_and_the_regression_gets_its_own_half() -> None:
    detector = CombinedScore([*of(0, learns=True), *of(1)], "logistic", held_out=0.25)
    assert detector.supervised and not CombinedScore(of(0, 1)).supervised
    values = normal(200, 1)
    detector.fit(scored(values, fit=True), scored(normal(61, 2), fit=True))
    first, second = detector.members
    assert isinstance(first, Planted) and isinstance(second, Planted)
    assert (first.seen, first.taught, second.seen, second.taught) == (150, 31, 150, 0)
    assert len(detector.tails[0]["knots"]) == 50
    with pytest.raises(UsageError, match="fit_on"):
        CombinedScore(of(0, learns=True)).fit(scored(values, fit=True))


def test_views_and_gradients_of_members_are_kept_apart() -> None:
    detector = CombinedScore([*of(0, 1, extras=True), *of(2)], "mean")
    assert len({v.name for v in detector.views}) == 2 and len({g.name for g in detector.gradients}) == 2

    def traced(values: Tensor, fit: bool) -> Traces:
        views = {v.name: Traces(values + 10**i, ()) for i, v in enumerate(detector.views)}
        gradients = {g.name: torch.full((len(values), 1, 2, 2), 25.0 * i) for i, g in enumerate(detector.gradients)}
        return replace(scored(values, fit), view_traces=views, gradient_rows=gradients)

    detector.fit(traced(normal(100, 1), True))
    test = normal(20, 2)
    own = detector._columns(traced(test, False))
    expected = torch.stack([2 * test[:, 0] + 1, 2 * test[:, 1] + 10 + 100, test[:, 2]], 1).double()
    torch.testing.assert_close(own, expected, rtol=1e-6, atol=1e-6)


def test_an_attack_follows_members_through_their_views() -> None:
    torch.manual_seed(0)
    model, images = cnn((1, 8, 8), 4, width=4, hidden=16).eval(), torch.rand(40, 1, 8, 8)
    traced = TracedModel(model, discover(model, images))
    members: list[str | dict[str, Any]] = [
        {"name": "feature-squeezing", "squeezers": ["median"]}, {"name": "cpr", "eps": 0.02},
    ]  # fmt: skip
    for detector in (CombinedScore(members, "mean"), CombinedScore([*members, "mahalanobis"], "mean")):
        labels = torch.arange(40) % 4
        detector.fit(fit_traces(traced.traces(detector, images), labels, torch.Generator().manual_seed(0)))
        x = images[:7].clone().requires_grad_()
        found = detector.surrogate(traced.live_for(detector, x))
        torch.testing.assert_close(found.detach(), traced.score(detector, images[:7])[1], atol=1e-4, rtol=1e-4)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert bool((gradient.flatten(1).norm(dim=1) > 0).all())


def test_members_see_what_they_asked_for_where_needs_are_capped(world: World) -> None:
    """Two members read the same code at different layers; the harness keeps fewer units than were asked for."""
    detector = CombinedScore(
        [
            {"name": "bitvector", "method": "hamming", "layers": "last:1"},
            {"name": "bitvector", "method": "hamming", "layers": "first:2"},
            "mahalanobis",
        ]
    )
    assert len(detector.needs) == 3

    def traces(sample: Sample, needs: tuple[Need, ...], fit: bool) -> Traces:
        held = tuple(replace(n, units=16) if n.representation == "bits" else n for n in needs)
        everywhere = tuple(replace(n, taps="all") for n in held)
        return replace(world.traces(sample, everywhere, fit=fit), needs=held)

    detector.fit(traces(world.clean(200, 1), detector.needs, True))
    for member in detector.members:
        alone = traces(world.perturbed(20, 2), member.needs, False)
        index = detector.members.index(member)
        column = detector._columns(traces(world.perturbed(20, 2), detector.needs, False))[:, index]
        torch.testing.assert_close(column, member.score(alone).double())


def test_state_holds_the_members(world: World) -> None:
    made: list[str | dict[str, Any]] = [
        "mahalanobis",
        {"name": "combination", "of": ["msp", "energy"], "method": "mean"},
        "energy",
    ]
    DETECTORS._entries.setdefault("combination", Entry("combination", CombinedScore, Origin("session")))
    detector = CombinedScore(made)
    detector.fit(world.traces(world.clean(200, 1), detector.needs, fit=True))
    tensors, value = split_state(detector.state())
    other = CombinedScore(made)
    other.load_state(join_state(tensors, json.loads(json.dumps(value))))
    traces = world.traces(world.perturbed(30, 2), detector.needs)
    assert torch.equal(other.score(traces), detector.score(traces))
    assert detector.surrogate_kind == "exact"


def test_columns_are_scaled_on_clean_images_only() -> None:
    clean, perturbed = normal(100, 1).double(), 5 + normal(50, 2).double()
    for how in ("mean", "max"):
        fitted = fit_columns(how, clean, perturbed)
        scaled = (perturbed - clean.mean(0)) / clean.std(0, correction=0)
        expected = scaled.mean(1) if how == "mean" else scaled.amax(1)
        torch.testing.assert_close(join_columns(fitted, perturbed), expected)


def test_a_suite_gives_names_or_tables() -> None:
    bound, problems = bind(CombinedScore, {"of": ["msp", {"name": "energy", "temperature": 2}], "method": "max"})
    assert not problems
    assert len(CombinedScore(**bound).members) == 2


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"of": []}, "at least one"),
        ({"of": "msp"}, "list"),
        ({"of": ["mps"]}, "mps"),
        ({"of": [{"temperature": 1.0}]}, "neither"),
        ({"of": [{"name": "energy", "temprature": 1.0}]}, "temprature"),
        ({"of": [{"name": "energy", "temperature": -1.0}]}, "temperature"),
        ({"method": "stouffer"}, "method"),
        ({"held_out": 0.0}, "held_out"),
    ],
)
def test_wrong_parameters(parameters: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        CombinedScore(**parameters)
