"""The model as an attack has it: every pass counted and limited, and gradients that tell nothing noticed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...harness.core.clock import Stopwatch
from ...harness.core.errors import AftershockError
from .perturbation import CountingModel, late_successes
from .target import TargetDetector


class LimitError(AftershockError):
    """An attack asked for more than it may spend: ``what`` is forwards, backwards or seconds."""

    def __init__(self, what: str, text: str) -> None:
        super().__init__(text)
        self.what = what


@dataclass(frozen=True)
class Limits:
    """What an attack may spend per image of a batch.

    Attributes:
        forwards: images sent through the model.
        backwards: gradients taken.
        seconds: of the CPU (:attr:`~aftershock.harness.core.clock.Stopwatch.seconds`), only a safety: machines differ.
    """

    forwards: float = 100_000
    backwards: float = 50_000
    seconds: float = 120

    def check(self, images: int, forwards: int, backwards: int, seconds: float) -> None:
        """Raise :class:`LimitError` if a batch of this number of images has spent more."""
        spent = (("forwards", forwards, self.forwards), ("backwards", backwards, self.backwards))
        for what, count, limit in (*spent, ("seconds", seconds, self.seconds)):
            if count > limit * images:
                raise LimitError(
                    what,
                    f"the attack was stopped after {limit:g} {what} per image: raise {what} under [limits] in the "
                    "suite, or give the attack fewer steps",
                )


class _Watch:
    """What is known of each image of a batch, shared by all parts of a watched model."""

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self.passes = torch.zeros_like(labels)
        # The pass in which it was first predicted wrong, counted from 1; 0 for never.
        self.fooled = torch.zeros_like(labels)
        self.zero = torch.zeros((), dtype=torch.bool, device=labels.device)
        self.non_finite = torch.zeros((), dtype=torch.bool, device=labels.device)


class WatchedModel(CountingModel):
    """A counting model that also notices gradients that tell an attack nothing.

    Looked at are the passes with gradients of the whole batch and of the parts that an attack names
    (:meth:`~aftershock.attacks.base.perturbation.CountingModel.of`); whose images are in another pass is not known.
    Of them only images that are still predicted right count: a hinge loss has a zero gradient once an image is fooled,
    and that is no fault.
    """

    def __init__(
        self, model: nn.Module, labels: Tensor, target: TargetDetector | None = None, limits: Limits | None = None
    ) -> None:
        super().__init__(model, target)
        self.limits, self._clock = limits, Stopwatch()
        self._watch = _Watch(labels)

    def forward(self, images: Tensor) -> Tensor:
        watch, rows = self._watch, self._rows
        if self.limits is not None:
            forwards = self.forwards + len(images)
            self.limits.check(len(watch.labels), forwards, self.backwards, self._clock.seconds)
        known = len(images) == len(watch.labels if rows is None else rows)
        if self._aside or not (torch.is_grad_enabled() and images.requires_grad and known):
            return super().forward(images)
        # The alias gets this pass's gradient alone, without other terms of the loss or earlier passes.
        images = images.view_as(images)
        logits = super().forward(images)
        these = slice(None) if rows is None else rows
        still_right = logits.detach().argmax(1) == watch.labels[these]
        watch.passes[these] += 1
        new = ~still_right & (watch.fooled[these] == 0)
        watch.fooled[these] = torch.where(new, watch.passes[these], watch.fooled[these])

        def watch_gradient(gradient: Tensor) -> None:
            # The largest size says both, in one read: it is 0 only where all are, and not finite where one is not.
            largest = torch.linalg.vector_norm(gradient.flatten(1), torch.inf, dim=1)
            watch.zero |= ((largest == 0) & still_right).any()
            watch.non_finite |= ~largest.isfinite().all()

        images.register_hook(watch_gradient)
        return logits

    @property
    def fooled_late(self) -> int:
        """Images first predicted wrong in the last quarter of the passes, see :func:`late_successes`."""
        return late_successes(self._watch.fooled, self._watch.passes)

    @property
    def flags(self) -> set[str]:
        """``zero-gradient`` and ``non-finite-gradient``, where they were seen."""
        seen = {"zero-gradient": self._watch.zero, "non-finite-gradient": self._watch.non_finite}
        return {flag for flag, value in seen.items() if bool(value)}
