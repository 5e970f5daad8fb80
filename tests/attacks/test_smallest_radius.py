"""The smallest perturbation that fools a linear model and passes a linear detector is known by duality."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.attacks.adaptive.pixels import Ball
from aftershock.attacks.adaptive.rehearsal import Informed
from aftershock.attacks.adaptive.smallest_radius import Known, NoDetector, SmallestRadius
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.base.target import Observation
from numpy.typing import NDArray
from scipy.optimize import linprog, minimize
from support.attack_cases import LinearCase
from support.linear_detector import LinearDetector
from torch import Tensor, nn

FloatArray = NDArray[np.float64]


def smallest(
    images: Tensor, leads: Tensor, inward: Tensor, score: Tensor, vector: Tensor, threshold: float, norm: Ball
) -> FloatArray:
    """Return the least |d| with x + d in [0, 1], margin lead - inward·d <= 0 and score + v·d <= threshold, (n,)."""
    found = []
    for x, lead, w, s in zip(images.flatten(1).double(), leads.double(), inward.double(), score.double(), strict=True):
        v, n = vector.double().numpy(), len(x)
        rows = np.stack([-w.numpy(), v])
        limits = np.array([-float(lead), threshold - float(s)])
        low, high = -x.numpy(), 1 - x.numpy()
        if norm == "linf":
            ones = np.ones((n, 1))
            most = linprog(
                np.append(np.zeros(n), 1.0),
                A_ub=np.block([[np.eye(n), -ones], [-np.eye(n), -ones], [rows, np.zeros((2, 1))]]),
                b_ub=np.concatenate([np.zeros(2 * n), limits]),
                bounds=[*zip(low, high, strict=True), (0, None)],
            )  # fmt: skip
            found.append(most.fun if most.success else np.inf)
            continue
        inside = {"type": "ineq", "fun": partial(_room, rows, limits), "jac": lambda _, rows=rows: -rows}
        most = minimize(
            lambda d: d @ d, np.zeros(n), jac=lambda d: 2 * d, bounds=list(zip(low, high, strict=True)), method="SLSQP",
            constraints=inside, options={"ftol": 1e-12, "maxiter": 500},
        )  # fmt: skip
        found.append(np.sqrt(most.fun) if most.success else np.inf)
    return np.array(found)


def _room(rows: FloatArray, limits: FloatArray, moved: FloatArray) -> FloatArray:
    return limits - rows @ moved


def planted(linear: LinearCase, surrogate: bool = True) -> LinearDetector:
    """A detector that rises with the margin, so that the attack has to go around it."""
    draw, weight = torch.Generator().manual_seed(1), linear.model.weight.detach()
    noise = torch.nn.functional.normalize(torch.randn(weight.shape, generator=draw), dim=0)
    detector = LinearDetector(weight + 0.4 * weight.norm() * noise, 0.0, linear.images, linear.labels, surrogate)
    scores = detector.score(linear.images).double()
    detector.threshold, detector.target_score = float(scores.quantile(0.4)), float(scores.quantile(0.2))
    detector.scale = detector.threshold - detector.target_score
    return detector


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_both_radii_are_those_of_a_linear_model_with_a_linear_detector(linear: LinearCase, norm: Ball) -> None:
    detector, count = planted(linear), 24
    images, labels = linear.images[:count], linear.labels[:count]
    # What raises the margin of the wrong class.
    inward = torch.where(labels == 1, -1.0, 1.0)[:, None] * linear.model.weight.detach()
    with torch.no_grad():
        leads, scores = linear.margins[:count], detector.score(images)
    reach = 1.0 if norm == "linf" else 20.0
    nothing = smallest(images, leads, inward, torch.zeros(count), torch.zeros_like(detector.weight), 1.0, norm)
    both = smallest(images, leads, inward, scores, detector.weight, detector.threshold, norm)
    alone = perturb_batch(
        SmallestRadius(reach, norm), linear.model, images, labels, range(count), 0, target=NoDetector()
    )
    r0 = alone.norms[norm].double().numpy()
    assert (r0 >= nothing * (1 - 1e-4)).all()
    np.testing.assert_allclose(r0, nothing, rtol=0.02)
    known = {i: Known(alone.images[i][None], float(r0[i])) for i in range(count)}
    made = perturb_batch(
        SmallestRadius(reach, norm, known=known), linear.model, images, labels, range(count), 0, target=detector
    )
    rd = made.norms[norm].double().numpy()
    assert (rd >= both * (1 - 1e-4)).all()
    # The detector costs an attacker something.
    assert (both > 1.2 * nothing).mean() > 0.25
    np.testing.assert_allclose(rd, both, rtol=0.03)
    assert (rd <= 1.02 * both).mean() > 0.95


@dataclass(eq=False)
class Transformed(LinearDetector):
    """The same decisions by another score: what passes has 0, which is the threshold; what does not has 1."""

    limit: float = 0.0

    def query(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        logits, score = super().query(model, images)
        return logits, (score > self.limit).double()

    def observe(self, *args: Any, **kwargs: Any) -> Observation:
        found = super().observe(*args, **kwargs)
        return replace(found, score=lambda wanted: (found.score(wanted) > self.limit).double())


@pytest.mark.parametrize("scale", [1.0, 1e30, math.inf])
def test_the_same_decisions_by_scores_on_the_threshold_cost_the_same(linear: LinearCase, scale: float) -> None:
    detector, count = planted(linear), 8
    images, labels = linear.images[:count], linear.labels[:count]
    attack = partial(SmallestRadius, 1.0, "linf", 10)
    exact = perturb_batch(attack(), linear.model, images, labels, range(count), 0, target=detector)
    assert any(exact.credits)
    steps = Transformed(detector.weight, 0.0, images, labels, limit=detector.threshold, target_score=0.0, scale=scale)
    known = {i: Known(exact.images[i][None]) for i in range(count)}
    made = perturb_batch(attack(known=known), linear.model, images, labels, range(count), 0, target=steps)
    assert [bool(part) for part in made.credits] == [bool(part) for part in exact.credits]
    assert (made.norms["linf"] <= exact.norms["linf"] * (1 + 1e-6)).all()


@dataclass(eq=False)
class Misleading(LinearDetector):
    """Its surrogate has the wrong sign."""

    def observe(self, *args: Any, **kwargs: Any) -> Observation:
        found = super().observe(*args, **kwargs)
        return found if found.suspicion is None else replace(found, suspicion=-found.suspicion)


def test_a_surrogate_that_misleads_is_not_followed_where_a_rehearsal_knows_better(linear: LinearCase) -> None:
    detector, count = planted(linear), 16
    images, labels, radii = linear.images[:count], linear.labels[:count], []
    misleading = Misleading(**vars(detector))
    learned = Informed(misleading, {"nearest": lambda found: found.features["pixels"] @ detector.weight})
    for target, follows in ((detector, {}), (learned, {"own": -1.0}), (misleading, {"own": -1.0})):
        search = SmallestRadius(1.0, "linf", 30, follows=follows)
        made = perturb_batch(search, linear.model, images, labels, range(count), 0, target=target)
        credited = torch.tensor([bool(part) for part in made.credits])
        radii.append(torch.where(credited, made.norms["linf"], torch.inf))
    exact, known, misled = radii
    assert (known <= 1.05 * exact).float().mean() > 0.9
    # Without anything better there is only what misleads.
    assert (misled > 1.1 * exact).float().mean() > 0.2
