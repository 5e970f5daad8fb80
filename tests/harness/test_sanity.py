"""Each sanity flag with a planted case that raises it and one that does not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from aftershock.harness.evaluation.results import DetectorResult, PerturbationResult, Threat
from aftershock.harness.evaluation.sanity import Got, adaptive_flags, beats, fooled_within, perturbation_flags

N = 200


def attack(label: str, turned: float, eps: float = 0.1, **more: Any) -> PerturbationResult:
    """An attack that turns the first ``turned`` share of the images, with a measured norm of ``eps``."""
    success = np.arange(N) < turned * N
    given = {"kind": "attack", "family": "x", "library": "aftershock", "norm": "linf", "box": "white", **more}
    return PerturbationResult(
        label=label, eps=eps, index=np.arange(N), prediction=success.astype(int), success=success,
        norms={"linf": np.full(N, eps)}, **given,
    )  # fmt: skip


def test_success_that_falls_when_the_budget_grows_is_flagged_and_noise_is_not() -> None:
    small = attack("a[1]", 0.6, 0.1, group="a")
    falls, wobbles, grows = (attack("a[2]", share, 0.2, group="a") for share in (0.4, 0.595, 0.8))
    assert "weaker-than-smaller-budget:a[1]" in perturbation_flags([small, falls])["a[2]"]
    for fine in (wobbles, grows):
        assert not any("smaller-budget" in f for f in perturbation_flags([small, fine])["a[2]"])
    # Attacks of other groups, or against other detectors, are no curve.
    other = replace(falls, group="b")
    assert not any("smaller-budget" in f for f in perturbation_flags([small, other])["a[2]"])


def test_a_curve_that_ends_below_100_percent_is_flagged_at_its_last_point() -> None:
    found = perturbation_flags([attack("a[1]", 0.6, 0.1, group="a"), attack("a[2]", 0.9, 0.2, group="a")])
    assert "below-100-at-largest-budget" in found["a[2]"] and "below-100-at-largest-budget" not in found["a[1]"]
    whole = perturbation_flags([attack("a[1]", 0.6, 0.1, group="a"), attack("a[2]", 1.0, 0.2, group="a")])
    assert whole["a[2]"] == ()
    assert perturbation_flags([attack("single", 0.5, group="a")])["single"] == ()


def test_one_step_that_beats_many_is_flagged() -> None:
    fgsm, weak, strong = attack("fgsm", 0.5, one_step=True), attack("weak", 0.3), attack("strong", 0.9)
    assert "weaker-than-one-step:fgsm" in perturbation_flags([fgsm, weak])["weak"]
    assert perturbation_flags([fgsm, strong])["strong"] == ()
    # A one-step attack with a larger budget proves nothing.
    assert perturbation_flags([attack("fgsm", 0.5, 0.2, one_step=True), weak])["weak"] == ()


def test_a_black_box_that_beats_gradients_within_their_budget_is_flagged() -> None:
    pgd, square = attack("pgd", 0.2), attack("square", 0.6, box="black")
    assert "weaker-than-black-box:square" in perturbation_flags([pgd, square])["pgd"]
    assert perturbation_flags([attack("pgd", 0.8), square])["pgd"] == ()
    # A minimising black box counts by what it measured, and these perturbations are too large.
    far = replace(square, eps=None, norms={"linf": np.full(N, 0.5)})
    assert perturbation_flags([pgd, far])["pgd"] == ()


def test_an_attack_that_still_turns_images_at_its_end_is_unconverged() -> None:
    assert "unconverged" in perturbation_flags([attack("a", 0.6, late=10)])["a"]
    assert perturbation_flags([attack("a", 0.6, late=3)])["a"] == ()


def detector(**perturbed: np.ndarray) -> DetectorResult:
    return DetectorResult("d", calibrate=np.linspace(0, 1, 400), clean=np.linspace(0, 1, N), perturbed=perturbed)


def test_an_adaptive_attack_that_knows_less_than_an_oblivious_one_is_flagged() -> None:
    pgd, knows = attack("pgd", 1.0), attack("knows", 1.0, kind="adaptive", against="d")
    passes, caught = np.zeros(N), np.full(N, 2.0)
    assert adaptive_flags(detector(pgd=passes, knows=caught), [pgd, knows]) == ("adaptive-weaker-than:pgd",)
    assert adaptive_flags(detector(pgd=caught, knows=passes), [pgd, knows]) == ()
    # An oblivious attack with a larger budget proves nothing.
    far = attack("far", 1.0, 0.5)
    assert adaptive_flags(detector(far=passes, knows=caught), [far, knows]) == ()
    # Two adaptive attacks count together.
    half = np.where(np.arange(N) < N / 2, 0.0, 2.0)
    also = attack("also", 1.0, kind="adaptive", against="d")
    assert adaptive_flags(detector(pgd=passes, knows=half, also=2.0 - half), [pgd, knows, also]) == ()


def part(p: PerturbationResult, count: int) -> PerturbationResult:
    """The same attack on the first images only."""
    return replace(
        p, index=p.index[:count], prediction=p.prediction[:count], success=p.success[:count],
        norms={"linf": np.asarray(p.norms["linf"])[:count]},
    )  # fmt: skip


def test_nothing_is_flagged_from_fewer_than_30_images() -> None:
    fgsm, weak = attack("fgsm", 1.0, one_step=True), attack("weak", 0.0, late=10)
    assert perturbation_flags([part(fgsm, 29), part(weak, 29)]) == {}
    found = perturbation_flags([part(fgsm, 30), part(weak, 30)])
    assert found == {"fgsm": (), "weak": ("unconverged", "weaker-than-one-step:fgsm")}
    # Compared are the images that both attacked, and these must be enough.
    assert "weaker-than-one-step:fgsm" not in perturbation_flags([part(fgsm, 29), weak])["weak"]
    passes, caught = np.zeros(29), np.full(29, 2.0)
    pgd, knows = part(attack("pgd", 1.0), 29), part(attack("knows", 1.0, kind="adaptive", against="d"), 29)
    assert adaptive_flags(detector(pgd=passes, knows=caught), [pgd, knows]) == ()


def test_late_images_count_from_two_percent_and_five_on() -> None:
    def late(count: int, images: int) -> bool:
        return "unconverged" in perturbation_flags([part(attack("a", 0.6, late=count), images)])["a"]

    assert not late(4, 40) and late(5, 40)
    many = 400
    success = np.arange(many) < 200
    large = replace(
        attack("a", 0.6), index=np.arange(many), prediction=success * 1, success=success,
        norms={"linf": np.full(many, 0.1)}, late=7,
    )  # fmt: skip
    assert perturbation_flags([large])["a"] == ()
    assert perturbation_flags([replace(large, late=8)])["a"] == ("unconverged",)


def test_attacks_are_compared_image_by_image() -> None:
    """Equal shares of other images prove nothing; a small share of the same ones does."""
    index = np.arange(N)
    one, other = (Got(index, index % 2 == r) for r in (0, 1))
    assert not beats(one, other) and not beats(other, one)
    base = index < 100
    # Five more and none fewer: 2**-5 is below 5 %; four more: it is not.
    for more, better in ((4, False), (5, True)):
        assert beats(Got(index, base | (index >= N - more)), Got(index, base)) is better
    # Seven more and two fewer are chance.
    mixed = (base & (index >= 2)) | (index >= N - 7)
    assert not beats(Got(index, mixed), Got(index, base))
    assert not beats(Got(index[:100], ~base[:100]), Got(index[100:], base[100:]))


def test_what_several_attacks_fool_together() -> None:
    first, second = part(attack("a", 0.1), 100), attack("b", 0.05, 0.3)
    got = fooled_within([first, second], Threat("linf", 0.1))
    # The second one attacked more images and fooled them beyond the threat.
    assert np.array_equal(got.index, np.arange(N)) and got.got.sum() == 20
    assert fooled_within([first, second], Threat("linf", 0.3)).got.sum() == 20
    assert len(fooled_within([], Threat("linf", 0.1)).index) == 0
