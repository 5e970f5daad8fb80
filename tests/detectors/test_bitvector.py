"""The bit-vector detector against scikit-learn, SciPy and plain loops."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from aftershock.detectors.base.classes import class_groups
from aftershock.detectors.bits import blocks as bitblocks
from aftershock.detectors.bits.bitvector import BitVector
from aftershock.detectors.bits.blocks import BitBlocks
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.rows import Rows
from aftershock.harness.tracing.traces import Need
from scipy.stats import bernoulli
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from support.activations import Sample, World

ALL = (Need("bits", "all"),)


def bits_of(sample: Sample, taps: list[str]) -> np.ndarray:
    return np.concatenate([(sample.before[t] > 0).numpy() for t in taps], 1).astype(float)


@pytest.fixture
def in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a few images, and nothing kept in memory."""
    monkeypatch.setattr(bitblocks, "_BLOCK", 4000)
    monkeypatch.setattr(bitblocks, "_KEEP", 0)


class TestLinear:
    taps = ("conv", "block.relu", "dense")

    def unpacked(self, *samples: Any) -> list[np.ndarray]:
        """±1 bits of length 1, the scale that ``regularisation`` refers to."""
        rows = [bits_of(s, list(self.taps)) for s in samples]
        return [(2 * r - 1) / np.sqrt(r.shape[1]) for r in rows]

    @pytest.mark.usefixtures("in_small_blocks")
    @pytest.mark.parametrize("regularisation", [1e-1, 1e-2, 1e-3])
    def test_logistic_is_scikit_learns(self, world: World, regularisation: float) -> None:
        clean, perturbed, held_out = world.clean(180, 1), world.perturbed(90, 2), world.clean(50, 3)
        detector = BitVector("logistic", "all", regularisation)
        detector.fit(world.traces(clean, ALL, fit=True), world.traces(perturbed, ALL))
        x0, x1, x2 = self.unpacked(clean, perturbed, held_out)
        oracle = LogisticRegression(
            C=1 / (regularisation * 270), class_weight="balanced", tol=1e-10, max_iter=10_000
        ).fit(np.concatenate([x0, x1]), [0] * 180 + [1] * 90)
        expected = oracle.decision_function(x2)
        found = detector.score(world.traces(held_out, ALL)).numpy()
        np.testing.assert_allclose(found, expected, atol=2e-3 * np.abs(expected).max())

    @pytest.mark.parametrize("regularisation", [1e-1, 1e-2, 1e-3])
    def test_svm_is_scikit_learns(self, world: World, regularisation: float) -> None:
        clean, perturbed, held_out = world.clean(180, 1), world.perturbed(90, 2), world.clean(50, 3)
        detector = BitVector("svm", "all", regularisation)
        detector.fit(world.traces(clean, ALL, fit=True), world.traces(perturbed, ALL))
        x0, x1, x2 = self.unpacked(clean, perturbed, held_out)
        # LinearSVC regularises the intercept; the scaling makes that negligible.
        oracle = LinearSVC(
            C=1 / (regularisation * 270), class_weight="balanced", dual=False, intercept_scaling=100, tol=1e-9,
            max_iter=50_000,
        ).fit(np.concatenate([x0, x1]), [0] * 180 + [1] * 90)  # fmt: skip
        expected = oracle.decision_function(x2)
        found = detector.score(world.traces(held_out, ALL)).numpy()
        np.testing.assert_allclose(found, expected, atol=5e-3 * np.abs(expected).max())

    @pytest.mark.parametrize("method", ["logistic", "svm"])
    def test_perturbed_images_are_required(self, world: World, method: Any) -> None:
        traces = world.traces(world.clean(10, 1), ALL, fit=True)
        for perturbed in (None, traces[:0]):
            with pytest.raises(UsageError, match="fit_on"):
                BitVector(method, "all").fit(traces, perturbed)

    def test_only_the_linear_methods_are_supervised(self) -> None:
        assert [BitVector(m).supervised for m in ("logistic", "svm", "bernoulli", "hamming")] == [
            True, True, False, False,
        ]  # fmt: skip

    def test_what_separates_training_images_by_chance_does_not_carry_over(self, world: World) -> None:
        detector = BitVector("logistic", "all")
        detector.fit(world.traces(world.clean(100, 1), ALL, fit=True), world.traces(world.clean(100, 2), ALL))
        a, b = (detector.score(world.traces(world.clean(300, s), ALL)) for s in (3, 4))
        # One standard error of the difference of the mean scores is their deviation times sqrt(2 / 300).
        assert abs(float((a - b).mean())) < 4 * float(torch.cat([a, b]).std()) * (2 / 300) ** 0.5


class TestBernoulli:
    @pytest.mark.usefixtures("in_small_blocks")
    def test_is_the_mean_log_likelihood_per_unit_of_the_predicted_class(self, world: World) -> None:
        clean, held_out = world.clean(150, 1), world.perturbed(30, 2)
        # No fit image of class 3 is classified correctly.
        clean = clean.take(clean.labels != 3)
        needs = (Need("bits", "last:2"),)
        detector = BitVector("bernoulli", "last:2", smoothing=2.5).fit(world.traces(clean, needs, fit=True))
        found = detector.score(world.traces(held_out, needs)).numpy()
        right = (clean.labels == clean.logits.argmax(1)).numpy()
        expected = np.zeros(30)
        for tap in ("block.relu", "dense"):
            train, test = bits_of(clean, [tap])[right], bits_of(held_out, [tap])
            prior = (train.sum(0) + 0.5) / (len(train) + 1)
            for i, predicted in enumerate(held_out.logits.argmax(1).tolist()):
                own = train[clean.labels.numpy()[right] == predicted]
                chance = (own.sum(0) + 2.5 * prior) / (len(own) + 2.5)
                expected[i] -= bernoulli.logpmf(test[i].astype(int), chance).mean() / 2
        np.testing.assert_allclose(found, expected, rtol=1e-4)

    def test_needs_no_perturbed_images(self, world: World) -> None:
        traces = world.traces(world.clean(40, 1), ALL, fit=True)
        with_them = BitVector("bernoulli", "all").fit(traces, world.traces(world.perturbed(40, 2), ALL))
        without = BitVector("bernoulli", "all").fit(traces)
        assert torch.equal(with_them.score(traces), without.score(traces))


class TestHamming:
    def test_is_the_nearest_pattern_of_the_predicted_class(self, world: World) -> None:
        clean, held_out = world.clean(120, 1), world.perturbed(40, 2)
        clean = clean.take(clean.labels != 3)
        detector = BitVector("hamming", "all", patterns=0).fit(world.traces(clean, ALL, fit=True))
        found = detector.score(world.traces(held_out, ALL)).numpy()
        right = (clean.labels == clean.logits.argmax(1)).numpy()
        labels = clean.labels.numpy()[right]
        for i, predicted in enumerate(held_out.logits.argmax(1).tolist()):
            total = np.zeros(1)
            for tap in ("conv", "block.relu", "dense"):
                train, test = bits_of(clean, [tap])[right], bits_of(held_out, [tap])[i]
                # Class 3 has no pattern and is compared with all.
                own = train[labels == predicted] if predicted != 3 else train
                total = total + (own != test).mean(1) / 3
            assert found[i] == pytest.approx(total.min(), abs=1e-6)

    def test_stored_images_have_distance_zero(self, world: World) -> None:
        clean = world.clean(60, 1, wrong=0)
        detector = BitVector("hamming", "all", patterns=0).fit(world.traces(clean, ALL, fit=True))
        assert float(detector.score(world.traces(clean, ALL)).abs().max()) == 0

    def test_keeps_a_seeded_draw_of_the_patterns_of_each_class(self, world: World) -> None:
        clean = world.clean(200, 1)
        groups = class_groups(world.traces(clean, ALL, fit=True))
        kept = [
            BitVector("hamming", "all", patterns=5).fit(world.traces(clean, ALL, fit=True, seed=s)).fitted
            for s in (0, 0, 1)
        ]
        assert torch.bincount(kept[0]["groups"]).tolist() == [5] * 5
        assert int((groups >= 0).sum()) > 25
        assert torch.equal(kept[0]["packed"][0], kept[1]["packed"][0])
        assert not torch.equal(kept[0]["packed"][0], kept[2]["packed"][0])


@pytest.mark.parametrize("keep", [0, 1 << 20])
@pytest.mark.parametrize("taps", [("conv", "block.relu"), ("conv", "block.relu", "dense"), ("dense",)])
def test_blocks_hold_the_bits_side_by_side(
    world: World, monkeypatch: pytest.MonkeyPatch, keep: int, taps: tuple[str, ...]
) -> None:
    monkeypatch.setattr(bitblocks, "_BLOCK", 300)
    monkeypatch.setattr(bitblocks, "_KEEP", keep)
    sample = world.clean(43, 1)
    blocks = BitBlocks(world.traces(sample, ALL), taps)
    for _ in range(2):
        read = [block.clone() for block in blocks]
        assert len(read) > 1
        np.testing.assert_array_equal(torch.cat(read).numpy(), bits_of(sample, list(taps)))


@pytest.mark.parametrize("method", ["logistic", "svm", "bernoulli", "hamming"])
def test_no_more_than_a_block_is_read_at_once(world: World, method: Any) -> None:
    """Fit sets may be larger than memory."""
    sizes: list[int] = []

    class Watched:
        def __init__(self, rows: Rows) -> None:
            self.rows, self.shape = rows, rows.shape

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, part: slice) -> torch.Tensor:
            found = self.rows[part]
            sizes.append(len(found))
            return found

    traces = []
    for sample in (world.clean(2500, 1), world.perturbed(2500, 2)):
        made = world.traces(sample, ALL, fit=True)
        watched = {"bits": {tap: Watched(rows) for tap, rows in made.codes["bits"].items()}}
        traces.append(type(made)(made.logits_rows, made.taps, watched, ALL, {}, {}, made.label_rows, made.random))
    detector = BitVector(method, "all", regularisation=1.0, patterns=3).fit(*traces)
    detector.score(traces[0])
    assert sizes and max(sizes) <= 1024
