"""Native gradient attacks, FGSM and PGD, and the losses that gradient attacks share.

Images are attacked each for itself: losses are summed, never averaged, random starts come from the image's own
generator, and nothing depends on what else is in the batch.
"""

from __future__ import annotations

from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ...harness.core.batches import steps_between_looks
from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count, Fraction, NotNegative, Positive
from ...harness.core.seeds import Draws
from ..base import parameters as checks
from ..base.geometry import ascent, per_image, random_in_ball, step_within
from ..base.perturbation import CountingModel, Norm, Perturbation, PerturbationInfo

Ball = Literal["linf", "l2", "l1"]
Loss = Literal["ce", "margin", "dlr"]
# Objectives on the predicted distribution, which ask for no class: Granese et al. 2022 (MEAD, arXiv:2206.15415) use
# three of this kind beside cross-entropy, so that a detector that learned from one meets others.
Shift = Literal["kl", "gini", "fisher-rao"]
SHIFTS = get_args(Shift)
Target = Literal["likeliest", "random"]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus the label's, (n,): positive once an image is fooled (Carlini & Wagner 2017)."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - own


def dlr(logits: Tensor, labels: Tensor, targets: Tensor | None = None) -> Tensor:
    """Return the difference of logits ratio, (n,): the margin, on a scale that multiplying all logits does not change.

    Croce & Hein 2020 (arXiv:2003.01690), equations 6 and 7; a target's takes the label's logit from the target's.
    Needs three classes, with targets four (see :func:`too_few_classes`).
    """
    if targets is None:
        gain, top = margin(logits, labels), logits.topk(3, dim=1).values
        return gain / (top[:, 0] - top[:, 2] + 1e-12)
    gain = (logits.gather(1, targets[:, None]) - logits.gather(1, labels[:, None])).squeeze(1)
    top = logits.topk(4, dim=1).values
    return gain / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + 1e-12)


def too_few_classes(loss: str, classes: int, targeted: bool) -> str | None:
    """Return why ``loss`` is not defined for this number of classes, or ``None``."""
    needed = (4 if targeted else 3) if loss == "dlr" else 2
    if classes >= needed:
        return None
    return (
        f"The {'targeted ' if targeted else ''}loss {loss} needs a model of at least {needed} classes, not {classes}."
    )


def objective(logits: Tensor, labels: Tensor, loss: Loss | Shift = "ce", targets: Tensor | None = None) -> Tensor:
    """What a gradient attack maximises, (n,); with ``targets`` (n,), how near each image is to its target class."""
    if loss == "dlr":
        return dlr(logits, labels, targets)
    if loss == "margin":
        return margin(logits, labels) if targets is None else -margin(logits, targets)
    if targets is None:
        return cross_entropy(logits, labels, reduction="none")
    return -cross_entropy(logits, targets, reduction="none")


def shift_of(logits: Tensor, clean: Tensor, loss: Loss | Shift) -> Tensor:
    """Return how far predictions are from those of the clean images, float64 (n,).

    Args:
        logits: of the images, (n, classes).
        clean: logits of the clean images, of the same shape.
        loss: ``kl``: the divergence of the new distribution q from the clean one p, sum p log(p / q); ``fisher-rao``:
            their geodesic distance 2 arccos(sum sqrt(p q)), in [0, pi]; ``gini``: the impurity of q alone, 1 - sum q^2.
    """
    new, old = logits.double().log_softmax(1), clean.double().log_softmax(1)
    if loss == "kl":
        return (old.exp() * (old - new)).sum(1)
    if loss == "gini":
        return 1 - (2 * new).exp().sum(1)
    # The same arc by its chord: near 1 a cosine has no digits left.
    chord = ((new / 2).exp() - (old / 2).exp()).square().sum(1)
    return 4 * (chord + 1e-30).sqrt().div(2).clamp(max=1 - 1e-12).asin()


def climb(
    model: CountingModel, images: Tensor, labels: Tensor, loss: Loss | Shift = "ce", targets: Tensor | None = None,
    clean: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """One forward and one backward each: the objective (n,), the logits, and the objective's gradient by the images.

    Float32 cross-entropy saturates: from a margin of about 17 on its derivative for the label's logit is exactly 0
    (only the other logits still pull), and from about 100 on it is 0 altogether. ``margin`` and ``dlr`` have no such
    limit. Objectives on the distribution compare with ``clean``, logits of the clean images (n, classes).
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        if clean is not None and loss in SHIFTS:
            values = shift_of(logits, clean, loss)
        else:
            values = objective(logits, labels, loss, targets)
        (gradient,) = torch.autograd.grad(values.sum(), images)
    return values.detach(), logits.detach(), gradient


def input_gradient(model: CountingModel, images: Tensor, labels: Tensor, loss: Loss = "ce") -> Tensor:
    """The gradient of the loss with respect to each image, of the images' shape: one forward and one backward each.

    ``ce`` saturates, see :func:`climb`.
    """
    return climb(model, images, labels, loss)[2]


class FGSM(Perturbation):
    """One step of size ``eps`` along the gradient's sign (L-inf) or direction (L2).

    Args:
        eps: the budget; 0 changes nothing.
        norm: ``linf``, as published, or ``l2``.
        random_start: start uniformly in the ball and step 1.25 eps, projected back (Wong et al. 2020, "Fast is better
            than free": from a random start a step of eps would stay short of the boundary).

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="FGSM",
        kind="attack",
        family="fgsm",
        norm="linf",
        paper="Goodfellow, Shlens, Szegedy 2015, arXiv:1412.6572",
        one_step=True,
        summary="One gradient step to the boundary of the budget.",
    )

    def __init__(self, eps: float, norm: Literal["linf", "l2"] = "linf", random_start: bool = False) -> None:
        self._norm: Literal["linf", "l2"] = norm
        self.eps: float = checks.budget(eps, norm)
        self.random_start = random_start

    @property
    def norm(self) -> Norm:
        """The norm of the budget."""
        return self._norm

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        start, step = images, self.eps
        if self.random_start:
            start = (images + random_in_ball(images, self.eps, self._norm, draws)).clamp_(0, 1)
            step = 1.25 * self.eps
        direction = ascent(input_gradient(model, start, labels), self._norm)
        return step_within(start, step * direction, images, self.eps, self._norm)


class PGD(Perturbation):
    """Projected gradient ascent on the loss, the worst case per image over random restarts.

    By default a run takes all its steps and ends with its last iterate, as published, and one forward after each
    restart but the last finds the images that are fooled: they keep that result and leave the batch. With
    ``early_stop`` every iterate is looked at, an image keeps the first that fools the model and leaves the batch at
    once, so that the result is the worst case over steps and restarts. That fools no fewer images and costs less, but
    such images lie just beyond the decision boundary, which makes other work for a detector than published PGD does:
    hence it is not the default. An image that nothing fools keeps its last iterate.

    Fooled means predicted as any other class, also with a target. Cost per image: ``steps`` forwards and backwards
    for each restart it takes part in (with ``early_stop`` up to its success), one forward for each check and one for
    the targets.

    Args:
        eps: the budget; 0 changes nothing.
        steps: gradient steps of one run.
        step_size: the length of a step in ``norm``; by default 2.5 eps / steps, with which a run can reach the
            boundary from any start in the ball and still move along it (Madry et al. 2018, appendix on L2).
        norm: ``linf``, ``l2`` or ``l1``. L1 steps move ``share`` of the coordinates, leaving out those that would
            leave [0, 1].
        random_start: start each run uniformly in the ball; without it, from the image itself.
        restarts: runs per image; more than one only with ``random_start``.
        loss: ``ce`` (cross-entropy), ``margin`` or ``dlr`` (no saturation, see :func:`climb`); or how far the predicted
            distribution moves, whichever class it moves to: ``kl``, ``fisher-rao`` or ``gini`` (:func:`shift_of`; after
            Granese et al. 2022, arXiv:2206.15415), from a random start, since it has no slope at the image itself.
        momentum: the share of the direction so far that each step keeps (Dong et al. 2018, arXiv:1710.06081,
            MI-FGSM, with 1.0); 0 for none.
        targeted: approach one other class instead of leaving the label's.
        target: which class: the likeliest other one on the clean image, or one drawn anew for each restart.
        early_stop: see above.
        share: for L1, the share of coordinates that one step moves (Tramer & Boneh 2019), in (0, 1].

    Raises:
        UsageError: for a parameter out of range.
    """

    info: ClassVar[PerturbationInfo] = PerturbationInfo(
        title="PGD",
        kind="attack",
        family="pgd",
        norm="linf",
        paper="Madry, Makelov, Schmidt, Tsipras, Vladu 2018, arXiv:1706.06083",
        stochastic=True,
        summary="Projected gradient ascent with random starts, worst case over restarts.",
    )

    def __init__(
        self,
        eps: float,
        steps: Count = 10,
        step_size: Positive | None = None,
        norm: Ball = "linf",
        random_start: bool = True,
        restarts: Count = 1,
        loss: Loss | Shift = "ce",
        momentum: NotNegative = 0.0,
        targeted: bool = False,
        target: Target = "likeliest",
        early_stop: bool = False,
        share: Fraction = 0.01,
    ) -> None:
        self._norm: Ball = norm
        self.eps: float = checks.budget(eps, norm)
        self.steps = steps
        self.step_size = 2.5 * self.eps / self.steps if step_size is None else step_size
        self.random_start = random_start
        self.restarts = restarts
        if self.restarts > 1 and not random_start:
            raise UsageError("restarts > 1 needs random_start = true: without it every restart of PGD is the same run.")
        self.loss: Loss | Shift = loss
        self.momentum = momentum
        self.targeted = targeted
        self.target: Target = target
        if loss in SHIFTS and (targeted or not random_start):
            raise UsageError(f"loss = {loss!r} goes to no class, from a random start: leave out targeted.")
        if self.target != "likeliest" and not targeted:
            raise UsageError(f"target = {target!r} needs targeted = true.")
        self.early_stop = early_stop
        self.share = share

    @property
    def norm(self) -> Norm:
        """The norm of the budget."""
        return self._norm

    def inapplicable(self, shape: tuple[int, int, int], classes: int) -> str | None:
        return too_few_classes(self.loss, classes, self.targeted)

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        result = images.clone()
        active = torch.arange(len(images), device=images.device)
        logits = None
        if self.targeted or self.loss in SHIFTS:
            with torch.no_grad():
                logits = model(images)
        for restart in range(self.restarts):
            last = restart + 1 == self.restarts
            clean, truth, own = images[active], labels[active], draws.take(active.tolist())
            before = None if logits is None else logits[active]
            targets = self._targets(before, truth, own) if before is not None and self.targeted else None
            found, fooled = self._run(model.of(active), clean, truth, targets, before, own, check=not last)
            result[active] = found
            active = active[~fooled]
            if last or not len(active):
                break
        return result

    def _targets(self, logits: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        if self.target == "likeliest":
            return logits.scatter(1, labels[:, None], float("-inf")).argmax(1)
        others = logits.shape[1] - 1
        drawn = (draws.uniform(logits[:, :1]).squeeze(1) * others).long().clamp_max(others - 1)
        return drawn + (drawn >= labels)

    def _run(
        self, model: CountingModel, clean: Tensor, labels: Tensor, targets: Tensor | None, before: Tensor | None,
        draws: Draws, check: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Return the result of one run, and which of its images are known to be fooled; ``check``: also at its end."""
        images = clean
        if self.random_start:
            images = (clean + random_in_ball(clean, self.eps, self._norm, draws)).clamp_(0, 1)
        result, fooled = clean.clone(), torch.zeros(len(clean), dtype=torch.bool, device=clean.device)
        rows = torch.arange(len(clean), device=clean.device)
        velocity = torch.zeros_like(clean) if self.momentum else None
        every = steps_between_looks(clean.device)
        for step in range(self.steps):
            _, logits, gradient = climb(model.of(rows), images, labels, self.loss, targets, before)
            if self.early_stop:
                first = (logits.argmax(1) != labels) & ~fooled[rows]
                result[rows] = torch.where(per_image(first, images), images, result[rows])
                fooled[rows] |= first
                if step % every == 0 and not bool((going := ~fooled[rows]).all()):
                    rows, images, clean, labels, gradient = (t[going] for t in (rows, images, clean, labels, gradient))
                    targets = None if targets is None else targets[going]
                    before = None if before is None else before[going]
                    velocity = None if velocity is None else velocity[going]
                    if not len(rows):
                        return result, fooled
            if velocity is not None:
                # Gradients of very different lengths weigh the same (Dong et al. 2018, equation 6).
                velocity = gradient = self.momentum * velocity + _of_mean_one(gradient)
            images = step_within(
                images, self.step_size * self._direction(gradient, images), clean, self.eps, self._norm
            )
        result[rows] = torch.where(per_image(fooled[rows], images), result[rows], images)
        if check:
            with torch.no_grad():
                fooled[rows] |= model.of(rows)(images).argmax(1) != labels
        return result, fooled

    def _direction(self, gradient: Tensor, images: Tensor) -> Tensor:
        if self._norm == "l1":
            stuck = ((images <= 0) & (gradient < 0)) | ((images >= 1) & (gradient > 0))
            gradient = gradient.masked_fill(stuck, 0.0)
        return ascent(gradient, self._norm, self.share)


def _of_mean_one(gradient: Tensor) -> Tensor:
    """The gradient of each image over its mean absolute value; by its largest entry first, see :func:`ascent`."""
    top = gradient.flatten(1).abs().amax(1)
    scaled = gradient / per_image(torch.where(top > 0, top, torch.ones_like(top)), gradient)
    mean = scaled.flatten(1).abs().mean(1)
    return scaled / per_image(torch.where(mean > 0, mean, torch.ones_like(mean)), gradient)
