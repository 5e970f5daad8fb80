"""What a perturbation is: anything that maps x to x', with what the harness has to know about it.

A perturbation only proposes images. Whether they fool the model, stay in their budget and in [0, 1] is measured by
:mod:`aftershock.attacks.base.perturb_batch`.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor, nn

from ...harness.core.ranges import Ranged
from ...harness.core.seeds import Draws
from .kinds import Effort

if TYPE_CHECKING:
    from .target import TargetDetector

Kind = Literal["noise", "corruption", "attack", "adaptive"]
Norm = Literal["linf", "l2", "l1", "l0"]
NORMS: tuple[Norm, ...] = ("linf", "l2", "l1", "l0")
Cost = Literal["low", "medium", "high"]
# An attack of fewer passes has no last quarter to speak of.
_FEWEST_PASSES = 8


@dataclass(frozen=True)
class PerturbationInfo:
    """What people and the harness should know about a perturbation.

    Attributes:
        title: a short human name.
        kind: noise, corruption, attack or adaptive.
        family: perturbations of one family count as seen once a detector learned from one of them (PGD of any library).
        norm: the norm that ``eps`` limits or that the attack minimises; an instance may say otherwise.
        library: the package whose code runs; empty for where the perturbation itself comes from.
        paper: authors, year, and an identifier.
        gradients: it reads the model's gradients (a white-box attack).
        stochastic: it draws random numbers.
        one_step: it takes a single gradient step; no iterative attack of the same budget should be weaker.
        minimises: it looks for the smallest perturbation whatever ``eps`` is, and ``eps`` (``None`` by default) only
            limits what counts; the harness runs it once without ``eps`` and takes every budget from that run.
        cost: forwards and backwards per image with the default parameters, roughly: ``low`` up to 50, ``medium`` up to
            1,000, ``high`` above. What a run really takes is counted.
        summary: one sentence for ``aftershock list``.
    """

    title: str
    kind: Kind
    family: str
    norm: Norm | None = None
    library: str = ""
    paper: str = ""
    gradients: bool = True
    stochastic: bool = False
    one_step: bool = False
    minimises: bool = False
    cost: Cost = "low"
    summary: str = ""

    @property
    def box(self) -> str:
        """``white`` or ``black`` for attacks; empty for noise and corruptions, which do not look at the model."""
        if self.kind not in ("attack", "adaptive"):
            return ""
        return "white" if self.gradients else "black"


@dataclass
class Spent:
    """Passes so far, in images; shared by all parts of a counting model."""

    forwards: int = 0
    backwards: int = 0


class CountingModel(nn.Module):
    """The model as an attack sees it: images in [0, 1] to logits, in eval mode, with every pass counted.

    Attributes:
        target: the detector that an adaptive attack is made against; ``None`` for every other attack.
        credits: what an attack of several parts says about its result: the part that made each image.
        told: what an adaptive attack says its detector told it of the result: the true score of each image (n,).
        asked: one fooling iterate of each image, (n, channels, height, width), and
        asked_score: what the detector told of it, NaN where nothing fooled, float64 (n,).
        partial: images that an attack leaves behind when a limit ends it, (n, channels, height, width).
        late: how many images an adaptive attack brought past its detector only in its last quarter.
    """

    def __init__(self, model: nn.Module, target: TargetDetector | None = None) -> None:
        super().__init__()
        self.model = model
        self.target = target
        self.credits: Sequence[str] = ()
        self.told = torch.empty(0, dtype=torch.float64)
        self.partial: Tensor | None = None
        self.asked: Tensor | None = None
        self.asked_score = self.told
        self.late = 0
        self._spent = Spent()
        self._rows: Tensor | None = None
        self._aside = False

    @property
    def forwards(self) -> int:
        """Images that went through the model."""
        return self._spent.forwards

    @property
    def backwards(self) -> int:
        """Images whose gradient was taken, each time."""
        return self._spent.backwards

    def of(self, rows: Tensor) -> Self:
        """Return the same model and counts for some of the images only, int64 positions (m,) among those it is for.

        An attack that goes on with part of its images says so by this, so that what is watched per image (see
        :class:`~aftershock.attacks.base.watched_model.WatchedModel`) is put down to the right ones.
        """
        part = copy.copy(self)
        part._rows = rows if self._rows is None else self._rows[rows]
        return part

    def aside(self) -> Self:
        """Return the same model and counts for passes of other images than the attack's own (views of them)."""
        part = copy.copy(self)
        part._aside = True
        return part

    def forward(self, images: Tensor) -> Tensor:
        self._spent.forwards += len(images)
        # Where the images' own gradient arrives, whatever the loss was computed from: logits or activations.
        direct = torch.is_grad_enabled() and images.requires_grad
        if direct:
            images = images.view_as(images)
            images.register_hook(self._count)
        logits: Tensor = self.model(images)
        if logits.requires_grad and not direct:
            logits.register_hook(self._count)
        return logits

    def _count(self, gradient: Tensor | None) -> None:
        # None: a pass that nothing depended on, such as that of a view which a plugin's surrogate did not read.
        self._spent.backwards += 0 if gradient is None else len(gradient)


def aside(model: nn.Module) -> nn.Module:
    """Return a model for passes of views, which are counted but not put down to the attack's own images."""
    return model.aside() if isinstance(model, CountingModel) else model


def late_successes(first: Tensor, passes: Tensor) -> int:
    """Return images that got there only in the last quarter of the passes, so that more passes would bring more there.

    0 for fewer than eight passes, and if every image got there: then more passes bring no more, and an attack that
    drops what it is done with was over before its end.

    Args:
        first: the pass in which each image first got there, counted from 1, 0 for never; int64 (n,).
        passes: how many passes each image had; those of the image that had most count.
    """
    most = int(passes.amax()) if len(passes) else 0
    if most < _FEWEST_PASSES or bool((first > 0).all()):
        return 0
    return int((first > most * 3 // 4).sum())


class Perturbation(Ranged, ABC):
    """Base of every perturbation; the constructor's parameters are what a suite may set.

    ``eps``, where a subclass has it, is the budget in ``norm``; the harness checks it after the attack. ``images``
    limits an expensive perturbation to the first images of a set.
    """

    info: ClassVar[PerturbationInfo]
    eps: float | None = None
    images: int | None = None

    @property
    def norm(self) -> Norm | None:
        """The norm of this instance's budget."""
        return self.info.norm

    @property
    def family(self) -> str:
        """What this instance counts as once a detector learned from it."""
        return self.info.family

    def covers(self, positions: Sequence[int]) -> list[bool]:
        """Which images, by position in their split, it has anything for; the others are not counted as attacked."""
        return [True] * len(positions)

    @property
    def effort(self) -> Effort | None:
        """What this instance invests per image, for the protocol's floor; ``None`` where it does not say."""
        return None

    @property
    def learnable(self) -> bool:
        """Whether it can perturb fit images, so that a detector may learn from it."""
        return True

    def source_files(self) -> tuple[Path, ...]:
        """Return files whose content the result depends on; the harness keys it by their bytes, not by their places."""
        return ()

    def inapplicable(self, shape: tuple[int, int, int], classes: int) -> str | None:
        """Return why this perturbation is not defined for a task, or ``None``.

        The shape of the task alone decides: a run leaves an inapplicable perturbation out, and its results are those
        of the suite without it. So it does where :meth:`missing` names a package.

        Args:
            shape: (channels, height, width) of the images.
            classes: number of classes.
        """
        if self.info.kind in ("attack", "adaptive") and classes < 2:
            return f"{self.info.title} needs at least two classes: with {classes}, no prediction can become wrong."
        return None

    def reduced(self, shape: tuple[int, int, int], classes: int) -> str | None:
        """Return which of its parts this perturbation leaves out on a task that it applies to, or ``None``."""
        return None

    @classmethod
    def missing(cls) -> str | None:
        """Return what has to be installed before it can run, with the command, or ``None``."""
        return None

    @abstractmethod
    def perturb(self, model: CountingModel, images: Tensor, labels: Tensor, draws: Draws) -> Tensor:
        """Perturb images that the model classifies correctly.

        Args:
            model: parameters frozen, eval mode; on the images' device.
            images: float32 in [0, 1], (n, channels, height, width), n at least 1.
            labels: the true classes, which are also the predicted ones, int64, (n,).
            draws: one seeded generator per image; global generators are seeded too.

        Returns:
            x' of the same shape, detached; an image for which nothing was found may come back as it was.
        """


def norms(delta: Tensor) -> dict[Norm, Tensor]:
    """The four norms of perturbations (n, ...), float32 (n,); ``l0`` counts changed pixels (all channels as one)."""
    flat = delta.flatten(1)
    changed = (delta != 0).any(1) if delta.ndim > 2 else delta != 0
    empty = flat.new_zeros(len(flat))
    return {
        "linf": flat.abs().amax(1) if flat.shape[1] else empty,
        "l2": torch.linalg.vector_norm(flat, dim=1),
        "l1": flat.abs().sum(1),
        "l0": changed.flatten(1).sum(1).float(),
    }
