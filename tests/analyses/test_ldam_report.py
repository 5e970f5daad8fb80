"""How sure LDAM is over targets, and when it says what of tests: simulations and planted readings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from aftershock.analyses.findings import Claim
from aftershock.analyses.ldam.attacked import CLEAN, DISCRIMINATOR, NOISE
from aftershock.analyses.ldam.averaging import TESTED
from aftershock.analyses.ldam.energy import Target
from aftershock.analyses.ldam.measured import RANDOM, REFERENCE, Averaging, Group, Kind, Reading, Sampled
from aftershock.analyses.ldam.measures import Array, diversity
from aftershock.analyses.ldam.report.text import attack_claims, averaging_claim
from aftershock.harness.statistics.intervals import Estimate, student

TARGETS = tuple(Target(f"logit:{i}", "logit", i) for i in range(3))
NOTHING = torch.empty(0)


def planted(
    values: Sequence[Array], measure: str = "distance_ratio", setting: str = "a", kind: Kind = "langevin"
) -> Sampled:
    """Samples of one setting whose chains have these values, (chains,) by target."""
    groups = {}
    for target, found in zip(TARGETS, values, strict=True):
        groups[target.name, setting] = Group(
            target, setting, kind, 0.0, NOTHING, {measure: student(found)}, {measure: found}
        )
    return Sampled(TARGETS, [setting], groups)


def test_the_same_images_for_every_target_are_not_more_of_them() -> None:
    values = np.random.default_rng(0).normal(2, 0.5, 6)
    found = planted([values] * 3, setting=REFERENCE, kind="reference").over(REFERENCE, "distance_ratio")
    alone = student(values)
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, alone.low, alone.high))


def test_other_images_for_every_target_are() -> None:
    values = [np.random.default_rng(i).normal(2, 0.5, 30) for i in range(3)]
    found = planted(values, setting=RANDOM, kind="data").over(RANDOM, "distance_ratio")
    errors = [student(v).high - v.mean() for v in values]
    assert found.high - found.value == pytest.approx(math.sqrt(sum(e**2 for e in errors)) / 3)


@pytest.mark.parametrize("shared", [0.0, 1.0])
def test_intervals_over_targets_cover_whether_starts_matter_or_not(shared: float) -> None:
    draws, hits, changes = np.random.default_rng(1), 0, 0
    for _ in range(400):
        # What a start does to all targets, other for either setting.
        sides = []
        for setting in ("a", "b"):
            start = shared * draws.normal(size=6)
            sides.append(planted([start + 0.5 * draws.normal(size=6) for _ in TARGETS], setting=setting))
        one, other = sides
        one = replace(one, groups={**one.groups, **other.groups})
        found, change = one.over("a", "distance_ratio"), one.change("a", "b", "distance_ratio")
        # The measure may not be below 0, so its upper end alone is looked at twice.
        hits += found.high >= 0 and student(-_mean(one, "a")).high >= 0
        changes += change.low <= 0 <= change.high
    assert 0.92 <= hits / 400 <= 0.98
    assert 0.92 <= changes / 400 <= 0.98


def _mean(study: Sampled, setting: str) -> Array:
    values = [study.groups[t.name, setting].chain_values["distance_ratio"] for t in TARGETS]
    return np.asarray(np.mean(values, 0))


@pytest.mark.parametrize("kind", ["langevin", "data"])
def test_intervals_of_shares_are_clamped_at_the_very_end(kind: Kind) -> None:
    values = np.array([1, 1, 1, 1, 1, 0.4])
    study = planted([values] * 3, "realism", kind=kind)
    raw = student(values)
    assert raw.high > 1
    found = study.over("a", "realism")
    assert found.high == 1
    # Three equal groups: the error that was there before the clamp, over sqrt(3) for independent ones.
    reach = (raw.high - raw.value) / (math.sqrt(3) if kind == "data" else 1)
    assert found.low == pytest.approx(raw.value - reach)


def test_diversities_over_targets_share_their_chains() -> None:
    points = torch.tensor([0.0, 1.0, 4.0])
    apart = (points[:, None] - points[None]).abs()
    study = planted([np.zeros(3)] * 3)
    for group in study.groups.values():
        group.pair_values["diversity_pixels"] = apart
        group.measures["diversity_pixels"] = diversity(apart)
    found, alone = study.over("a", "diversity_pixels"), diversity(apart)
    assert alone.low < 0
    assert (found.value, found.low, found.high) == pytest.approx((alone.value, 0.0, alone.high))


def compared(p_values: dict[tuple[float, str], float | None]) -> Claim:
    one = Estimate(0.5, 0.4, 0.6)
    accuracy = dict.fromkeys(("last", "average", "before"), one)
    return averaging_claim(Averaging(10, 0.1, accuracy, one, {}, dict.fromkeys(p_values, one), p_values))


def test_averaging_speaks_of_what_is_left_after_correction() -> None:
    family: dict[tuple[float, str], float | None] = {(w, m): 0.06 for w in (0.0, 30.0) for m in TESTED}
    assert compared(family).verdict == "no difference"
    found = compared({**family, (30.0, "activation_sd"): 0.01})
    assert found.verdict == "different"
    tested = {name: ends for name, ends in found.estimates.items() if "at weight" in name}
    assert tested == {"activation at weight 30": (0.5, 0.4, 0.6)}


@pytest.mark.parametrize(
    ("clean", "noise", "words"),
    [
        ((0.4, 0.7), (0.4, 0.7), "do not tell whether the discriminator detects"),
        ((0.45, 0.55), (0.45, 0.55), "does not detect the attack"),
        ((0.8, 0.9), (0.7, 0.8), "detects the attack beyond its size"),
        ((0.8, 0.9), (0.45, 0.55), "no better than noise of the same size"),
        ((0.8, 0.9), (0.4, 0.7), "whether more than noise of the same size"),
        ((0.8, 0.9), None, "whether more than noise of the same size"),
        ((0.2, 0.4), (0.4, 0.6), "more real than clean images"),
    ],
)
def test_verdicts_on_attacks(clean: tuple[float, float], noise: tuple[float, float] | None, words: str) -> None:
    attacks = []
    for against, ends in ((CLEAN, clean), (NOISE, noise)):
        area = Estimate(sum(ends) / 2, *ends) if ends else Estimate(math.nan)
        reason = "" if ends else "3 images with noise of the same size, 30 are needed"
        attacks.append(Reading("pgd", DISCRIMINATOR, against, area, 40, 40, reason))
    (claim,) = attack_claims(Sampled(TARGETS, asked_attacks=1, attacks=attacks))
    assert words in claim.verdict
    assert len(claim.estimates) == (2 if noise else 1)
    assert "nan" not in claim.sentence
