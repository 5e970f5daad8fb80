"""How far images have to be moved: the price of a detector, and jumps of undetected success with the budget.

Distances are measured on the images found, in the threat's norm. ``r0`` is the smallest that fools the model, ``rd``
the smallest that fools it and passes the detector.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..statistics.intervals import wilson
from ..statistics.multiple_testing import holm
from ..statistics.ranks import RowSample, ranks
from ..statistics.survival import median, sign_test

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

DISCONTINUOUS, UNSEEN, R0_SEARCH = "discontinuous", "ladder-unchecked", "r0-not-smallest"
# From one budget to the next; a jump is a rise of more than this, and of at least that with 95 % confidence; fewer
# images tell nothing.
_RUNG, _RISE, _SURELY, _IMAGES = 1.25, 0.5, 0.3, 50
# Distances that differ by less are a tie: no search is finer.
_TIE = 1.01
# By how much a row's own search may find smaller distances than the one that knows no detector, at the median.
_BELOW = 1.02


# Levels of the tests that order rows: by robust accuracy, and of rows that this leaves together by price.
ACCURACY_LEVEL, PRICE_LEVEL = 0.04, 0.01
PRICES = (
    "price", "price_low", "price_high", "r0_median", "rd_median", "n_price", "n_rd_censored", "n_r0_censored",
)  # fmt: skip


def _none() -> FloatArray:
    return np.zeros(0, np.float64)


@dataclass(frozen=True, eq=False)
class Radii:
    """What one search for the smallest perturbations found, for one model and seed.

    Attributes:
        index: int (n,), positions among the evaluate images.
        radius: float (n,), the distance of the nearest image that fools and passes; infinite where none was found.
        alone: float (n,), that of the nearest image found that fools, whether it passes or not, likewise.
        reach: the largest distance that counts.
        reason: why there is nothing; all arrays are empty then. Empty too where no search was planned.
    """

    index: IntArray = field(default_factory=lambda: np.zeros(0, np.int64))
    radius: FloatArray = field(default_factory=_none)
    alone: FloatArray = field(default_factory=_none)
    reach: float = 0.0
    reason: str = ""


@dataclass(frozen=True, eq=False)
class Distances:
    """r0 and rd of the same images, over all seeds, float64 (images, seeds) each; infinite beyond ``reach``.

    NaN where an image is not among those of a seed, whose model gets it wrong.
    """

    r0: FloatArray
    rd: FloatArray
    reach: float

    @property
    def counted(self) -> BoolArray:
        """(images, seeds), those that something within reach fools."""
        return np.asarray(np.isfinite(self.r0))

    def cells(self) -> dict[str, float | int | None]:
        """Return the columns of the leaderboard, see :func:`~.leaderboard.leaderboard_rows`."""
        counted = self.counted
        r0, rd = np.where(counted, self.r0, np.nan), np.where(counted, self.rd, np.nan)
        censored = counted & np.isinf(self.rd)
        # Of 0 / 0 nothing is known: an image on the boundary costs nothing either way.
        ratio = np.maximum(np.where(censored, self.reach, rd) / np.maximum(r0, 1e-12), 1.0)
        found = median(np.where(counted, ratio, np.nan), censored)
        middle = median(np.where(censored, self.reach, rd), censored)
        known = bool(counted.any())
        return {
            "price": found.value if known else None,
            "price_low": found.low if known else None,
            "price_high": found.high if known and np.isfinite(found.high) else None,
            "r0_median": median(r0, np.zeros_like(counted)).value if known else None,
            "rd_median": middle.value if known and np.isfinite(middle.high) else None,
            "n_price": int(counted.any(1).sum()),
            "n_rd_censored": int(censored.any(1).sum()),
            "n_r0_censored": int(np.isinf(self.r0).any(1).sum()),
        }

    def jumps(self, eps: float) -> bool:
        """Whether undetected success rises between two budgets in a way that the model alone does not explain.

        The budgets are eps, 1.25 eps and so on. Images that the next budget is the first to fool at all do not count,
        and a rise is none that is not surely steeper than the model's own, anywhere.
        """
        for seed in range(self.r0.shape[1]):
            # Those of this seed: another seed's model may get other images right.
            own = ~np.isnan(self.r0[:, seed])
            r0, rd = self.r0[own, seed], self.rd[own, seed]
            if len(r0) < _IMAGES:
                continue
            low, surely = eps, max(_SURELY, _steepest(r0))
            while low < self.reach * (1 - 1e-6):
                high = low * _RUNG
                rise = float(((rd > low) & (rd <= high) & (r0 <= low)).mean())
                if rise > _RISE and wilson(rise, len(r0))[0] > surely:
                    return True
                low = high
        return False


def _steepest(radii: FloatArray) -> float:
    """Return the largest share of distances (n,) that lie between a budget and a quarter more."""
    known = radii[np.isfinite(radii)]
    if not len(known):
        return 0.0
    return float(max(((known <= end) & (known > end / _RUNG)).sum() for end in known) / len(radii))


def distances(alone: Sequence[Radii], own: Sequence[Radii]) -> Distances | None:
    """Return r0 and rd of one row over seeds; ``None`` where a seed has neither.

    No image passes at a smaller distance than fools: r0 is the smaller of what both searches found.

    Args:
        alone: the searches that know no detector, by seed.
        own: the row's.
    """
    pairs = [(a, o) for a, o in zip(alone, own, strict=True) if len(a.index) and len(o.index)]
    if not pairs or len(pairs) < len(alone):
        return None
    shared = np.unique(np.concatenate([a.index for a, _ in pairs]))
    r0, rd = np.full((len(shared), len(pairs)), np.nan), np.full((len(shared), len(pairs)), np.nan)
    for seed, (a, o) in enumerate(pairs):
        both = np.searchsorted(shared, a.index)
        found = dict(zip(o.index.tolist(), zip(o.radius.tolist(), o.alone.tolist(), strict=True), strict=True))
        mine = np.array([found.get(i, (np.nan, np.nan)) for i in a.index.tolist()])
        rd[both, seed] = mine[:, 0]
        r0[both, seed] = np.fmin(np.fmin(a.radius, a.alone), np.fmin(mine[:, 1], mine[:, 0]))
    return Distances(r0, rd, pairs[0][0].reach)


def misses(alone: Radii, own: Radii) -> bool:
    """Whether a row's own search found clearly smaller distances that fool than the one for that alone."""
    if not len(own.index) or not np.array_equal(alone.index, own.index):
        return False
    smaller = np.minimum(alone.radius, own.alone)
    known = np.isfinite(smaller)
    # Infinitely smaller is what the search alone did not find at all.
    return bool(known.any()) and float(np.median(alone.radius[known] / np.maximum(smaller[known], 1e-12))) > _BELOW


class Ranks(NamedTuple):
    """A row's rank, and what it would be by robust accuracy alone."""

    rank: int
    accuracy_rank: int

    @classmethod
    def cells(cls, placed: Ranks | None) -> dict[str, float | None]:
        """Return the columns of the leaderboard, empty for a row that has no rank."""
        return dict.fromkeys(cls._fields) | ({} if placed is None else placed._asdict())


def both_ranks(samples: Sequence[RowSample], rows: Sequence[Distances | None]) -> list[Ranks]:
    """Return the ranks of the rows of one table, as the protocol has them.

    Args:
        samples: of robust accuracy, about the same images.
        rows: the distances of each, if it has any.
    """
    if not samples:
        return []
    first = [int(rank) for rank in ranks([sample.robust.mean() for sample in samples], samples, ACCURACY_LEVEL)]
    return [Ranks(rank, alone) for rank, alone in zip(price_ranks(first, rows), first, strict=True)]


def price_ranks(accuracy: Sequence[int], rows: Sequence[Distances | None]) -> list[int]:
    """Return ranks with what price adds: within rows of one rank, the number of rows that are significantly dearer.

    Two rows are compared by the sign test of :func:`dearer`, with Holm's correction for all pairs of their group. Where
    price spreads a group up to the rank of the next one or beyond, the next one is moved down: no row changes sides.

    Args:
        accuracy: ranks by robust accuracy.
        rows: the distances of each; a row without any is dearer than none and cheaper than none.
    """
    found, last = list(accuracy), 0
    for rank in sorted(set(accuracy)):
        group = [i for i, own in enumerate(accuracy) if own == rank]
        for i in group:
            found[i] = max(rank, last + 1)
        pairs = list(itertools.combinations((i for i in group if rows[i] is not None), 2))
        tested = [dearer(a, b) for i, j in pairs if (a := rows[i]) is not None and (b := rows[j]) is not None]
        corrected = holm([p for p, _ in tested])
        for (i, j), p, (_, more) in zip(pairs, corrected, tested, strict=True):
            if p is not None and p <= PRICE_LEVEL:
                found[j if more > 0 else i] += 1
        last = max(found[i] for i in group)
    return found


def dearer(first: Distances, second: Distances) -> tuple[float, int]:
    """Return the p-value of the sign test of two rows' rd, and in how many pairs the first's is larger; r0 cancels."""
    a, b = first.rd, second.rd
    with np.errstate(invalid="ignore"):
        near = (a < b * _TIE) & (b < a * _TIE)
    return sign_test(np.where(near, b, a), b)
