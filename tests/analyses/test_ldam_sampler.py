"""The Langevin kernel and what is said of its chains: normal densities, borders, closed forms of R-hat and ESS."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from aftershock.analyses.ldam.diagnostics import validate_chains
from aftershock.analyses.ldam.measures import (
    between_chains,
    diversity,
    effective_size,
    high_frequency,
    over_targets,
    p_value,
    percentiles,
    split_rhat,
)
from aftershock.analyses.ldam.sampler import Chains, Method, Plan, Potential, Schedule, langevin
from aftershock.analyses.ldam.space import EDGE, Gaussian, Pixels, estimated_shrinkage
from aftershock.harness.core.errors import UsageError
from aftershock.harness.statistics.intervals import Estimate, student
from scipy import stats
from torch import Tensor

MEAN = torch.tensor([1.0, -2.0], dtype=torch.float64)
PRECISION = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)


def quadratic(w: Tensor) -> tuple[Tensor, Tensor]:
    off = w - MEAN.to(w)
    return (off @ PRECISION.to(w) * off).sum(1) / 2, w


def run(
    potential: Potential, size: int, step: float, method: Method, steps: int = 900, chains: int = 100,
    power: float = 0.0, seed: int = 0, adapt: bool = False,
) -> Chains:  # fmt: skip
    draws = torch.Generator().manual_seed(seed)
    start = torch.randn(chains, size, generator=draws, dtype=torch.float64)
    return langevin(potential, start, Plan(steps, 300, 1, Schedule(step, power), method, adapt), draws)


def errors(values: Tensor) -> tuple[float, float]:
    """Mean over chains (steps, chains) and its standard error."""
    means = values.mean(0)
    return float(means.mean()), float(means.std()) / math.sqrt(len(means))


def ula_covariance(step: float) -> Tensor:
    """C = A C A + step, with A = 1 - step / 2 · precision: what an unadjusted chain has instead of the inverse."""
    values, vectors = torch.linalg.eigh(PRECISION)
    shrink = 1 - step / 2 * values
    return vectors @ torch.diag(step / (1 - shrink.square())) @ vectors.T


@pytest.mark.parametrize(("method", "step"), [("ula", 0.5), ("mala", 0.5), ("mala", 1.2)])
def test_a_quadratic_energy_gives_its_normal_density(method: Method, step: float) -> None:
    found = run(quadratic, 2, step, method)
    exact = torch.linalg.inv(PRECISION) if method == "mala" else ula_covariance(step)
    off = found.watched - MEAN
    for i in range(2):
        mean, error = errors(found.watched[:, :, i])
        assert abs(mean - float(MEAN[i])) < 4 * error
        for j in range(2):
            moment, error = errors(off[:, :, i] * off[:, :, j])
            assert abs(moment - float(exact[i, j])) < 4 * error
    if method == "ula":
        # The step is so large that the bias could not be missed.
        assert float(exact[0, 0]) > float(torch.linalg.inv(PRECISION)[0, 0]) + 6 * errors(off[:, :, 0] ** 2)[1]


def test_a_small_step_needs_no_test_and_the_temperature_is_measured() -> None:
    found = run(quadratic, 2, 0.05, "ula")
    assert float(found.acceptance.mean()) > 0.98
    exact = torch.linalg.inv(PRECISION)
    for i in range(2):
        moment, error = errors((found.watched[:, :, i] - MEAN[i]) ** 2)
        assert abs(moment - float(exact[i, i])) < 4 * error + 0.05 * float(exact[i, i])
    # E[w · ∇U] = d in equilibrium.
    spread = float(found.virial.std()) / math.sqrt(len(found.virial))
    assert abs(float(found.virial.mean()) - 1) < 4 * spread + 0.05


def test_an_unadjusted_chain_is_hotter_by_a_known_factor() -> None:
    step = 0.8
    found = run(lambda w: (w.square().sum(1) / 2, w), 3, step, "ula")
    spread = float(found.virial.std()) / math.sqrt(len(found.virial))
    assert abs(float(found.virial.mean()) - 1 / (1 - step / 4)) < 4 * spread


def test_the_step_adapts_to_the_acceptance_and_then_stays() -> None:
    found = run(lambda w: (w.square().sum(1) / 2 * 50, w), 20, 1.0, "mala", steps=600, chains=20, adapt=True)
    assert 0.45 < float(found.acceptance.mean()) < 0.7
    variance, error = errors(found.watched.square().mean(2))
    assert abs(variance - 1 / 50) < 4 * error


def test_a_decaying_schedule_ends_small_and_leaves_less_bias() -> None:
    def isotropic(w: Tensor) -> tuple[Tensor, Tensor]:
        return w.square().sum(1) / 2, w

    constant = run(isotropic, 1, 1.0, "ula", steps=900).watched[-300:].square()
    decaying = run(isotropic, 1, 1.0, "ula", steps=900, power=0.9)
    assert float(decaying.step[0]) == pytest.approx((1 + 899 / 100) ** -0.9)
    # Variance of the unadjusted chain: 1 / (1 - step / 4).
    assert errors(constant[:, :, 0])[0] > 1.2
    assert errors(decaying.watched[-300:, :, 0].square())[0] < 1.1


@pytest.mark.parametrize("method", ["ula", "mala"])
def test_reflected_chains_keep_a_uniform_density(method: Method) -> None:
    space = Pixels((1, 2, 2))
    found = run(lambda w: (space.potential(w), space.images(w).flatten(1)), 4, 0.05, method)
    seen = found.watched[::50].reshape(-1).numpy()
    assert seen.min() >= 0
    assert seen.max() <= 1
    # 50 steps of variance 0.05 forget the start: draws are nearly independent.
    assert stats.kstest(seen[:8000], "uniform").pvalue > 1e-3


def test_reflected_chains_keep_a_truncated_density() -> None:
    space, rate = Pixels((1, 1, 1)), 6.0

    def tilted(w: Tensor) -> tuple[Tensor, Tensor]:
        x = space.images(w).flatten(1)
        return rate * x[:, 0], x

    seen = run(tilted, 1, 0.03, "mala", steps=900).watched[::40].reshape(-1).numpy()
    assert stats.kstest(seen, stats.truncexpon(b=rate, scale=1 / rate).cdf).pvalue > 1e-3
    mean, error = errors(run(tilted, 1, 0.004, "ula", steps=1500).watched[:, :, 0])
    assert abs(mean - float(stats.truncexpon(b=rate, scale=1 / rate).mean())) < 4 * error + 0.01


def test_a_place_that_is_no_number_is_never_entered() -> None:
    def half(w: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(w[:, 0] > 0, w[:, 0], torch.full_like(w[:, 0], math.nan)), w

    draws = torch.Generator().manual_seed(0)
    found = langevin(half, torch.ones(50, 1, dtype=torch.float64), Plan(1000, 100, 1, Schedule(0.5), "mala"), draws)
    assert float(found.watched.min()) > 0
    mean, error = errors(found.watched[:, :, 0])
    assert abs(mean - 1) < 4 * error


def test_a_potential_that_is_no_number_is_told() -> None:
    def nothing(w: Tensor) -> tuple[Tensor, Tensor]:
        return w.sum(1) * float("nan"), torch.zeros(len(w), 3)

    plan = Plan(20, 10, 2, Schedule(0.1), "mala")
    run = langevin(nothing, torch.rand(3, 4), plan, torch.Generator().manual_seed(0))
    assert bool(run.end.isfinite().all())
    with pytest.raises(UsageError, match="left every bound"):
        validate_chains(run, plan, True, False)


def test_chains_depend_on_the_seed_alone() -> None:
    one, again, other = (run(quadratic, 2, 0.3, "mala", steps=320, chains=5, seed=s) for s in (1, 1, 2))
    assert torch.equal(one.watched, again.watched)
    assert not torch.equal(one.watched, other.watched)


def test_what_is_kept() -> None:
    found = langevin(
        lambda w: (w.square().sum(1), w[:, :1]), torch.zeros(3, 4), Plan(25, 10, 4, Schedule(0.1)),
        torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert found.states.shape == (3, 3, 4)
    assert found.watched.shape == (15, 3, 1)
    assert torch.equal(found.states[0, :, 0].double(), found.watched[3, :, 0])
    assert found.end.shape == (3, 4)


def test_the_reference_measure_has_the_datas_moments() -> None:
    draws = torch.Generator().manual_seed(0)
    mixing = torch.randn(12, 12, generator=draws) / 4
    images = torch.sigmoid(torch.randn(4000, 12, generator=draws) @ mixing).unflatten(1, (3, 2, 2))
    space = Gaussian(images)
    seen = torch.logit(space.images(space.draw(20000, draws))).flatten(1)
    known = torch.logit(images.clamp(EDGE, 1 - EDGE)).flatten(1)
    assert torch.allclose(seen.mean(0), known.mean(0), atol=0.05)
    assert torch.allclose(seen.T.cov(), known.T.cov(), atol=0.06)


def test_large_images_keep_their_covariance_over_images(monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(0)
    images = torch.sigmoid(torch.randn(40, 1, 3, 3, generator=draws).cumsum(3))
    dense = Gaussian(images, shrinkage=0.2)
    monkeypatch.setattr("aftershock.analyses.ldam.space._DENSE", 4)
    thin = Gaussian(images, shrinkage=0.2)
    assert thin.size == 49
    full = thin.factor.T @ thin.factor + thin.residual**2 * torch.eye(9)
    assert torch.allclose(full, dense.factor.T @ dense.factor, atol=1e-4)
    assert thin.images(thin.draw(2, draws)).shape == (2, 1, 3, 3)


@pytest.mark.parametrize(("n", "side"), [(12, 4), (60, 3)])
def test_the_shrinkage_of_large_images_is_ledoit_and_wolfs(n: int, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draws = torch.Generator().manual_seed(n)
    values = torch.randn(n, 3 * side**2, generator=draws, dtype=torch.float64).cumsum(1)
    values -= values.mean(0)
    library = estimated_shrinkage(values)
    monkeypatch.setattr("aftershock.analyses.ldam.space._DENSE", 4)
    assert 0.01 < library < 1
    assert estimated_shrinkage(values) == pytest.approx(library, rel=1e-4)
    assert estimated_shrinkage(torch.zeros(n, 8, dtype=torch.float64)) == 0


def test_images_that_are_too_many_for_a_covariance_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aftershock.analyses.ldam.space._DENSE", 4)
    monkeypatch.setattr("aftershock.analyses.ldam.space._LARGEST", 100)
    with pytest.raises(UsageError, match='coordinates = "pixels", or images = 11'):
        Gaussian(torch.rand(12, 1, 3, 3))


@pytest.mark.parametrize("temperature", [0.3, 2.0])
def test_the_reference_measure_has_the_chains_temperature(temperature: float) -> None:
    draws = torch.Generator().manual_seed(0)
    space = Gaussian(torch.rand(50, 1, 2, 2, generator=draws))

    def reference(w: Tensor) -> tuple[Tensor, Tensor]:
        return space.potential(w) / temperature, w

    seen, error = errors(run(reference, 4, 0.05 * temperature, "mala", steps=700).watched.square().mean(2))
    drawn = space.tempered(space.draw(20000, draws), temperature).square().mean()
    assert abs(seen - float(drawn)) < 4 * error + 0.02 * temperature
    w = torch.rand(3, 4)
    assert torch.equal(Pixels((1, 2, 2)).tempered(w, temperature), w)


def autoregressive(rho: float, steps: int, chains: int, seed: int) -> np.ndarray:
    draws = np.random.default_rng(seed)
    x = np.empty((steps, chains))
    x[0] = draws.normal(size=chains)
    for t in range(1, steps):
        x[t] = rho * x[t - 1] + math.sqrt(1 - rho**2) * draws.normal(size=chains)
    return x


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9, -0.4])
def test_the_effective_size_of_an_autoregression(rho: float) -> None:
    steps, chains = 3000, 4
    found = effective_size(autoregressive(rho, steps, chains, 1))
    assert found == pytest.approx(steps * chains * (1 - rho) / (1 + rho), rel=0.15)


def test_rhat_of_mixed_shifted_and_stretched_chains() -> None:
    draws = np.random.default_rng(0).normal(size=(1000, 4))
    assert split_rhat(draws) < 1.01
    shifted = draws + np.array([0, 0, 0, 2.0])
    assert split_rhat(shifted) > 1.1
    # Same means, other spreads: only the folded one sees it.
    assert split_rhat(draws * np.array([1, 1, 1, 4.0])) > 1.1
    drifting = draws + np.linspace(0, 3, 1000)[:, None]
    assert split_rhat(drifting) > 1.1
    assert math.isnan(split_rhat(np.zeros((100, 4))))
    assert math.isnan(split_rhat(draws[:3]))
    assert math.isnan(effective_size(np.zeros((100, 4))))


def test_chains_that_stand_still_have_not_mixed() -> None:
    for steps in (16, 64, 100):
        stuck = np.repeat(np.random.default_rng(0).normal(size=(1, 6)), steps, 0)
        assert split_rhat(stuck) == math.inf
    # Equally far from the median: the folded draws are constant, and the bulk still tells.
    assert split_rhat(np.repeat([[-1.0, 1.0]], 20, 0)) == math.inf
    lost = np.random.default_rng(0).normal(size=(100, 4))
    lost[50, 2] = math.nan
    assert split_rhat(lost) == math.inf


def test_rhat_does_not_care_for_monotone_changes() -> None:
    draws = np.random.default_rng(1).normal(size=(500, 4)) + np.array([0, 0, 0.3, 0])
    assert effective_size(np.exp(3 * draws)) == pytest.approx(effective_size(draws), rel=1e-9)


def test_percentiles_count_ties_half() -> None:
    data = torch.tensor([1.0, 2.0, 2.0, 3.0])
    found = percentiles(torch.tensor([[0.0, 2.0], [2.5, 9.0]]), data)
    expected = [[stats.percentileofscore(data.numpy(), v, "mean") / 100 for v in row] for row in ((0, 2), (2.5, 9))]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64))


def test_high_frequencies_of_waves() -> None:
    x = torch.arange(16.0)
    slow, fast = (0.5 + 0.5 * torch.cos(2 * math.pi * f * x).expand(1, 16, 16) for f in (1 / 16, 7 / 16))
    found = high_frequency(torch.stack([slow, fast, (slow + fast) / 2]))
    assert torch.allclose(found, torch.tensor([0.0, 1.0, 0.5], dtype=torch.float64), atol=1e-6)


def test_intervals_are_students() -> None:
    values = np.array([1.0, 2.0, 4.0, 5.0])
    found = student(values)
    low, high = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((3.0, low, high))
    assert math.isnan(student(values[:1]).low)
    assert p_value(values) == pytest.approx(float(stats.ttest_1samp(values, 0).pvalue))
    assert (p_value(np.zeros(3)), p_value(np.ones(3)), p_value(np.ones(1))) == (1.0, 0.0, None)
    both = over_targets([Estimate(1, 0.7, 1.3), Estimate(3, 2.6, 3.4)])
    assert (both.value, both.high) == pytest.approx((2, 2 + 0.25))


def test_diversity_compares_chains_and_not_their_states() -> None:
    points = torch.tensor([0.0, 0.0, 1.0, 1.0, 4.0, 4.0])
    apart = (points[:, None] - points[None]).abs()
    found = diversity(between_chains(apart, torch.tensor([0, 0, 1, 1, 2, 2])))
    assert found.value == pytest.approx((1 + 4 + 3) / 3)
    assert found.low < found.value < found.high
    # By hand: the means without one chain are 3, 4 and 1.
    without = np.array([3.0, 4.0, 1.0])
    error = math.sqrt(2 / 3 * ((without - without.mean()) ** 2).sum())
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, 2) * error)
