"""Images that no part can have stored: what a detector says of them must be like what it says of the evaluate images.

Shadow images are evaluate images after a small change, which a secret of the run decides. Compared are pairs: images
whose prediction is right, and which the detector lets pass, both as they are and after the change. The same attack is
made on either; an image stands where it does not both fool the model and pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..statistics.detection import MIN_IMAGES
from ..statistics.intervals import Estimate, paired_difference, wilson

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

KNOWS = "knows-the-images"
UNSEEN = "shadow-unchecked"
PROVENANCE = "provenance"
# By how much more robust the evaluate images may be, and how many of their shadow images may be flagged.
_LEAD, _FLAGGED = 0.05, 0.5


def pairs(right: BoolArray, clean: FloatArray, shadow: FloatArray, threshold: float) -> IntArray:
    """Return the rows of the evaluate set that can be compared, int (n,).

    Args:
        right: bool (m,), whether the model is right about an image and about its shadow image.
        clean: scores of the images, and
        shadow: of their shadow images.
        threshold: of the detector.
    """
    return np.flatnonzero(right & (clean <= threshold) & (shadow <= threshold))


def stand(rows: IntArray, attacked: IntArray, evaded: BoolArray) -> BoolArray:
    """Return which rows stand an attack, bool (n,).

    Args:
        rows: int (n,).
        attacked: int (m,), the rows that were attacked, and
        evaded: bool (m,), which of them fooled the model and passed.
    """
    return ~np.isin(rows, attacked[evaded])


def can_tell(standing: BoolArray) -> bool:
    """Return whether so many of some images stand that their shadow images could be shown to be less robust."""
    return lead(standing, np.zeros_like(standing)).low > _LEAD


def lead(original: BoolArray, shadow: BoolArray) -> Estimate:
    """Return by how much images are more robust than their shadow images, with its 95 % interval."""
    return paired_difference(int((original & ~shadow).sum()), int((shadow & ~original).sum()), len(original))


@dataclass(frozen=True, eq=False)
class ShadowAttack:
    """What one attack made of images and of their shadow images: which stand, bool (n,) each."""

    original: BoolArray
    shadow: BoolArray

    @property
    def knows(self) -> bool:
        """Whether the images are more robust than their shadow images, beyond chance and what is allowed."""
        return lead(self.original, self.shadow).low > _LEAD


@dataclass(frozen=True, eq=False)
class Variants:
    """What a detector says of variants of the first evaluate images, for one model and seed.

    Attributes:
        scores: by what was made of the images, the scores of those variants whose prediction is right, as was that of
            the image itself: float (k,).
        attacks: by the label of an attack on the detector, what it made of shadow images, where they were attacked.
        reason: why shadow images that were planned have no scores, or were not attacked.
    """

    scores: Mapping[str, FloatArray] = field(default_factory=dict)
    attacks: Mapping[str, ShadowAttack] = field(default_factory=dict)
    reason: str = ""

    def flagged(self, how: str, threshold: float) -> float | None:
        """Return the share of variants that is flagged; ``None`` from fewer than 30."""
        scores = self.scores.get(how, np.zeros(0))
        return float((~(scores <= threshold)).mean()) if len(scores) >= MIN_IMAGES else None

    def worst(self) -> ShadowAttack | None:
        """Return the attack by which the images lead their shadow images most; ``None`` without any."""
        return max(self.attacks.values(), key=lambda a: lead(a.original, a.shadow).value, default=None)

    def flags(self, threshold: float) -> tuple[str, ...]:
        """Return the flags of a detector that answers for images that it knows.

        - ``knows-the-images``: the images stand an attack more often than their shadow images do, by more than five
          points, beyond chance.
        - ``provenance``: it flags more than half of the shadow images, beyond chance.
        - ``shadow-unchecked``: it gave no scores of them.
        """
        found, share = [], self.flagged("shadow", threshold)
        if self.reason:
            found.append(f"{UNSEEN}: {self.reason}")
        if any(attack.knows for attack in self.attacks.values()):
            found.append(KNOWS)
        if share is not None and wilson(share, len(self.scores["shadow"]))[0] > _FLAGGED:
            found.append(PROVENANCE)
        return tuple(found)
