"""AutoPGD and the ensemble that begins with it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import pytest
import torch
from aftershock.attacks.base.geometry import project_l1_in_range
from aftershock.attacks.base.perturb_batch import perturb_batch
from aftershock.attacks.base.perturbation import CountingModel
from aftershock.attacks.native import autoattack as ensemble
from aftershock.attacks.native.autoattack import AutoAttack
from aftershock.attacks.native.autopgd import AutoLoss, AutoPGD, checkpoints
from aftershock.attacks.native.fab import targeted_fab
from aftershock.attacks.native.pgd import PGD, climb
from aftershock.attacks.native.square import Square
from aftershock.harness.core.errors import UnavailableError, UsageError
from aftershock.harness.core.seeds import Draws
from support.attack_cases import DigitsCase, LinearCase, Rounded, run
from torch import Tensor, nn

SMALL: dict[str, Any] = {"steps": 10, "targets": 4, "queries": 60}


def test_checkpoints_are_those_of_the_paper() -> None:
    # p = 0.22, 0.41, 0.57, 0.70, 0.80, 0.87, 0.93, 0.99 (Croce & Hein 2020, section 3.2), times the steps, rounded up.
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(20) == (5, 9, 12, 14, 16, 18, 19, 20)
    assert checkpoints(1) == (1,)
    # In L1 after every 4 % of the steps (Croce & Hein 2021, algorithm 1).
    assert checkpoints(100, "l1") == tuple(range(4, 101, 4)) and checkpoints(10, "l1") == tuple(range(1, 11))


@pytest.mark.parametrize(
    ("attack", "dual", "slack"),
    [
        (AutoPGD(0.02, steps=20), 1, 1e-4),
        (AutoPGD(0.02, steps=20, loss="margin", restarts=2), 1, 1e-4),
        (AutoPGD(0.1, "l2", steps=40), 2, 1e-3),
        (AutoPGD(0.1, "l2", steps=40, loss="margin"), 2, 1e-3),
        (AutoPGD(0.2, "l1", steps=40), "inf", 2e-3),
        (AutoPGD(0.2, "l1", steps=40, loss="margin"), "inf", 2e-3),
    ],
)
def test_on_a_linear_model_it_succeeds_exactly_below_the_dual_norm(
    linear: LinearCase, attack: Any, dual: int | str, slack: float
) -> None:
    distance = linear.margins / torch.linalg.vector_norm(linear.model.weight.detach(), float(dual))
    clear = (distance - attack.eps).abs() > slack
    made = run(linear, attack)
    fooled = distance < attack.eps
    assert 30 < fooled.sum() < 170 and clear.sum() > 180 and made.flags == ()
    assert torch.equal(made.success[clear], fooled[clear])
    assert (made.norms[attack.norm] <= attack.eps + 1e-6).all()


class Peak(nn.Module):
    """Never fooled: the margin falls with the squared distance from a point of which the images are the start."""

    def __init__(self, summit: Tensor) -> None:
        super().__init__()
        self.summit = summit

    def forward(self, images: Tensor) -> Tensor:
        below = 1 + (images - self.summit).square().flatten(1).sum(1)
        return torch.stack([below, torch.zeros_like(below)], 1)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_halved_steps_find_a_summit_that_fixed_steps_run_past(norm: Literal["linf", "l2"]) -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(20, 1, 6, 6, generator=random) * 0.4 + 0.3
    offset = {"linf": 0.06, "l2": 0.02}[norm] * torch.randn(1, 1, 6, 6, generator=random).clamp(-1.5, 1.5)
    eps, summit = {"linf": 0.2, "l2": 0.5}[norm], images[:1] + offset
    case = images[:1].expand(20, 1, 6, 6), torch.zeros(20, dtype=torch.int64), range(20), 0
    fixed = perturb_batch(PGD(eps, steps=40, norm=norm, loss="margin"), Peak(summit), *case)
    auto = perturb_batch(AutoPGD(eps, norm, steps=40, loss="margin"), Peak(summit), *case)
    left, before = (torch.linalg.vector_norm((m.images - summit).flatten(1), dim=1).mean() for m in (auto, fixed))
    assert not auto.success.any() and left < 0.5 * before
    # What a run of this length cannot tell from the summit: 2 eps halved at most at all checkpoints.
    assert (auto.images - summit).abs().max() < eps / 4


def test_counts_have_a_closed_form(digits: DigitsCase) -> None:
    # Nothing is fooled with a budget of nothing. A run: its start and each step forward, all but the last backward.
    once = run(digits, AutoPGD(0.0, steps=7))
    assert not once.success.any() and torch.equal(once.images, digits.images)
    assert (once.forwards, once.backwards) == (8, 7)
    aimed = run(digits, AutoPGD(0.0, steps=7, restarts=2, targets=3, loss="dlr-targeted"))
    assert (aimed.forwards, aimed.backwards) == (1 + 3 * 2 * 8, 3 * 2 * 7)
    sparse = run(digits, AutoPGD(0.0, "l1", steps=7))
    assert (sparse.forwards, sparse.backwards) == (8, 7) and torch.equal(sparse.images, digits.images)
    # There are nine other classes.
    every = run(digits, AutoPGD(0.0, steps=2, targets=20, loss="dlr-targeted"))
    assert (every.forwards, every.backwards) == (1 + 9 * 3, 9 * 2)


@pytest.mark.parametrize("loss", ["ce", "dlr", "margin", "dlr-targeted"])
def test_more_restarts_and_targets_never_fool_fewer(digits: DigitsCase, loss: AutoLoss) -> None:
    once = run(digits, AutoPGD(0.05, steps=5, loss=loss, targets=2))
    often = run(digits, AutoPGD(0.05, steps=5, loss=loss, targets=2 if loss != "dlr-targeted" else 9, restarts=4))
    assert often.success[once.success].all() and 0 < once.success.sum() < 80 and often.flags == ()
    if loss != "dlr-targeted":
        # Images that leave at once keep what they had.
        assert torch.equal(often.images[once.success], once.images[once.success])


@pytest.mark.torchattacks
@pytest.mark.parametrize(
    ("norm", "eps", "loss"),
    [("linf", 0.06, "ce"), ("linf", 0.06, "dlr"), ("l2", 0.4, "ce"), ("l2", 0.4, "dlr")],
)
def test_it_is_as_strong_as_another_implementation(
    digits: DigitsCase, norm: Literal["linf", "l2"], eps: float, loss: AutoLoss
) -> None:
    import torchattacks

    ours = run(digits, AutoPGD(eps, norm, steps=40, loss=loss))
    with torch.random.fork_rng(devices=[]):
        attack = torchattacks.APGD(
            digits.model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, steps=40, loss=loss, seed=0
        )
        theirs = attack(digits.images, digits.labels).detach()
    with torch.no_grad():
        fooled = digits.model(theirs).argmax(1) != digits.labels
    # Other random starts: a few images of 80 near the end of the budget may fall either way.
    assert 15 < fooled.sum() < 75
    assert abs(int(ours.success.sum()) - int(fooled.sum())) <= 3
    assert (ours.success == fooled).float().mean() > 0.94


def l1_apgd(model: CountingModel, clean: Tensor, label: Tensor, eps: float, steps: int, draws: Draws) -> Tensor:
    """Algorithm 1 of Croce & Hein 2021 for one image, written out step by step; the margin loss."""
    size = clean.numel()
    x = project_l1_in_range(clean + draws.normal(clean), clean, eps)
    value, _, gradient = climb(model, x, label, "margin")
    best, best_value, best_gradient = x, value, gradient
    step, moving, before = eps, 0.2 * size, size
    for i in range(steps):
        if i and i % max(int(0.04 * steps), 1) == 0:
            changed = int((best != clean).sum())
            if changed / before < 0.95:
                step, x, gradient = eps, best, best_gradient
            else:
                step = max(step / 1.5, eps / 10)
            moving, before = changed / 1.5, changed
        order = gradient.flatten().abs().argsort(descending=True)[: max(1, round(moving))]
        sparse = torch.zeros(size)
        sparse[order] = gradient.flatten()[order].sign()
        x = project_l1_in_range(x + step * (sparse / sparse.abs().sum()).view_as(x), clean, eps)
        value, _, gradient = climb(model, x, label, "margin")
        if value > best_value:
            best, best_value, best_gradient = x, value, gradient
    return best


@pytest.mark.parametrize("steps", [9, 60])
def test_l1_follows_the_published_algorithm(digits: DigitsCase, steps: int) -> None:
    eps, made = 0.6, run(digits, AutoPGD(0.6, "l1", steps=steps, loss="margin"))
    standing = (~made.success).nonzero().flatten().tolist()[:12]
    same = 0
    for row in standing:
        clean, label = digits.images[row : row + 1], digits.labels[row : row + 1]
        oracle = l1_apgd(CountingModel(digits.model), clean, label, eps, steps, Draws(0, [digits.indices[row]]))
        same += bool((oracle[0] - made.images[row]).abs().max() < 1e-4)
    # A batch rounds differently, which may turn the order of two derivatives in one image of twelve.
    assert len(standing) == 12 and same >= 11


@pytest.mark.parametrize("eps", [0.7, 1.0, 1.5])
def test_l1_is_at_least_as_strong_as_pgd_and_another_library(digits: DigitsCase, eps: float) -> None:
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    import foolbox

    auto = run(digits, AutoPGD(eps, "l1", steps=25))
    assert auto.flags == ()
    for share in (0.01, 0.05, 0.1):
        pgd = run(digits, PGD(eps, steps=25, norm="l1", share=share, early_stop=True))
        # Random starts and fixed steps may be lucky with an image in fifty.
        assert auto.success.sum() >= pgd.success.sum() - len(digits.images) / 50
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        attack = foolbox.attacks.SparseL1DescentAttack(steps=25, quantile=0.95, random_start=True)
        seen = foolbox.PyTorchModel(digits.model.eval(), bounds=(0, 1))
        _, _, theirs = attack(seen, digits.images, foolbox.criteria.Misclassification(digits.labels), epsilons=eps)
    # Loosely: three standard deviations of a count of 80 are at most 13.
    assert 10 < int(theirs.sum()) < 80 and auto.success.sum() >= int(theirs.sum()) - 13


@pytest.mark.parametrize("loss", ["ce", "dlr-targeted"])
def test_l1_ends_inside_its_budget_and_the_range(digits: DigitsCase, loss: AutoLoss) -> None:
    # Digits pulled to black and white: most of the ball lies outside the range.
    images = ((digits.images - 0.5) * 1.25 + 0.5).clamp(0, 1)
    with torch.no_grad():
        labels = digits.model(images).argmax(1)
    assert ((images == 0) | (images == 1)).float().mean() > 0.4
    for eps in (0.5, 2.0, 8.0):
        attack = AutoPGD(eps, "l1", steps=12, loss=loss, targets=3)
        # As it comes from the attack: the harness has not touched it.
        raw = attack.perturb(CountingModel(digits.model), images, labels, Draws(0, range(len(images))))
        length = (raw.double() - images.double()).abs().flatten(1).sum(1)
        assert raw.min() >= 0 and raw.max() <= 1 and (length <= eps * (1 + 1e-5)).all()
        assert length.median() > 0.99 * eps or eps == 8.0


@pytest.mark.parametrize(
    "attack",
    [
        AutoPGD(0.9, "l1", steps=12),
        AutoPGD(0.05, steps=12, restarts=2),
        AutoPGD(0.4, "l2", steps=6, loss="dlr-targeted"),
        AutoAttack(0.05, **SMALL),
    ],
)
def test_the_batch_and_the_run_change_nothing_and_the_seed_does(digits: DigitsCase, attack: Any) -> None:
    state = torch.get_rng_state()
    whole, again, parts = run(digits, attack), run(digits, attack), run(digits, attack, batch_size=27)
    assert torch.equal(whole.images, again.images)
    # What a batch rounds differently may move an image across a checkpoint's condition, but hardly any.
    assert (whole.success == parts.success).float().mean() > 0.98
    assert ((whole.images - parts.images).abs() > 1e-3).float().mean() < 0.02
    assert not torch.equal(whole.images, run(digits, attack, seed=1).images)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.4)])
def test_the_ensemble_is_at_least_each_of_its_parts(
    digits: DigitsCase, norm: Literal["linf", "l2"], eps: float
) -> None:
    made = run(digits, AutoAttack(eps, norm, **SMALL))
    first = run(digits, AutoPGD(eps, norm, steps=10))
    assert made.flags == () and 0 < made.success.sum() < 80
    # The first stage draws what it draws alone, and what it fools keeps its result.
    assert made.success[first.success].all()
    assert torch.equal(made.images[first.success], first.images[first.success])
    # Nothing was found: the image itself.
    assert torch.equal(made.images[~made.success], digits.images[~made.success])
    assert (made.norms[norm] <= eps + 1e-6).all()


def test_only_square_sees_through_gradients_that_are_nothing(digits: DigitsCase) -> None:
    model = Rounded(digits.model)
    with torch.no_grad():
        assert torch.equal(model(digits.images).argmax(1), digits.labels)
    blind = run(digits, AutoPGD(0.08, steps=10), model)
    seeing = run(digits, AutoAttack(0.08, steps=10, targets=2, queries=300), model)
    assert "zero-gradient" in blind.flags
    assert blind.success.float().mean() < 0.1 and seeing.success.float().mean() > 0.4


def test_fab_alone_fools_what_lies_within_the_budget(digits: DigitsCase) -> None:
    class Fab(AutoAttack):
        def _stages(self, classes: int) -> Iterator[Any]:
            yield self._fab

    pgd, fab = run(digits, PGD(0.06, steps=20)), run(digits, Fab(0.06, steps=20))
    assert fab.flags == () and fab.success.sum() > 0.9 * pgd.success.sum() > 20
    # The smallest perturbation that it finds: within the budget, seldom all of it.
    assert (fab.norms["linf"] <= 0.06 + 1e-6).all() and fab.norms["linf"][fab.success].mean() < 0.05


@pytest.mark.torchattacks
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.06), ("l2", 0.4)])
def test_fab_finds_what_another_implementation_finds(
    digits: DigitsCase, norm: Literal["linf", "l2"], eps: float
) -> None:
    import torchattacks

    ours = targeted_fab(CountingModel(digits.model), digits.images, digits.labels, eps, norm, steps=10, targets=3)
    with torch.random.fork_rng(devices=[]):
        attack = torchattacks.FAB(
            digits.model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=eps, steps=10, multi_targeted=True, n_classes=4
        )
        theirs = attack(digits.images, digits.labels)
    with torch.no_grad():
        fooled, others = (digits.model(made).argmax(1) != digits.labels for made in (ours, theirs))
    # Both draw nothing and take the same steps: only the last digits differ.
    assert torch.equal(fooled, others) and 20 < fooled.sum() < 80
    assert (ours - theirs).abs().max() < 1e-4


def test_all_stages_are_paid_by_an_image_that_nothing_fools(digits: DigitsCase) -> None:
    made = run(digits, AutoAttack(0.0, steps=5, restarts=2, targets=3, queries=11))
    assert not made.success.any() and torch.equal(made.images, digits.images)
    auto, aimed, checks = 2 * 6, 1 + 3 * 2 * 6, 4
    # FAB: per target and step one forward with its backward and one that looks; a few more around them.
    fab = 3 * 5 * 2
    assert auto + aimed + checks + fab + 11 < made.forwards < auto + aimed + checks + fab + 11 + 15
    assert made.backwards == 2 * 5 + 3 * 2 * 5 + 3 * 5


class Few(nn.Module):
    """The digits' network, its ten classes merged into a few."""

    def __init__(self, model: nn.Module, classes: int) -> None:
        super().__init__()
        self.model, self.classes = model, classes

    def forward(self, images: Tensor) -> Tensor:
        logits = self.model(images)
        return torch.stack([logits[:, k :: self.classes].amax(1) for k in range(self.classes)], 1)


@dataclass(frozen=True)
class FewCase:
    model: Few
    images: Tensor
    labels: Tensor
    indices: range


@pytest.fixture(params=[2, 3, 4])
def few(digits: DigitsCase, request: pytest.FixtureRequest) -> FewCase:
    return FewCase(Few(digits.model, request.param), digits.images, digits.labels % request.param, digits.indices)


def test_few_classes_get_the_parts_that_are_defined_for_them(few: FewCase, monkeypatch: pytest.MonkeyPatch) -> None:
    stages: list[str] = []

    class Recorded(AutoPGD):
        def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
            stages.append(f"{self.loss}-targeted" if self.targeted else self.loss)
            return super().perturb(model, images, labels, draws)

    class Squares(Square):
        def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
            stages.append("square")
            return super().perturb(model, images, labels, draws)

    class Recording(AutoAttack):
        def _fab(self, *given: Any) -> Tensor:
            stages.append("fab")
            return super()._fab(*given)

    monkeypatch.setattr(ensemble, "AutoPGD", Recorded)
    monkeypatch.setattr(ensemble, "Square", Squares)
    attack, classes = Recording(0.05, **SMALL), few.model.classes
    assert attack.inapplicable((1, 8, 8), classes) is None
    made = run(few, attack)
    middle: list[str] = {2: [], 3: ["dlr"], 4: ["dlr-targeted"]}[classes]
    assert stages == ["ce", *middle, "fab", "square"]
    assert made.flags == () and 0 < made.success.sum() < 80
    # At least what its first part fools alone.
    assert made.success[run(few, AutoPGD(0.05, steps=10)).success].all()
    said = {2: "needs 3 classes, is left out", 3: "which needs 4 classes", 4: "None"}[classes]
    assert said in str(attack.reduced((1, 8, 8), classes))


def test_fab_has_the_targets_that_there_are(few: FewCase) -> None:
    class Fab(AutoAttack):
        def _stages(self, classes: int) -> Iterator[Any]:
            yield self._fab

    pgd, fab = run(few, PGD(0.06, steps=20)), run(few, Fab(0.06, steps=20))
    assert fab.flags == () and fab.success.sum() > 0.9 * pgd.success.sum() > 20


def test_one_class_is_too_few_for_any_attack() -> None:
    assert "at least two classes" in str(AutoAttack(0.1).inapplicable((1, 8, 8), 1))
    assert "2 classes, not 1" in str(AutoPGD(0.1).inapplicable((1, 8, 8), 1))


def test_a_loss_that_is_not_defined_for_the_classes_is_said_beforehand(linear: LinearCase) -> None:
    with pytest.raises(UnavailableError, match="3 classes, not 2"):
        run(linear, AutoPGD(0.1, loss="dlr"))
    with pytest.raises(UnavailableError, match="4 classes, not 2"):
        run(linear, AutoPGD(0.1, loss="dlr-targeted"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AutoPGD(-0.1), "eps = -0.1"),
        (lambda: AutoPGD(0.1, "l0"), "linf or l2 or l1"),  # type: ignore[arg-type]
        (lambda: AutoPGD(-1.0, "l1"), "eps = -1.0"),
        (lambda: AutoPGD(12.0, "l1", steps=0), "steps = 0"),
        (lambda: AutoPGD(0.1, steps=0), "steps = 0"),
        (lambda: AutoPGD(0.1, restarts=0), "restarts = 0"),
        (lambda: AutoPGD(0.1, loss="hinge"), "ce or dlr or margin or dlr-targeted"),  # type: ignore[arg-type]
        (lambda: AutoPGD(0.1, targets=0), "targets = 0"),
        (lambda: AutoPGD(0.1, rho=0.0), "rho"),
        (lambda: AutoPGD(0.1, rho=1.1), "at most 1"),
        (lambda: AutoAttack(8.0), "8/255"),
        (lambda: AutoAttack(0.1, "l1"), "linf or l2, or run autopgd in l1"),
        (lambda: AutoAttack(0.1, steps=0), "steps = 0"),
        (lambda: AutoAttack(0.1, targets=0), "targets = 0"),
        (lambda: AutoAttack(0.1, restarts=0), "restarts = 0"),
        (lambda: AutoAttack(0.1, queries=0), "queries = 0"),
    ],
)
def test_wrong_parameters_are_one_sentence(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()
