"""Standardiser, principal components and autoencoder against scikit-learn and planted planes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from aftershock.detectors.codes import autoencoder, latent
from aftershock.detectors.codes.autoencoder import (
    Autoencoder,
    fit_autoencoder,
    fit_autoencoders,
    fit_in_components,
    imq_mmd,
)
from aftershock.detectors.codes.latent import fit_pca, fit_standardiser
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.preprocessing import StandardScaler


@pytest.fixture(params=["covariance", "iteration"])
def algorithm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the components, whatever the number of units."""
    monkeypatch.setattr(latent, "_COVARIANCE_UNITS", 10_000 if request.param == "covariance" else 0)
    return str(request.param)


def stream(x: torch.Tensor, size: int) -> Callable[[], tuple[torch.Tensor, ...]]:
    return lambda: x.split(size)


def plane(n: int, d: int, rank: int, noise: float, seed: int = 0) -> torch.Tensor:
    """Points on a ``rank``-dimensional plane of unit-variance units, with a little noise off the plane."""
    g = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(d, rank, generator=g)).Q * math.sqrt(d / rank)
    sizes = torch.linspace(2, 1, rank)
    return (torch.randn(n, rank, generator=g) * sizes) @ axes.T + noise * torch.randn(n, d, generator=g)


class TestStandardiser:
    @given(
        arrays(np.float32, st.tuples(st.integers(1, 30), st.integers(1, 5)), elements=st.floats(-100, 100, width=16)),
        st.integers(1, 31),
    )
    @settings(max_examples=60, deadline=None)
    def test_is_sklearns_however_the_stream_is_cut(self, array: np.ndarray, size: int) -> None:
        x = torch.from_numpy(array)
        found = fit_standardiser(x.split(size))
        oracle = StandardScaler().fit(array.astype(np.float64))
        np.testing.assert_allclose(found.mean.numpy(), oracle.mean_, rtol=1e-5, atol=1e-6)
        spread = np.sqrt(oracle.var_)
        varies = spread > np.maximum(2e-7 * np.abs(oracle.mean_), 1e-11)
        np.testing.assert_allclose(found.scale.numpy()[varies], 1 / spread[varies], rtol=1e-5)
        assert found.apply(x).isfinite().all()

    def test_a_constant_unit_becomes_zero(self) -> None:
        x = torch.tensor([[0.1, 1.0], [0.1, 3.0], [0.1, 5.0]])
        found = fit_standardiser([x])
        assert found.scale[0] == 0
        assert found.apply(torch.tensor([[9.0, 3.0]])).tolist() == [[0.0, 0.0]]

    def test_a_small_spread_on_a_large_mean_keeps_its_digits(self) -> None:
        # The naive E[x^2] - E[x]^2 in float32 would give 0 or less here.
        x = 10_000 + torch.tensor([0.0, 0.25, 0.5]).repeat(1000).unsqueeze(1)
        scale = fit_standardiser(x.split(7)).scale
        assert float(scale) == pytest.approx(1 / np.std([0, 0.25, 0.5]), rel=1e-5)

    def test_empty_batches_count_for_nothing_and_an_empty_stream_is_refused(self) -> None:
        x = plane(20, 3, 2, 0.1)
        with_empty = fit_standardiser([x[:0], x[:11], x[:0], x[11:]])
        assert torch.equal(with_empty.mean, fit_standardiser([x[:11], x[11:]]).mean)
        with pytest.raises(ValueError, match="at least one row"):
            fit_standardiser([x[:0]])


class TestPCA:
    @pytest.mark.parametrize(("n", "d"), [(200, 12), (15, 40), (120, 300)])
    def test_is_sklearns(self, algorithm: str, n: int, d: int) -> None:
        x = plane(n, d, 6, 0.05) + 3
        found = fit_pca(stream(x, 37), 5)
        oracle = SklearnPCA(5, svd_solver="full").fit(x.double().numpy())
        np.testing.assert_allclose(found.mean.numpy(), oracle.mean_, atol=1e-5)
        np.testing.assert_allclose(
            found.deviations.numpy(), np.sqrt(oracle.explained_variance_ * (n - 1) / n), rtol=1e-4
        )
        # Up to its sign, which is made certain by another rule.
        cosines = np.abs((found.components.double().numpy() * oracle.components_).sum(1))
        np.testing.assert_allclose(cosines, 1, atol=1e-4)
        largest = found.components.gather(1, found.components.abs().argmax(1, keepdim=True))
        assert (largest > 0).all()

    @pytest.mark.parametrize("d", [20, 150])
    def test_its_reconstruction_is_the_best_of_its_rank(self, algorithm: str, d: int) -> None:
        x = plane(90, d, 8, 0.2) - 1
        found = fit_pca(stream(x, 32), 3)
        code = found.encode(x)
        assert code.shape == (90, 3)
        singular = np.linalg.svd((x - x.mean(0)).double().numpy(), compute_uv=False)
        left = float((found.decode(code) - x).square().sum())
        assert left == pytest.approx(float((singular[3:] ** 2).sum()), rel=1e-4)
        np.testing.assert_allclose(code.std(0, correction=0).numpy(), found.deviations.numpy(), rtol=1e-4)

    def test_components_are_orthonormal_also_with_a_flat_spectrum(self, algorithm: str) -> None:
        x = torch.randn(100, 250, generator=torch.Generator().manual_seed(0))
        found = fit_pca(stream(x, 50), 10)
        np.testing.assert_allclose((found.components @ found.components.T).numpy(), np.eye(10), atol=1e-5)
        singular = np.linalg.svd((x - x.mean(0)).numpy(), compute_uv=False)[:10] / 10
        # The iteration stops before it tells equal directions apart; what they hold is close to the optimum.
        np.testing.assert_allclose(found.deviations.numpy(), singular, rtol=0.01)

    def test_directions_without_variance_are_left_out(self, algorithm: str) -> None:
        x = plane(50, 10, 2, 0.0) + 5
        found = fit_pca(stream(x, 16), 6)
        assert found.components.shape == (2, 10)
        np.testing.assert_allclose(found.decode(found.encode(x)).numpy(), x.numpy(), atol=1e-5)

    @pytest.mark.parametrize("x", [torch.full((6, 4), 0.1), torch.randn(1, 4), torch.zeros(3, 20)])
    def test_constant_data_have_no_component_but_a_mean(self, algorithm: str, x: torch.Tensor) -> None:
        found = fit_pca(stream(x, 4), 3)
        assert found.components.shape == (0, x.shape[1])
        assert found.encode(x).shape == (len(x), 0)
        np.testing.assert_allclose(found.decode(found.encode(x)).numpy(), x.numpy(), atol=1e-6)

    def test_it_is_deterministic_and_draws_nothing(self, algorithm: str) -> None:
        x = plane(40, 60, 5, 0.1)
        before = torch.get_rng_state()
        assert torch.equal(fit_pca(stream(x, 9), 4).components, fit_pca(stream(x, 9), 4).components)
        assert torch.equal(torch.get_rng_state(), before)

    def test_what_cannot_be_fitted_says_why(self) -> None:
        with pytest.raises(ValueError, match="at least one row"):
            fit_pca(stream(torch.empty(0, 3), 4), 2)
        with pytest.raises(ValueError, match="at least one component"):
            fit_pca(stream(torch.ones(2, 3), 4), 0)


def squared_error(reconstruction: torch.Tensor, x: torch.Tensor) -> float:
    return float((reconstruction - x).square().mean())


class TestAutoencoder:
    @pytest.mark.parametrize("hidden", [(), (32,)])
    def test_it_reaches_about_the_error_of_pca_on_a_plane(self, hidden: tuple[int, ...]) -> None:
        x = plane(1000, 20, 3, 0.1)
        pca = fit_pca(stream(x, 256), 3)
        best = squared_error(pca.decode(pca.encode(x)), x)
        model = fit_autoencoder(stream(x, 256), 20, 3, hidden, 60, torch.Generator().manual_seed(0), 3e-2)
        found = squared_error(model(x), x)
        # No linear map does better than PCA; leaving out one axis of the plane would cost about forty times as much.
        assert found < 1.7 * best
        if not hidden:
            assert found > 0.999 * best
        assert best < 0.01 * float(x.var())

    def test_points_off_the_plane_are_reconstructed_worse(self) -> None:
        x = plane(600, 16, 2, 0.05)
        model = fit_autoencoder(stream(x, 100), 16, 2, (16,), 30, torch.Generator().manual_seed(0), 1e-2)
        off = x + torch.randn(600, 16, generator=torch.Generator().manual_seed(1))
        on_error = (model(x) - x).square().mean(1)
        off_error = (model(off) - off).square().mean(1)
        assert (off_error > on_error.quantile(0.95)).float().mean() > 0.95

    def test_it_is_determined_by_its_generator_alone(self) -> None:
        x = plane(200, 8, 2, 0.1)

        def fit(seed: int, size: int = 50) -> Autoencoder:
            return fit_autoencoder(stream(x, size), 8, 2, (6,), 3, torch.Generator().manual_seed(seed))

        torch.manual_seed(1)
        before = torch.get_rng_state()
        first = fit(0)
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(2)
        for again in (fit(0), fit(0, size=33)):
            assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
        assert not torch.equal(first.encode(x), fit(1).encode(x))

    def test_every_row_is_seen_once_an_epoch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[torch.Tensor] = []
        plain = autoencoder._applied

        def applied(weights: Mapping[str, torch.Tensor], side: str, x: torch.Tensor) -> torch.Tensor:
            if side == "encoder":
                seen.append(x.flatten())
            return plain(weights, side, x)

        monkeypatch.setattr(autoencoder, "_applied", applied)
        rows = torch.arange(701.0).unsqueeze(1) / 701
        # A buffer of 32 mini-batches of 10 fills twice; what is left is a third.
        fit_autoencoder(stream(rows, 64), 1, 1, (), 2, torch.Generator().manual_seed(0), batch_size=10)
        values = torch.cat(seen).flatten()
        assert max(map(len, seen)) == 10
        for epoch in values.split(701):
            assert torch.equal(epoch.sort().values, rows.flatten())
            assert not torch.equal(epoch, rows.flatten())
        assert not torch.equal(values[:701], values[701:])

    def test_several_are_trained_as_each_would_be_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From the same weights, in the same order of rows: training one beside another changes nothing."""
        start = Autoencoder(8, 2, (6,), torch.Generator().manual_seed(0)).state_dict()

        def drawn(inputs: int, latent: int, hidden: tuple[int, ...], generator: torch.Generator) -> Autoencoder:
            made = Autoencoder(inputs, latent, hidden)
            made.load_state_dict(start)
            return made

        monkeypatch.setattr(autoencoder, "Autoencoder", drawn)
        rows = torch.stack([plane(90, 8, 2, 0.1), plane(90, 8, 3, 0.2) + 1])
        options = (8, 2, (6,), 4)
        both = fit_autoencoders(lambda: [rows], 2, *options, torch.Generator().manual_seed(1), 1e-2, 20)
        for own, model in zip(rows, both, strict=True):
            alone = fit_autoencoder(stream(own, 90), *options, torch.Generator().manual_seed(1), 1e-2, 20)
            for a, b in zip(model.parameters(), alone.parameters(), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

    def test_in_components_it_takes_the_inputs_and_explains_other_rows_better(self) -> None:
        """Three factors in three hundred noisy inputs: the noise of 200 rows is learned by heart otherwise."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(400, 3, generator=generator) @ torch.randn(3, 300, generator=generator)
        x = x + 2 * torch.randn(400, 300, generator=generator) + torch.arange(300.0) / 100
        known, new = stream(x[:200], 64), x[200:]
        found = fit_in_components(known, 3, (32,), 100, torch.Generator().manual_seed(0), 20)
        plain = fit_autoencoder(known, 300, 3, (32,), 100, torch.Generator().manual_seed(0), 1e-3, 20)
        pca = fit_pca(known, 3)
        errors = [squared_error(coded, new) for coded in (pca.decode(pca.encode(new)), found(new), plain(new))]
        assert errors[1] < 1.15 * errors[0]
        assert errors[1] < errors[2]
        assert found.inputs == 300

    @pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
    def test_it_trains_inside_no_grad_and_comes_back_frozen(self, mode: Callable[[], object]) -> None:
        with mode():  # type: ignore[attr-defined]
            x = plane(100, 6, 2, 0.1)
            model = fit_autoencoder(stream(x, 30), 6, 2, (), 5, torch.Generator().manual_seed(0))
            start = Autoencoder(6, 2, (), torch.Generator().manual_seed(0))
            assert squared_error(model(x), x) < squared_error(start(x), x)
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(p.is_inference() for p in model.parameters())

    def test_a_gradient_reaches_the_input_of_a_frozen_one(self) -> None:
        x = plane(50, 6, 2, 0.1)
        model = fit_autoencoder(stream(x, 30), 6, 2, (5,), 2, torch.Generator().manual_seed(0))
        live = x.clone().requires_grad_()
        (model(live) - live).square().sum().backward()
        assert live.grad is not None
        assert live.grad.abs().sum() > 0

    def test_its_parameters_go_through_a_state_dict(self) -> None:
        x = plane(50, 6, 2, 0.1)
        model = fit_autoencoder(stream(x, 30), 6, 2, (5, 4), 2, torch.Generator().manual_seed(0))
        empty = Autoencoder(model.inputs, model.latent, model.hidden)
        assert all(p.count_nonzero() == 0 for p in empty.parameters())
        empty.load_state_dict(model.state_dict())
        assert torch.equal(empty(x), model(x))
        assert model.encode(x).shape == (50, 2)

    def test_failures_say_what_to_do(self) -> None:
        with pytest.raises(ValueError, match="at least one row"):
            fit_autoencoder(stream(torch.empty(0, 3), 4), 3, 1, (), 1, torch.Generator())
        with pytest.raises(ValueError, match="diverged"):
            fit_autoencoder(stream(torch.full((4, 3), 1e30), 4), 3, 1, (), 2, torch.Generator())


def direct_mmd(x: np.ndarray, y: np.ndarray, variance: float) -> float:
    """The unbiased estimate written out pair by pair."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        constants = [2 * len(a) * variance * s for s in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
        return sum(c / (c + float(np.square(a - b).sum())) for c in constants)

    n = len(x)
    within = sum(kernel(s[i], s[j]) for s in (x, y) for i in range(n) for j in range(n) if i != j)
    return within / (n * (n - 1)) - 2 * sum(kernel(a, b) for a in x for b in y) / n**2


class TestImqMmd:
    def test_it_is_the_sum_over_pairs(self) -> None:
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(7, 3, generator=g) + 1, torch.randn(7, 3, generator=g)
        found = float(imq_mmd(x, y, 2.0))
        assert found == pytest.approx(direct_mmd(x.double().numpy(), y.double().numpy(), 2.0), rel=1e-4)

    def test_it_is_near_0_for_the_same_distribution_and_large_for_another(self) -> None:
        g = torch.Generator().manual_seed(0)
        x, y = torch.randn(400, 4, generator=g), torch.randn(400, 4, generator=g)
        assert abs(float(imq_mmd(x, y, 1.0))) < 0.02 < 0.3 < float(imq_mmd(x + 2, y, 1.0))

    def test_its_gradient_is_that_of_differences(self) -> None:
        g = torch.Generator().manual_seed(0)
        x, y = (torch.randn(2, 4, 3, generator=g, dtype=torch.float64) for _ in range(2))
        assert torch.autograd.gradcheck(lambda codes: imq_mmd(codes, y, 1.0), (x.requires_grad_(),))

    def test_samples_side_by_side_give_what_each_gives_alone(self) -> None:
        x, y = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
        expected = [float(imq_mmd(a, b, 1.0)) for a, b in zip(x, y, strict=True)]
        assert imq_mmd(x, y, 1.0).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)

    def test_one_row_gives_0_with_a_gradient(self) -> None:
        x = torch.ones(1, 3, requires_grad=True)
        value = imq_mmd(x, torch.zeros(1, 3), 1.0)
        assert value.item() == 0
        assert torch.autograd.grad(value, x)[0].tolist() == [[0, 0, 0]]

    def test_as_a_penalty_it_brings_the_codes_to_the_prior(self) -> None:
        data = plane(600, 10, 3, 0.1)
        found = {}
        for weight in (0.0, 10.0):
            g = torch.Generator().manual_seed(0)

            def penalty(codes: torch.Tensor, weight: float = weight, g: torch.Generator = g) -> torch.Tensor:
                return weight * imq_mmd(codes, torch.randn(codes.shape, generator=g), 1.0)

            model = fit_autoencoder(stream(data, 100), 10, 3, (16,), 20, g, batch_size=50, penalty=penalty)
            codes = model.encode(data)
            prior = torch.randn(codes.shape, generator=torch.Generator().manual_seed(1))
            found[weight] = float(imq_mmd(codes, prior, 1.0))
        assert found[10.0] < 0.5 * found[0.0]
