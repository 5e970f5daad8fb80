"""False alarms of a linear model and a linear detector: the smallest change that is flagged is a linear programme."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from aftershock.attacks.adaptive.false_alarm import FalseAlarm
from aftershock.attacks.adaptive.features import described
from aftershock.attacks.adaptive.pixels import Ball
from aftershock.attacks.adaptive.rehearsal import Informed
from aftershock.attacks.adaptive.stand_ins import Student
from aftershock.attacks.adaptive.worst_case import WorstCase
from aftershock.attacks.base.perturb_batch import PerturbedBatch, perturb_batch
from aftershock.attacks.base.target import TargetDetector
from aftershock.attacks.base.watched_model import Limits
from scipy.optimize import linprog
from support.attack_cases import LinearCase
from support.linear_detector import LinearDetector
from torch import Tensor

Radius = Callable[[np.ndarray, np.ndarray, float, float], float]


def in_linf(w: np.ndarray, v: np.ndarray, lead: float, missing: float) -> float:
    """The smallest |d| with v·d >= missing and w·d >= -lead."""
    d = len(w)
    box = np.c_[np.vstack([np.eye(d), -np.eye(d)]), -np.ones(2 * d)]
    rows, limits = np.vstack([np.r_[-v, 0], np.r_[-w, 0], box]), np.r_[-missing, lead, np.zeros(2 * d)]
    bounds = [(None, None)] * d + [(0, None)]
    return float(linprog(np.r_[np.zeros(d), 1], A_ub=rows, b_ub=limits, bounds=bounds).fun)


def in_l2(w: np.ndarray, v: np.ndarray, lead: float, missing: float) -> float:
    """The same in L2: the nearest point of one half-space, or of the edge of both."""
    change = missing / (v @ v) * v
    if w @ change < -lead:
        both = np.array([[v @ v, v @ w], [v @ w, w @ w]])
        a, b = np.linalg.solve(both, [missing, -lead])
        change = a * v + b * w
    return float(np.linalg.norm(change))


def beside(linear: LinearCase, share: float) -> LinearDetector:
    """A detector whose score rises where the logit falls, and by so much elsewhere."""
    weight = linear.model.weight.detach()
    noise = torch.nn.functional.normalize(torch.randn(48, generator=torch.Generator().manual_seed(1)), dim=0)
    made = LinearDetector(-weight + share * weight.norm() * noise, 0.0, linear.images, linear.labels)
    scores = made.score(linear.images).double()
    made.threshold, made.target_score = float(scores.quantile(0.7)), float(scores.quantile(0.3))
    made.scale = made.threshold - made.target_score
    return made


@pytest.fixture
def detector(linear: LinearCase) -> LinearDetector:
    return beside(linear, 2.0)


def smallest(linear: LinearCase, detector: LinearDetector, rows: Tensor, radius: Radius) -> np.ndarray:
    w, v = linear.model.weight.detach().double().numpy(), detector.weight.double().numpy()
    signs = torch.where(linear.labels == 1, 1.0, -1.0)
    scores = detector.score(linear.images).double()
    return np.array(
        [radius(float(signs[i]) * w, v, float(linear.margins[i]), detector.threshold - float(scores[i])) for i in rows]
    )


def searched(
    linear: LinearCase, detector: LinearDetector, rows: Tensor, attack: FalseAlarm,
    target: TargetDetector | None = None, batch_size: int | None = None,
) -> tuple[np.ndarray, PerturbedBatch]:  # fmt: skip
    """The measured radius of what was found, infinite where nothing is flagged with the prediction kept."""
    images, labels = linear.images[rows], linear.labels[rows]
    made = perturb_batch(attack, linear.model, images, labels, rows.tolist(), 0, batch_size, target or detector)
    flagged = ~made.success & (detector.score(made.images) > detector.threshold)
    return np.where(flagged, made.norms[attack.ball], np.inf), made


def passing(linear: LinearCase, detector: LinearDetector, count: int = 60) -> Tensor:
    return (detector.score(linear.images) <= detector.threshold).nonzero().squeeze(1)[:count]


@pytest.mark.parametrize("share", [0.4, 2.0])
@pytest.mark.parametrize(("norm", "radius"), [("linf", in_linf), ("l2", in_l2)])
def test_the_radius_is_that_of_the_linear_programme(
    linear: LinearCase, norm: Ball, radius: Radius, share: float
) -> None:
    detector = beside(linear, share)
    rows = passing(linear, detector)
    known = smallest(linear, detector, rows, radius)
    eps = float(np.quantile(known, 0.85))
    found, _ = searched(linear, detector, rows, FalseAlarm(eps, steps=25, queries=25, norm=norm))
    assert not (found < known * (1 - 1e-3)).any()
    within = known < 0.97 * eps
    assert (found[within] <= 1.04 * known[within]).all() and not np.isfinite(found[known > eps * 1.001]).any()


@pytest.fixture(scope="module")
def student(linear: LinearCase) -> Student:
    """What is learned of the scores of noisy images."""
    known = beside(linear, 2.0)
    noise = torch.rand(5, *linear.images.shape, generator=torch.Generator().manual_seed(2)) - 0.5
    images = (linear.images + 0.2 * noise).flatten(0, 1)
    with torch.no_grad():
        vectors = described(known.observe(linear.model, images))
    return Student.taught(vectors, known.score(images), known.target_score, known.scale, seed=0)


def test_without_a_surrogate_the_student_leads_there(
    linear: LinearCase, detector: LinearDetector, student: Student
) -> None:
    rows = passing(linear, detector)
    known = smallest(linear, detector, rows, in_linf)
    eps = float(np.quantile(known, 0.85))
    detector.has_surrogate = False
    target = Informed(detector, {"student": student})
    attack = FalseAlarm.beside(WorstCase(eps, steps=50, queries=100, restarts=2), target, {})
    assert attack.sources == ("student", "boundary")
    found, _ = searched(linear, detector, rows, attack, target)
    assert np.median(found / known) < 1.1 and np.isfinite(found[known < 0.7 * eps]).mean() > 0.9


class Silent(LinearDetector):
    """Has a surrogate that does not rise."""

    def observe(self, *given: object, **more: object):  # type: ignore[no-untyped-def]
        found = super().observe(*given, **more)  # type: ignore[arg-type]
        return type(found)(found.logits, 0 * found.logits.sum(1), found.score, found.features)


def test_a_surrogate_that_does_not_rise_hides_nothing(
    linear: LinearCase, detector: LinearDetector, student: Student
) -> None:
    rows = passing(linear, detector)
    eps = 2 * float(np.quantile(smallest(linear, detector, rows, in_linf), 0.85))
    # As if the rehearsal had believed it.
    target = Informed(Silent(**vars(detector)), {"student": student})
    attack = FalseAlarm.beside(WorstCase(eps), target, {"own": 1.0})
    assert attack.sources == ("own", "student")
    found, _ = searched(linear, detector, rows, attack, target)
    assert np.isfinite(found).mean() > 0.8


def test_a_surrogate_that_does_not_follow_is_not_used(linear: LinearCase, detector: LinearDetector) -> None:
    target = Informed(detector, {"student": lambda seen: seen.logits.sum(1)})
    assert FalseAlarm.beside(WorstCase(0.1), target, {"own": 0.3}).sources == ("student", "boundary")
    assert FalseAlarm.beside(WorstCase(0.1), target, {}).sources == ("own", "student")


def test_a_constant_detector_is_not_made_to_flag(linear: LinearCase, detector: LinearDetector) -> None:
    detector.weight = torch.zeros_like(detector.weight)
    detector.threshold, detector.target_score, detector.scale = 0.0, 0.0, 1.0
    rows = torch.arange(20)
    found, made = searched(linear, detector, rows, FalseAlarm(0.2, steps=5, queries=5))
    assert not np.isfinite(found).any()
    assert torch.equal(made.images, linear.images[rows])


def test_images_are_searched_one_by_one(linear: LinearCase, detector: LinearDetector) -> None:
    rows, attack = passing(linear, detector, 20), FalseAlarm(0.05, steps=8, queries=8)
    whole, _ = searched(linear, detector, rows, attack)
    parts, _ = searched(linear, detector, rows, attack, batch_size=7)
    assert np.isfinite(whole).any()
    np.testing.assert_allclose(whole, parts, rtol=0.02)


def test_what_was_found_before_a_limit_counts(linear: LinearCase, detector: LinearDetector) -> None:
    rows = passing(linear, detector, 20)
    eps = 3 * float(np.median(smallest(linear, detector, rows, in_linf)))
    made = perturb_batch(
        FalseAlarm(eps, steps=50), linear.model, linear.images[rows], linear.labels[rows], rows.tolist(), 0,
        target=detector, limits=Limits(forwards=20),
    )  # fmt: skip
    assert "limit" in made.flags
    assert (~made.success & (detector.score(made.images) > detector.threshold)).float().mean() > 0.5
