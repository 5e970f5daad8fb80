"""Native gradient attacks: FGSM and PGD.

Images are attacked each for itself: losses are summed, never averaged, random starts come from the image's own
generator, and nothing depends on what else is in the batch.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from ..harness.errors import UsageError
from ..harness.seeds import Draws
from . import checks
from .base import CountingModel, Norm, Perturbation, PerturbationInfo
from .geometry import ascent, project, random_in_ball

Ball = Literal["linf", "l2"]
Loss = Literal["ce", "margin"]


def margin(logits: Tensor, labels: Tensor) -> Tensor:
    """The largest other logit minus the label's, (n,): positive once an image is fooled (Carlini & Wagner 2017)."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - own


def input_gradient(model: CountingModel, images: Tensor, labels: Tensor, loss: Loss = "ce") -> Tensor:
    """The gradient of the loss with respect to each image, of the images' shape: one forward and one backward each.

    Float32 cross-entropy saturates: from a margin of about 17 on its derivative for the label's logit is exactly 0
    (only the other logits still pull), and from about 100 on it is 0 altogether. ``margin`` has no such limit.
    """
    with torch.enable_grad():
        images = images.detach().requires_grad_()
        logits = model(images)
        total = margin(logits, labels).sum() if loss == "margin" else cross_entropy(logits, labels, reduction="sum")
        (gradient,) = torch.autograd.grad(total, images)
    return gradient


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
        summary="One gradient step to the boundary of the budget.",
    )

    def __init__(self, eps: float, norm: Ball = "linf", random_start: bool = False) -> None:
        self._norm: Ball = checks.choice("norm", norm, ("linf", "l2"))
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
        moved = start + step * ascent(input_gradient(model, start, labels), self._norm)
        return project(moved, images, self.eps, self._norm).clamp_(0, 1)


class PGD(Perturbation):
    """Projected gradient ascent on the loss, the worst case per image over random restarts.

    A run always takes all its steps and ends with its last iterate. After each restart but the last, one forward
    finds the images that are fooled: they keep that result and leave the batch, the others start again; an image that
    no restart fools keeps its last one. Cost per image: ``steps`` forwards and backwards for each restart it takes
    part in, and one forward for each check.

    Args:
        eps: the budget; 0 changes nothing.
        steps: gradient steps of one run.
        step_size: the length of a step in ``norm``; by default 2.5 eps / steps, with which a run can reach the
            boundary from any start in the ball and still move along it (Madry et al. 2018, appendix on L2).
        norm: ``linf`` or ``l2``.
        random_start: start each run uniformly in the ball; without it, from the image itself.
        restarts: runs per image; more than one only with ``random_start``.
        loss: ``ce`` (cross-entropy) or ``margin`` (no saturation, see :func:`input_gradient`).

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
        steps: int = 10,
        step_size: float | None = None,
        norm: Ball = "linf",
        random_start: bool = True,
        restarts: int = 1,
        loss: Loss = "ce",
    ) -> None:
        self._norm: Ball = checks.choice("norm", norm, ("linf", "l2"))
        self.eps: float = checks.budget(eps, norm)
        self.steps = checks.whole("steps", steps, 1)
        self.step_size = (
            2.5 * self.eps / self.steps if step_size is None else checks.number("step_size", step_size, exclusive=True)
        )
        self.random_start = random_start
        self.restarts = checks.whole("restarts", restarts, 1)
        if self.restarts > 1 and not random_start:
            raise UsageError("restarts > 1 needs random_start = true: without it every restart of PGD is the same run.")
        self.loss: Loss = checks.choice("loss", loss, ("ce", "margin"))

    @property
    def norm(self) -> Norm:
        """The norm of the budget."""
        return self._norm

    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        result = images.clone()
        active = torch.arange(len(images), device=images.device)
        for restart in range(self.restarts):
            found = self._run(model, images[active], labels[active], draws.take(active.tolist()))
            result[active] = found
            if restart + 1 == self.restarts:
                break
            with torch.no_grad():
                still_right = model(found).argmax(1) == labels[active]
            active = active[still_right]
            if not len(active):
                break
        return result

    def _run(self, model: CountingModel, clean: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        images = clean
        if self.random_start:
            images = (clean + random_in_ball(clean, self.eps, self._norm, draws)).clamp_(0, 1)
        for _ in range(self.steps):
            moved = images + self.step_size * ascent(input_gradient(model, images, labels, self.loss), self._norm)
            images = project(moved, clean, self.eps, self._norm).clamp_(0, 1)
        return images
