"""The smallest perturbations found so far, image by image, and how a found one is drawn in."""

from __future__ import annotations

import torch
from torch import Tensor

from ...base.geometry import per_image, project
from ...base.perturbation import CountingModel, norms
from ...base.target import TargetDetector
from ...native.pgd import margin
from ..pixels import Ball

# Beyond the model's boundary by a hair, in units of the logits' range: what is found is judged again in other batches,
# which round differently. A score has no such unit: those of a lattice lie on the threshold, and any increasing
# transform of scores is the same detector.
_SLACK = 1e-4
# Halvings of a perturbation that is drawn in, at most, and the ratio at which there is no more to gain.
_HALVINGS, _FINE = 10, 1.005


class Shortest:
    """The smallest perturbation of each of n images that fools the model and passes a detector.

    Args:
        clean: float32 in [0, 1], (n, channels, height, width).
        labels: their classes, int64 (n,).
        target: the detector.
        norm: ``linf`` or ``l2``.
        reach: what is further away does not count.

    Attributes:
        images: the found ones; the clean image where there is none.
        radius: their measured distance, (n,), infinite where there is none.
        alone: the smallest measured distance of an image that fools, whether it passes or not, likewise.
        by: what found each image, as a number of ``parts``; -1 for nothing.
        parts: names of what offered images.
    """

    def __init__(self, clean: Tensor, labels: Tensor, target: TargetDetector, norm: Ball, reach: float) -> None:
        self._clean, self._labels, self._target, self._norm, self._reach = clean, labels, target, norm, reach
        self.images = clean.clone()
        self.radius = torch.full((len(clean),), torch.inf, device=clean.device)
        self.alone = self.radius.clone()
        self.score = torch.full((len(clean),), torch.nan, dtype=torch.float64, device=clean.device)
        self.by = torch.full((len(clean),), -1, device=clean.device)
        self.parts: list[str] = []

    def fools(self, rows: Tensor, logits: Tensor) -> Tensor:
        """Return which images of some rows (k,) fool by these logits (k, classes), bool (k,)."""
        spread = (logits.amax(1) - logits.amin(1)).nan_to_num(nan=0.0, posinf=0.0)
        return margin(logits, self._labels[rows]) > _SLACK * spread

    def passes(self, scores: Tensor) -> Tensor:
        """Return which of these true scores pass; NaN does not."""
        return scores <= self._target.threshold

    def offer(self, rows: Tensor, images: Tensor, fooled: Tensor, scores: Tensor, part: str) -> Tensor:
        """Take images of some rows into account, (k,) each; returns which of them fool and pass, bool (k,)."""
        if part not in self.parts:
            self.parts.append(part)
        radius = norms(images - self._clean[rows])[self._norm]
        within = radius <= self._reach * (1 + 1e-5) + 1e-7
        passed = fooled & within & self.passes(scores)
        self.alone[rows] = torch.where(fooled & within, torch.minimum(self.alone[rows], radius), self.alone[rows])
        better = passed & (radius < self.radius[rows])
        self.images[rows] = torch.where(per_image(better, images), images, self.images[rows])
        self.radius[rows] = torch.where(better, radius, self.radius[rows])
        self.score[rows] = torch.where(better, scores.to(self.score), self.score[rows])
        self.by[rows] = torch.where(better, self.parts.index(part), self.by[rows])
        return passed

    def ask(self, model: CountingModel, rows: Tensor, images: Tensor, part: str) -> Tensor:
        """Ask model and detector about images of some rows (k,), and take them into account; as :meth:`offer`."""
        logits, scores = self._target.query(model, images)
        return self.offer(rows, images, self.fools(rows, logits), scores, part)

    def draw_in(self, model: CountingModel, rows: Tensor, floor: Tensor) -> None:
        """Bisect between what was found and the clean images: along the segment, and (L-inf) cut off at a radius.

        Args:
            model: to ask.
            rows: of which images; those without a found one are left alone.
            floor: distances (n,) below which nothing is looked for.
        """
        rows = rows[self.radius[rows].isfinite()]
        # A cut in L2 is a point of the segment.
        for cut in (False, True) if self._norm == "linf" else (False,):
            if not len(rows):
                return
            found, clean, far = self.images[rows], self._clean[rows], self.radius[rows]
            low, high = (floor[rows] / far).clamp(0, 1), torch.ones_like(far)
            for _ in range(_HALVINGS):
                if not bool((high > low * _FINE).any()):
                    break
                share = (low + high) / 2
                if cut:
                    images = project(found, clean, share * far, "linf")
                else:
                    images = clean + per_image(share, clean) * (found - clean)
                passed = self.ask(model, rows, images.clamp(0, 1), "drawn-in")
                low, high = torch.where(passed, low, share), torch.where(passed, share, high)
