"""Isolation forests as tensors against scikit-learn's own scores."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from aftershock.detectors.activations.isolation_forest import IsolationTrees, expected_path, fit_isolation, from_sklearn
from scipy.stats import spearmanr
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def both(data: torch.Tensor, **options: object) -> tuple[IsolationForest, IsolationTrees]:
    forest = IsolationForest(random_state=0, **options).fit(data.numpy())
    return forest, from_sklearn(forest, data.std(0).clamp(min=1e-6))


@pytest.mark.parametrize(
    ("n", "d", "options"),
    [
        (600, 5, {}),
        (300, 1, {"n_estimators": 20}),
        (40, 8, {"n_estimators": 30}),
        (900, 3, {"max_samples": 700, "n_estimators": 10}),
        (5, 2, {"n_estimators": 3, "max_samples": 5}),
        (3, 2, {"n_estimators": 1, "max_samples": 2}),
    ],
)
def test_anomaly_is_minus_score_samples(n: int, d: int, options: dict[str, object]) -> None:
    data = rows(n, d)
    forest, trees = both(data, **options)
    other = torch.cat([data, rows(200, d, 1) * 3, data.round()])
    np.testing.assert_allclose(trees.anomaly(other).numpy(), -forest.score_samples(other.numpy()), rtol=1e-12)


def test_equal_samples_and_repeated_values_are_scikit_learns_too() -> None:
    for data in (torch.ones(50, 3), torch.randint(0, 3, (200, 4), generator=torch.Generator().manual_seed(0)).float()):
        forest, trees = both(data, n_estimators=15)
        np.testing.assert_allclose(trees.anomaly(data).numpy(), -forest.score_samples(data.numpy()), rtol=1e-12)


def test_one_sample_gives_a_finite_score() -> None:
    trees = fit_isolation(rows(1, 3), 5, 256, torch.Generator().manual_seed(0))
    assert bool(trees.anomaly(rows(4, 3)).isfinite().all())
    assert trees.anomaly(rows(0, 3)).shape == (0,)


def test_a_planted_outlier_scores_highest_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    trees = fit_isolation(rows(500, 4), 100, 256, torch.Generator().manual_seed(0))
    inside, outside = rows(200, 4, 1), rows(200, 4, 2) + 20
    scores = trees.anomaly(torch.cat([inside, outside]))
    assert roc_auc_score([0] * 200 + [1] * 200, scores) == 1
    again = trees.anomaly(rows(200, 4, 3))
    assert abs(roc_auc_score([0] * 200 + [1] * 200, torch.cat([scores[:200], again])) - 0.5) < 0.1
    monkeypatch.setattr("aftershock.detectors.activations.isolation_forest._BLOCK", 7)
    # A vectorised power may differ from its scalar form in the last bit.
    torch.testing.assert_close(trees.anomaly(torch.cat([inside, outside])), scores, rtol=1e-14, atol=0)


def test_the_generator_decides() -> None:
    data = rows(300, 4)
    first, again, other = (
        fit_isolation(data, 10, 64, torch.Generator().manual_seed(s)).anomaly(data) for s in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_soft_splits_become_the_hard_ones_as_they_cool() -> None:
    data = rows(500, 4)
    _, trees = both(data, n_estimators=20)
    other = rows(200, 4, 1) * 2
    hard = trees.anomaly(other)
    gaps = [float((trees.relaxed_anomaly(other.double(), t) - hard).abs().max()) for t in (1.0, 1e-2, 1e-6)]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-2
    torch.testing.assert_close(trees.relaxed_anomaly(other.double(), 0.5, straight_through=True), hard)
    assert spearmanr(trees.relaxed_anomaly(other, 0.5), hard)[0] > 0.8


def test_a_row_far_outside_has_a_gradient_that_leads_back() -> None:
    trees = fit_isolation(rows(500, 4), 50, 256, torch.Generator().manual_seed(0))
    x = torch.full((3, 4), 1e3, requires_grad=True)
    for straight_through in (False, True):
        gradient = torch.autograd.grad(trees.relaxed_anomaly(x, 0.5, straight_through).sum(), x)[0]
        assert bool((gradient.sum(1) > 0).all()) and bool(gradient.isfinite().all())


def test_the_expected_path_is_that_of_binary_search_trees() -> None:
    """c(n) = 2 H(n−1) − 2 (n−1) / n, with the harmonic number by its sum."""
    assert [expected_path(n) for n in (0, 1, 2)] == [0, 0, 1]
    for n in (50, 256):
        harmonic = sum(1 / i for i in range(1, n))
        # The usual approximation of H(m) is ln m + 0.5772, off by 1 / 2m.
        assert expected_path(n) == pytest.approx(2 * harmonic - 2 * (n - 1) / n, abs=1.1 / (n - 1))


def relaxed_in_complete_trees(trees: IsolationTrees, x: torch.Tensor, temperature: float) -> torch.Tensor:
    """The definition: every node of a complete tree is a soft split; an infinite threshold sends all to the left."""
    margin = (trees.thresholds.to(x) - x[:, trees.features]) / (temperature * trees.spread.to(x)[trees.features])
    margin = margin.clamp(max=1e30)
    left = (1 + margin / (1 + margin.abs())) / 2
    lengths = trees.lengths.to(x).expand(len(x), -1, -1)
    for level in reversed(range(trees.depth)):
        chance = left[:, :, 2**level - 1 : 2 ** (level + 1) - 1]
        lengths = chance * lengths[:, :, 0::2] + (1 - chance) * lengths[:, :, 1::2]
    return torch.pow(2.0, -lengths.squeeze(2).mean(1) / trees.normaliser)


@pytest.mark.parametrize(
    "data",
    [rows(600, 5), rows(3, 2), torch.cat([torch.ones(50, 3), rows(2, 3)]), torch.ones(20, 2)],
    ids=["many", "few", "mostly-equal", "one-leaf"],
)
def test_nodes_below_early_leaves_can_be_left_out(data: torch.Tensor) -> None:
    _, trees = both(data, n_estimators=20)
    x = (rows(30, data.shape[1], 1) * 2).requires_grad_()
    found, expected = trees.relaxed_anomaly(x, 0.5), relaxed_in_complete_trees(trees, x, 0.5)
    torch.testing.assert_close(found, expected)
    one, other = (torch.autograd.grad(value.sum(), x)[0] for value in (found, expected))
    torch.testing.assert_close(one, other)
