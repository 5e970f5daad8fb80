"""One image past several linear detectors of a linear model: whether there is one is a linear programme."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from aftershock.attacks.adaptive.past_all import Opponent, PastAll
from aftershock.attacks.adaptive.rehearsal import Informed
from aftershock.attacks.base.perturb_batch import perturb_batch
from scipy.optimize import linprog
from support.attack_cases import LinearCase
from support.linear_detector import LinearDetector
from torch import Tensor


def detectors(linear: LinearCase, count: int, share: float) -> list[LinearDetector]:
    """Their scores rise where the logit falls, and by so much in a direction of each detector's own."""
    weight, draw = linear.model.weight.detach(), torch.Generator().manual_seed(1)
    found = []
    for _ in range(count):
        noise = torch.nn.functional.normalize(torch.randn(48, generator=draw), dim=0)
        made = LinearDetector(-weight + share * weight.norm() * noise, 0.0, linear.images, linear.labels)
        scores = made.score(linear.images).double()
        made.threshold, made.target_score = float(scores.quantile(0.9)), float(scores.quantile(0.4))
        made.scale = made.threshold - made.target_score
        found.append(made)
    return found


def room(linear: LinearCase, against: Sequence[LinearDetector], row: int, eps: float) -> float:
    """The least excess over all boundaries that a change within the budget leaves; below 0 something gets past all."""
    w, sign = linear.model.weight.detach().double().numpy(), 1.0 if linear.labels[row] == 1 else -1.0
    scores = [float(d.score(linear.images[row : row + 1])) for d in against]
    # Model: sign w·d + margin <= t margin; detector: v·d + score - threshold <= t scale.
    rows = [np.r_[sign * w, -float(linear.margins[row])]]
    limits = [-float(linear.margins[row])]
    for d, score in zip(against, scores, strict=True):
        rows.append(np.r_[d.weight.double().numpy(), -d.scale])
        limits.append(d.threshold - score)
    bounds = [(-eps, eps)] * len(w) + [(None, None)]
    return float(linprog(np.r_[np.zeros(len(w)), 1], A_ub=np.array(rows), b_ub=limits, bounds=bounds).fun)


def passing(linear: LinearCase, against: Sequence[LinearDetector]) -> Tensor:
    clean = torch.stack([d.score(linear.images) <= d.threshold for d in against]).all(0)
    # Classes of which the logit has to fall: there the detectors stand in the way.
    return (clean & (linear.labels == 1)).nonzero().squeeze(1)[:40]


def past(
    linear: LinearCase, attack: PastAll, against: Sequence[LinearDetector], rows: Tensor, batch_size: int | None = None
) -> Tensor:
    images, labels = linear.images[rows], linear.labels[rows]
    made = perturb_batch(attack, linear.model, images, labels, rows.tolist(), 0, batch_size)
    return made.success & torch.stack([d.score(made.images) <= d.threshold for d in against]).all(0)


@pytest.mark.parametrize("count", [2, 4])
def test_an_image_gets_past_all_where_the_linear_programme_does(linear: LinearCase, count: int) -> None:
    against = detectors(linear, count, 1.0)
    rows = passing(linear, against)
    eps = float((linear.margins[rows] / linear.model.weight.detach().abs().sum()).quantile(0.5)) * 1.8
    known = np.array([room(linear, against, int(row), eps) for row in rows])
    attack = PastAll([Opponent.of(d, {}) for d in against], eps)
    found = past(linear, attack, against, rows).numpy()
    assert not found[known > 1e-4].any()
    assert found[known < -0.05].mean() > 0.95
    assert 0.2 < (known > 0).mean() < 0.8


def test_what_gets_past_each_need_not_get_past_both(linear: LinearCase) -> None:
    """Two detectors whose scores add up to the margin: what fools the model is flagged by one of them."""
    one, _ = detectors(linear, 2, 1.0)
    other = LinearDetector(-2 * linear.model.weight.detach() - one.weight, 0.0, linear.images, linear.labels)
    for made in (one, other):
        scores = made.score(linear.images).double()
        scores = scores[linear.labels == 1]
        made.threshold, made.target_score = float(scores.quantile(0.7)), float(scores.quantile(0.2))
        made.scale = made.threshold - made.target_score
    rows = passing(linear, [one, other])
    eps = 5 * float((linear.margins[rows] / linear.model.weight.detach().abs().sum()).median())
    alone = [past(linear, PastAll([Opponent.of(d, {})], eps), [d], rows) for d in (one, other)]
    both = past(linear, PastAll([Opponent.of(d, {}) for d in (one, other)], eps), [one, other], rows)
    assert all(room(linear, [one, other], int(row), eps) > 0 for row in rows)
    assert (alone[0] & alone[1]).all() and not both.any()


def test_a_start_that_passes_is_kept(linear: LinearCase) -> None:
    against = detectors(linear, 2, 1.0)
    rows = passing(linear, against)[:6]
    eps = 2 * float((linear.margins[rows] / linear.model.weight.detach().abs().sum()).max())
    opponents = [Opponent.of(d, {}) for d in against]
    strong = perturb_batch(
        PastAll(opponents, eps), linear.model, linear.images[rows], linear.labels[rows], rows.tolist(), 0
    )
    starts = {int(row): image[None] for row, image in zip(rows, strong.images, strict=True)}
    known = past(linear, PastAll(opponents, eps), against, rows)
    assert known.any()
    # One step alone gets nowhere; images of other batches keep their own starts.
    assert not past(linear, PastAll(opponents, eps, steps=1, restarts=1), against, rows).any()
    again = past(linear, PastAll(opponents, eps, steps=1, restarts=1, starts=starts), against, rows, batch_size=4)
    assert torch.equal(again, known)


def test_what_leads_past_a_detector_is_its_surrogate_or_what_was_learned(linear: LinearCase) -> None:
    (detector,) = detectors(linear, 1, 1.0)
    target = Informed(detector, {"nearest": lambda seen: seen.logits.sum(1)})
    assert Opponent.of(target, {}).source == "own" and Opponent.of(target, {"own": 0.2}).source == "nearest"
    target.has_surrogate = False
    assert Opponent.of(target, {}).source == "nearest"
    assert Opponent.of(Informed(detector, {}), {"own": 0.2}).source == "own"
