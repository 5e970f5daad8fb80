"""What an attack that knows a detector has found so far, image by image, judged by the detector's true score."""

from __future__ import annotations

import torch
from torch import Tensor

from ..base.geometry import per_image
from ..base.perturbation import late_successes
from ..base.target import TargetDetector


class Found:
    """The best image found so far for each of n: what reaches the goal before what does not, then the lowest value.

    Args:
        clean: (n, channels, height, width); an image for which nothing reaches the goal stays what was offered last.

    Attributes:
        images: the best found, of the shape of ``clean``.
        value: of what reaches the goal, float64 (n,); infinite where nothing does.
        found: whether something reaches it, bool (n,).
    """

    def __init__(self, clean: Tensor) -> None:
        self.images = clean.clone()
        self.value = torch.full((len(clean),), torch.inf, dtype=torch.float64, device=clean.device)
        self.found = torch.zeros(len(clean), dtype=torch.bool, device=clean.device)

    def keep(self, rows: Tensor, images: Tensor, reached: Tensor, value: Tensor) -> Tensor:
        """Take iterates of some rows into account: (k,) rows, images, whether they reach the goal, and values.

        Values count only where the goal is reached.

        Returns:
            which of them are the best found so far, bool (k,).
        """
        known = self.found[rows]
        first, better = reached & ~known, reached & (value < self.value[rows])
        self._keep(self.images, rows, first | better | ~(reached | known), images)
        self._keep(self.value, rows, better, value)
        self.found[rows] |= reached
        return first | better

    @staticmethod
    def _keep(held: Tensor, rows: Tensor, wanted: Tensor, values: Tensor) -> None:
        """Put values (k, ...) into the rows (k,) of what is held, where they are wanted, without waiting for a GPU."""
        held[rows] = torch.where(per_image(wanted, values), values, held[rows])


class Best(Found):
    """The goal is to fool the model; the value is the detector's true score.

    Args:
        clean: (n, channels, height, width); an image for which nothing fools stays what was offered last.
        target: the detector.
        enough: the true score at which there is nothing more to gain; by default the clean median.
    """

    def __init__(self, clean: Tensor, target: TargetDetector, enough: float | None = None) -> None:
        super().__init__(clean)
        # One of the fooling iterates of each image, drawn evenly, and what was told of it: a detector that lies about
        # images that would pass lies about these, which are never kept.
        self.asked = clean.clone()
        self.asked_score = torch.full_like(self.value, torch.nan)
        self._fooling = torch.zeros(len(clean), dtype=torch.int64, device=clean.device)
        self._draws = torch.Generator().manual_seed(0)
        self._target, self._enough = target, target.target_score if enough is None else enough
        self._parts: list[str] = []
        self._by = torch.full((len(clean),), -1, device=clean.device)
        # Iterates offered for each image, and the one that first got past the detector (0: none did).
        self._offers = torch.zeros(len(clean), dtype=torch.int64, device=clean.device)
        self._passed = torch.zeros_like(self._offers)

    def offer(
        self, rows: Tensor, images: Tensor, fooled: Tensor, score: Tensor, part: str, standing: Tensor | None = None
    ) -> None:
        """Take iterates of some rows into account: (k,) rows, images, fooled, true scores, and the attack's name.

        Scores count only where something is fooled. Images that do not stand any more are not counted as offered.
        """
        if part not in self._parts:
            self._parts.append(part)
        # A detector may answer with infinity or NaN: such an image is found, and nothing is worse.
        score = torch.where(score.isnan(), torch.inf, score)
        self._sample(rows, images, fooled, score)
        kept = self.keep(rows, images, fooled, score)
        self._by[rows] = torch.where(kept, self._parts.index(part), self._by[rows])
        self._offers[rows] += 1 if standing is None else standing.long()
        new = (self._passed[rows] == 0) & ~self.not_evaded[rows]
        self._keep(self._passed, rows, new, self._offers[rows])

    def _sample(self, rows: Tensor, images: Tensor, fooled: Tensor, score: Tensor) -> None:
        self._fooling[rows] += fooled
        drawn = torch.rand(len(rows), generator=self._draws).to(score.device)
        taken = fooled & (drawn * self._fooling[rows] < 1)
        self._keep(self.asked, rows, taken, images)
        self._keep(self.asked_score, rows, taken, score)

    @property
    def late(self) -> int:
        """Images that got past the detector only in the last quarter of the iterates."""
        return late_successes(self._passed, self._offers)

    @property
    def credits(self) -> list[str]:
        """The attack that made each image; empty where nothing fooled."""
        return [self._parts[i] if i >= 0 else "" for i in self._by.tolist()]

    @property
    def told(self) -> Tensor:
        """(n,), the true score that the detector told of each image, NaN where nothing fools; float64."""
        return torch.where(self.found, self.value, torch.nan)

    @property
    def below_target(self) -> Tensor:
        """(n,), fooled with a score as low as is aimed at: nothing more to gain."""
        return self.value <= self._enough

    @property
    def not_evaded(self) -> Tensor:
        """(n,), not yet fooled, or flagged."""
        return self.value > self._target.threshold
