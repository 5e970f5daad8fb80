"""Votes of discriminating bits and margin-weighted distances, against plain loops and planted cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from aftershock.detectors.bits.bitvector import BitVector
from aftershock.harness.core.errors import UsageError
from aftershock.harness.tracing.traces import Need
from scipy.stats import norm
from sklearn.metrics import roc_auc_score
from support.activations import Sample, World

ALL = (Need("bits", "all"),)
TAPS = ("conv", "block.relu", "dense")


def bits_of(sample: Sample, taps: tuple[str, ...] = TAPS) -> np.ndarray:
    return np.concatenate([(sample.before[t] > 0).numpy() for t in taps], 1)


def auroc(negative: torch.Tensor, positive: torch.Tensor) -> float:
    return float(roc_auc_score([0] * len(negative) + [1] * len(positive), torch.cat([negative, positive])))


def frequencies(bits: np.ndarray, groups: np.ndarray, value: int, smoothing: float) -> np.ndarray:
    right = bits[groups >= 0]
    prior = (right.sum(0) + 0.5) / (len(right) + 1)
    own = bits[groups == value]
    return np.asarray((own.sum(0) + smoothing * prior) / (len(own) + smoothing))


class TestVotes:
    @pytest.mark.parametrize("weights", ["equal", "margin"])
    @pytest.mark.parametrize("by_class", [False, True])
    def test_is_the_share_of_votes(self, world: World, weights: Any, by_class: bool) -> None:
        clean, perturbed, held_out = world.clean(160, 1), world.perturbed(90, 2), world.clean(40, 3)
        # Nothing was perturbed into class 3: its bits are those of all classes.
        perturbed = perturbed.take(perturbed.logits.argmax(1) != 3)
        detector = BitVector("votes", "all", weights=weights, voters=25, by_class=by_class, smoothing=3.0)
        detector.fit(world.traces(clean, ALL, fit=True), world.traces(perturbed, ALL))
        found = detector.score(world.traces(held_out, ALL)).numpy()
        labels = clean.labels.numpy()
        before = np.where(clean.logits.argmax(1).numpy() == labels, labels, -1)
        after = perturbed.logits.argmax(1).numpy()
        for i, predicted in enumerate(held_out.logits.argmax(1).tolist()):
            if by_class:
                p = frequencies(bits_of(clean), before, predicted, 3.0)
                q = frequencies(bits_of(perturbed), after, predicted, 3.0)
            else:
                p = frequencies(bits_of(clean), np.minimum(before, 0), 0, 3.0)
                q = frequencies(bits_of(perturbed), 0 * after, 0, 3.0)
            gap = q - p
            chosen = np.argsort(-np.abs(gap.astype(np.float32)), kind="stable")[:25]
            votes = np.where(gap[chosen] > 0, bits_of(held_out)[i, chosen], ~bits_of(held_out)[i, chosen])
            # At the rank where the choice ends, rounding may decide between bits of equal gaps: one vote of 25.
            weight = np.abs(gap[chosen]) if weights == "margin" else np.ones(25)
            assert found[i] == pytest.approx((weight * votes).sum() / weight.sum(), abs=1 / 25 + 1e-6)
            fitted = detector.fitted["index"][predicted if by_class else 0].numpy()
            np.testing.assert_allclose(np.abs(gap[fitted]), np.abs(gap[chosen]), atol=1e-6)

    def test_bits_that_tell_score_one_and_bits_that_do_not_score_a_half(self, world: World) -> None:
        def marked(x: torch.Tensor) -> torch.Tensor:
            return torch.cat([-x[:, :5].abs() - 0.1, x[:, 5:]], 1)

        def turned_on(x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[:, :5].abs() + 0.1, x[:, 5:]], 1)

        sides = [world.clean(200, s, wrong=0).changed("dense", marked) for s in (1, 2, 3)]
        perturbed = [world.clean(200, s, wrong=0).changed("dense", turned_on) for s in (4, 5)]
        detector = BitVector("votes", "all", voters=5)
        detector.fit(world.traces(sides[0], ALL, fit=True), world.traces(perturbed[0], ALL))
        assert sorted(detector.fitted["index"][0].tolist()) == [168, 169, 170, 171, 172]
        clean, again, attacked = (
            detector.score(world.traces(s, ALL)) for s in (sides[1], sides[2], perturbed[1])
        )  # fmt: skip
        assert auroc(clean, attacked) == 1.0
        assert bool((attacked == 1).all()) and bool((clean == 0).all())
        assert auroc(clean, again) == 0.5

    def test_chance_differences_do_not_carry_over(self, world: World) -> None:
        detector = BitVector("votes", "all", voters=30)
        detector.fit(world.traces(world.clean(100, 1), ALL, fit=True), world.traces(world.clean(100, 2), ALL))
        a, b = (detector.score(world.traces(world.clean(300, s), ALL)) for s in (3, 4))
        # The standard error of the AUROC of 300 against 300 is 0.024.
        assert abs(auroc(a, b) - 0.5) < 0.1

    def test_perturbed_images_are_required(self, world: World) -> None:
        with pytest.raises(UsageError, match="fit_on"):
            BitVector("votes", "all").fit(world.traces(world.clean(10, 1), ALL, fit=True))

    def test_no_bit_that_differs_gives_one_score_to_all(self, world: World) -> None:
        """The same images on both sides."""
        traces = world.traces(world.clean(50, 1, wrong=0), ALL, fit=True)
        for weights in ("equal", "margin"):
            detector = BitVector("votes", "all", weights=weights, voters=9).fit(traces, traces)
            assert bool(detector.score(traces).isfinite().all())


class TestMarginWeights:
    def test_is_the_nearest_pattern_when_units_weigh_by_their_margin(self, world: World) -> None:
        clean, held_out = world.clean(120, 1), world.perturbed(40, 2)
        clean = clean.take(clean.labels != 3)
        detector = BitVector("hamming", "all", patterns=0, weights="margin", smoothing=2.0)
        detector.fit(world.traces(clean, ALL, fit=True))
        found = detector.score(world.traces(held_out, ALL)).numpy()
        labels = clean.labels.numpy()
        groups = np.where(clean.logits.argmax(1).numpy() == labels, labels, -1)
        for i, predicted in enumerate(held_out.logits.argmax(1).tolist()):
            total = np.zeros(int((groups >= 0).sum()))
            for tap in TAPS:
                train, test = bits_of(clean, (tap,)), bits_of(held_out, (tap,))[i]
                margin = np.abs(norm.ppf(frequencies(train, groups, predicted, 2.0)))
                total += ((train[groups >= 0] != test) * margin).sum(1) / margin.sum() / 3
            own = groups[groups >= 0] == predicted
            # Margins are rounded to 255 steps of the layer's largest.
            assert found[i] == pytest.approx((total[own] if predicted != 3 else total).min(), rel=0.02)

    def test_coin_tosses_count_for_little(self, world: World) -> None:
        """Units of fixed sign and units at chance: a flip of the former weighs many times a flip of the latter."""
        draw = torch.Generator().manual_seed(0)

        def half_noise(x: torch.Tensor) -> torch.Tensor:
            return torch.cat([x[:, :48].abs() + 1, torch.randn(len(x), 48, generator=draw)], 1)

        clean = world.clean(400, 1, wrong=0).changed("conv", half_noise)
        needs = (Need("bits", "conv"),)
        detector = BitVector("hamming", "conv", weights="margin").fit(world.traces(clean, needs, fit=True))
        weights = detector.fitted["weights"].double()
        assert float(weights[:, 48:].mean()) < 0.1 * float(weights[:, :48].mean())
        one = clean.take(slice(0, 1))
        fixed = one.changed("conv", lambda x: torch.cat([-x[:, :10], x[:, 10:]], 1))
        noisy = one.changed("conv", lambda x: torch.cat([x[:, :48], -x[:, 48:58], x[:, 58:]], 1))
        assert float(detector.score(world.traces(one, needs))) == 0
        ratio = detector.score(world.traces(fixed, needs)) / detector.score(world.traces(noisy, needs))
        assert float(ratio) > 5


@pytest.mark.parametrize(
    "parameters", [{"weights": "linear"}, {"voters": 0}, {"voters": 1.5}, {"by_class": "yes"}], ids=str
)
def test_wrong_parameters_are_named(parameters: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(parameters))):
        BitVector("votes", **parameters)
