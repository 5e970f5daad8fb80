"""A linear model with a linear detector: which images can be brought past both is known by duality.

An attack may get no image past that stands (:mod:`support.linear_truth`), and a good one gets all others past.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from aftershock.attacks.adaptive.rehearsal import Informed, Stage, rehearse
from aftershock.attacks.adaptive.worst_case import WorstCase
from aftershock.attacks.base.perturb_batch import perturb_batch
from support.attack_cases import LinearCase
from support.linear_detector import LinearDetector
from support.linear_truth import most_gain


def room(linear: LinearCase, detector: LinearDetector, eps: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """By how much the best attack gets beyond the boundary, (n,), in units of the logit; below 0 an image stands."""
    w, v = (t.detach().double().flatten().numpy() for t in (linear.model.weight, detector.weight))
    with torch.no_grad():
        logits = linear.model(linear.images).double()
        left = (detector.threshold - detector.score(linear.images)).double().numpy()
    # The direction in which each image's margin grows.
    signs = torch.where(linear.labels == 1, -1.0, 1.0).numpy()
    leads = (logits[:, 1] - logits[:, 0]).abs().numpy()
    rows = zip(signs, leads, left, strict=True)
    return np.array([most_gain(sign * w, v, c, eps, "linf") - lead for sign, lead, c in rows])


@pytest.mark.parametrize("surrogate", [True, False])
def test_all_images_fall_that_can_fall_and_no_others(linear: LinearCase, surrogate: bool) -> None:
    draw = torch.Generator().manual_seed(1)
    weight = linear.model.weight.detach()
    # What moves the logit moves the score, too: the attack has to go around it.
    noise = torch.nn.functional.normalize(torch.randn(weight.shape, generator=draw), dim=0)
    vector = weight + 0.4 * weight.norm() * noise
    detector = LinearDetector(vector, 0.0, linear.images, linear.labels, surrogate)
    scores = detector.score(linear.images).double()
    detector.threshold, detector.target_score = float(scores.quantile(0.4)), float(scores.quantile(0.2))
    detector.scale = detector.threshold - detector.target_score
    eps = float((linear.margins / weight.abs().sum()).quantile(0.6))
    passing = scores <= detector.threshold
    known = room(linear, detector, eps)[passing.numpy()]
    images, labels = linear.images[passing], linear.labels[passing]
    attack = WorstCase(eps, steps=50, queries=100, restarts=2)
    target: Informed | LinearDetector = detector
    if not surrogate:
        learned = rehearse(attack, Stage(linear.model, detector, linear.images[:36], linear.labels[:36], 0))
        assert learned.follows["student"] > 0.9
        target = Informed(detector, learned.stand_ins, [p.part for p in learned.parts])
    made = perturb_batch(attack, linear.model, images, labels, range(len(images)), 0, target=target)
    past = (made.success & (detector.score(made.images) <= detector.threshold)).numpy()
    size = eps * float(weight.abs().sum())
    assert not past[known < -1e-4 * size].any()
    # Within a fiftieth of what the budget can do; on what was learned of the score, all but one in twenty.
    assert past[known > 0.02 * size].mean() >= (1.0 if surrogate else 0.95)
    # The detector protects images that the model alone does not.
    assert 0.2 < (known > 0).mean() < 0.8 and (known < 0).sum() > (linear.margins[passing] > size).sum() + 5
