"""Neighbour detectors against scikit-learn, pytorch-ood and known dimensions."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.detectors.activations.dknn import DeepNeighbours
from aftershock.detectors.activations.knn import Neighbours
from aftershock.detectors.activations.lid import Lid, intrinsic_dimension
from aftershock.detectors.activations.nearest import References, nearest, unit_length
from aftershock.detectors.base.splits import held_apart, split_rows
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.traces import Need
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from support.activations import World


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_nearest_is_exact(shift: float) -> None:
    """Also far from the origin, where a product of rows cancels all digits."""
    queries, reference = normal(40, 6, seed=1).double() + shift, normal(70, 6, seed=2).double() + shift
    distances, rows = nearest(queries, reference, 9)
    expected, found = (
        NearestNeighbors(n_neighbors=9, algorithm="brute")
        .fit(normal(70, 6, seed=2).double())
        .kneighbors(normal(40, 6, seed=1).double())
    )
    np.testing.assert_allclose(distances.numpy(), expected, rtol=1e-9 if shift == 0 else 1e-6, atol=1e-9)
    assert (rows.numpy() == found).all()
    assert nearest(queries, reference[:3], 9)[0].shape == (40, 3)
    assert nearest(queries[:0], reference, 9)[0].shape == (0, 9)


def test_nearest_has_a_finite_gradient_on_top_of_a_reference_row() -> None:
    reference = normal(10, 4)
    queries = reference[:2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nearest(queries, reference, 3)[0].sum(), queries)
    assert bool(gradient.isfinite().all())


def test_split_rows_and_picked(world: World) -> None:
    drawn, others = split_rows(torch.arange(3, 20), 5, torch.Generator().manual_seed(1))
    assert len(drawn) == 5 and sorted([*drawn.tolist(), *others.tolist()]) == list(range(3, 20))
    alone, copy = split_rows(torch.tensor([4]), 3, torch.Generator())
    assert alone.tolist() == copy.tolist() == [4]
    detector = Neighbours()
    traces = world.traces(world.clean(30, 1), detector.needs, fit=True)
    # A part of a part: positions count from its own start.
    part = traces[5:25].pick(torch.tensor([0, 3, 4, 9, 19])).pick(torch.tensor([1, 3, 4]))
    rows = torch.tensor([8, 14, 24])
    assert torch.equal(part.logits, traces.logits[rows]) and torch.equal(part.labels, traces.labels[rows])
    assert torch.equal(part.pooled("dense"), traces.pooled("dense")[rows])
    assert torch.equal(torch.cat([p.logits for p in part.batches(2)]), part.logits)


@pytest.mark.parametrize("normalise", [True, False])
def test_knn_is_that_of_pytorch_ood(world: World, pytorch_ood: Any, normalise: bool) -> None:
    detector = Neighbours(neighbours=7, normalise=normalise)
    detector.fit(world.traces(world.clean(200, 1), detector.needs, fit=True))
    reference = detector.fitted[0]["reference"]
    # At most 80 % of the images that the model classifies correctly.
    assert 100 < len(reference) <= 160
    oracle = pytorch_ood.KNN(None, k=7, normalize=normalise).fit_features(
        reference.double(), torch.zeros(len(reference))
    )
    traces = world.traces(world.perturbed(50, 2), detector.needs)
    expected = oracle.predict_features(traces.pooled("dense").double())
    torch.testing.assert_close(detector.layer_scores(traces)[:, 0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dimension", [2, 5, 8])
def test_intrinsic_dimension_of_known_sets(dimension: int) -> None:
    """A flat cloud in 20 dimensions: the estimate from 20 of 8000 neighbours has a bias of a few per cent."""
    flat = torch.rand(8000, dimension, generator=torch.Generator().manual_seed(dimension))
    basis = torch.linalg.qr(normal(20, dimension, seed=3)).Q
    inside = flat[((flat - 0.5).abs() < 0.25).all(1)][:60] if dimension < 8 else flat[:60]
    distances = nearest(inside @ basis.T + 1e-6, flat @ basis.T, 21)[0][:, 1:]
    assert float(intrinsic_dimension(distances).mean()) == pytest.approx(dimension, rel=0.25)


def test_intrinsic_dimension_is_its_formula_and_bounded() -> None:
    distances = normal(30, 12).abs().double().sort(1).values + 0.1
    expected = -1 / np.log(distances.numpy() / distances.numpy()[:, -1:]).mean(1)
    np.testing.assert_allclose(intrinsic_dimension(distances).numpy(), expected, rtol=1e-12)
    assert intrinsic_dimension(torch.tensor([[0.0, 0.0], [1.0, 1.0]])).tolist() == pytest.approx([1000.0, 1000.0])


def test_lid_learns_its_regression_from_fresh_clean_images_only(world: World) -> None:
    detector = Lid(neighbours=10, reference=60)
    clean = world.traces(world.clean(200, 1), detector.needs, fit=True)
    perturbed = world.traces(world.perturbed(80, 2), detector.needs, fit=True)
    detector.fit(clean, perturbed)
    references = [f["reference"] for f in detector.fitted]
    assert [len(r) for r in references] == [60, 60, 60]
    right = clean.labels == clean.predictions
    used = (clean.pooled("dense").unsqueeze(1) == references[2]).all(2).any(1)
    fresh = detector.layer_scores(clean)[right & ~used]
    centre, scale = fresh.mean(0), fresh.std(0, correction=0)
    rows = torch.cat([fresh, detector.layer_scores(perturbed)])
    oracle = LogisticRegression(class_weight="balanced", max_iter=2000)
    oracle.fit(((rows - centre) / scale).numpy(), [0] * len(fresh) + [1] * 80)
    test = world.traces(world.perturbed(40, 3), detector.needs)
    expected = oracle.decision_function(((detector.layer_scores(test) - centre) / scale).numpy())
    np.testing.assert_allclose(detector.score(test).numpy(), expected, rtol=1e-6, atol=1e-6)


def test_lid_needs_perturbed_images_only_for_its_regression(world: World) -> None:
    clean = world.traces(world.clean(50, 1), Lid().needs, fit=True)
    assert Lid().supervised and not Lid(combination="mean").supervised
    with pytest.raises(UsageError, match="fit_on"):
        Lid().fit(clean)
    Lid(combination="mean").fit(clean)


def disagreeing(clean: Any, rows: Any, queries: Any, classes: Any) -> np.ndarray:
    total = np.zeros(len(queries), dtype=int)
    for tap in clean.tap_names():
        kept = clean.pooled(tap)[rows].double().numpy()
        centre = kept.mean(0)
        unit = [
            x / np.linalg.norm(x, axis=1, keepdims=True) for x in (kept - centre, queries.pooled(tap).numpy() - centre)
        ]
        found = NearestNeighbors(n_neighbors=5, algorithm="brute").fit(unit[0]).kneighbors(unit[1])[1]
        total += (clean.labels[rows].numpy()[found] != classes[:, None]).sum(1)
    return total


def test_dknn_is_credibility_with_an_order_among_the_incredible(world: World) -> None:
    detector = DeepNeighbours(neighbours=5, reference=80)
    clean = world.traces(world.clean(200, 1), detector.needs, fit=True)
    detector.fit(clean)
    units = unit_length(clean.pooled("dense").double() - detector.fitted[2]["centre"])
    rows = [int((units - row).norm(dim=1).argmin()) for row in detector.fitted[2]["reference"].double()]
    assert len(set(rows)) == 80
    test = world.traces(world.perturbed(60, 2), detector.needs)
    counts = disagreeing(clean, rows, test, test.predictions.numpy())
    calibration = detector.calibration.numpy()
    # A quarter of the correctly classified images, none of them in the reference.
    assert len(calibration) == round(0.25 * int((clean.labels == clean.predictions).sum()))
    credibility = (calibration[None] >= counts[:, None]).mean(1)
    np.testing.assert_allclose(detector.credibility(test).numpy(), credibility, atol=1e-12)
    np.testing.assert_allclose(detector.score(test).numpy(), 1 - credibility + counts / 15, atol=1e-12)


def test_credibility_of_fresh_clean_images_is_evenly_spread(world: World) -> None:
    """That is what calibration means: the share of credibilities up to c is about c."""
    detector = DeepNeighbours(neighbours=5, held_out=0.5)
    detector.fit(world.traces(world.clean(600, 1, wrong=0), detector.needs, fit=True))
    found = detector.credibility(world.traces(world.clean(400, 2, wrong=0), detector.needs))
    for c in (0.1, 0.3, 0.6):
        assert abs(float((found <= c).double().mean()) - c) < 0.12


def test_no_difference_is_chance_and_a_wrong_prediction_is_found(world: World) -> None:
    """Well separated classes; the planted images get another prediction and keep their features."""
    detector = DeepNeighbours("last:1", neighbours=5)
    detector.fit(world.traces(world.clean(300, 1, wrong=0), detector.needs, fit=True))
    clean, again, wrong = (world.clean(200, seed, wrong=w) for seed, w in ((2, 0.0), (3, 0.0), (4, 1.1)))
    scores = [detector.score(world.traces(sample, detector.needs)) for sample in (clean, again, wrong)]
    truth = [0] * 200 + [1] * 200
    assert roc_auc_score(truth, torch.cat([scores[0], scores[2]])) > 0.999
    assert abs(roc_auc_score(truth, torch.cat([scores[0], scores[1]])) - 0.5) < 0.12


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Neighbours(neighbours=0), "neighbours"),
        (lambda: Neighbours(reference=0), "reference"),
        (lambda: Lid(neighbours=1), "neighbours"),
        (lambda: Lid(features="bits"), "features"),  # type: ignore[arg-type]
        (lambda: Lid(combination="sum"), "combination"),  # type: ignore[arg-type]
        (lambda: DeepNeighbours(held_out=1.0), "held_out"),
        (lambda: DeepNeighbours(temperature=-1.0), "temperature"),
    ],
)
def test_wrong_parameters(make: Any, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        make()


def test_what_is_held_apart_is_drawn_and_not_the_last_rows(world: World) -> None:
    # With fit_negatives the last rows are all noise.
    traces = world.traces(world.clean(80, 2), (Need("pooled"),), fit=True)
    train, held_out = held_apart(traces, 16)
    assert len(train) == 64 and len(held_out) == 16
    rows = {tuple(row.tolist()) for row in traces.logits}
    assert {tuple(r.tolist()) for r in torch.cat([train.logits, held_out.logits])} == rows
    last = {tuple(row.tolist()) for row in traces.logits[-16:]}
    assert sum(tuple(r.tolist()) in last for r in held_out.logits) < 12
    whole, same = held_apart(traces, 0)
    assert len(whole) == len(same) == 80


def test_prepared_rows_give_the_same_neighbours_and_belong_to_their_tensor() -> None:
    references, queries = References(), normal(5, 3)
    for seed in (1, 2):
        rows = normal(20, 3, seed=seed)
        prepared = references.of(rows, torch.device("cpu"))
        assert references.of(rows, torch.device("cpu")) is prepared
        for found, expected in zip(nearest(queries, prepared, 4), nearest(queries, rows, 4), strict=True):
            assert torch.equal(found, expected)
    # A copy has rows of its own under the keys of the original.
    again = copy.deepcopy(references)
    every = torch.arange(20)
    assert torch.equal(again.of(rows, torch.device("cpu")).rows(every), rows.double())


def test_prepared_rows_of_length_one_are_those_of_every_question() -> None:
    rows, queries = normal(40, 7, seed=3), normal(5, 7)
    rows[4] = 0
    prepared = References(normalised=True).of(rows, torch.device("cpu"))
    some = torch.tensor([[3, 4], [39, 3]])
    assert torch.equal(prepared.rows(some), unit_length(rows)[some])
    for found, expected in zip(nearest(queries, prepared, 9), nearest(queries, unit_length(rows), 9), strict=True):
        assert torch.equal(found, expected)


def test_prepared_rows_are_held_once_in_float64() -> None:
    rows = normal(50, 16)
    for normalised in (False, True):
        prepared = References(normalised).of(rows, torch.device("cpu"))
        held = [value for value in vars(prepared).values() if isinstance(value, torch.Tensor)]
        assert prepared.stored is rows
        assert sum(value.nbytes for value in held if value is not rows) < 1.2 * rows.double().nbytes
