"""When an image leaves its class and when it arrives at another one, and how sure these depths are.

All events are positions among the taps, int64 (n,): the tap's, or the number of taps where the event does not happen
at any of them, or -1 (:data:`UNREADABLE`) where no tap can tell.

An image can be judged at a tap only where the tap's reader is better than chance and reads the image's clean code as
its true class: there it is *readable*.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ...harness.statistics.intervals import Estimate, median_interval, paired_difference, proportion, student

IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]

UNREADABLE = -1
# Fewer images than this make no curve.
FEWEST = 10
# The extremes of five values hold the median in 94 % of samples, those of six in 97 %.
_FEWEST_FOR_INTERVAL = 6


def readable(own: IntArray, clean: IntArray, usable: BoolArray) -> BoolArray:
    """Where an image can be judged, bool (n, taps).

    Args:
        own: (n,), true classes.
        clean: (n, taps), what the clean codes are read as.
        usable: (taps,), the reader is better than chance.
    """
    return np.asarray((clean == own[:, None]) & usable)


def first_change(own: IntArray, read: IntArray, judged: BoolArray) -> IntArray:
    """The first readable tap at which the code is not read as the true class.

    Args:
        own: (n,), true classes.
        read: (n, taps), what the codes are read as.
        judged: (n, taps), from :func:`readable`.
    """
    return _first(judged & (read != own[:, None]), judged)


def departed(own: IntArray, read: IntArray, judged: BoolArray) -> IntArray:
    """The first readable tap from which on no readable tap reads the code as the true class: it has left for good.

    Takes what :func:`first_change` takes. Only taps count, whatever the network says at its output.
    """
    home = judged & (read == own[:, None])
    return _first(judged & (read != own[:, None]) & _after(home), judged)


def settled(goal: IntArray, read: IntArray, usable: BoolArray) -> IntArray:
    """The first usable tap from which on every usable tap reads the code as the class ``goal`` (n,)."""
    judged = np.broadcast_to(usable, read.shape)
    elsewhere = judged & (read != goal[:, None])
    return _first(judged & _after(elsewhere), judged)


def _after(mark: BoolArray) -> BoolArray:
    """Which taps have no marked one at or after them."""
    return np.asarray(~np.logical_or.accumulate(mark[:, ::-1], axis=1)[:, ::-1])


def _first(mark: BoolArray, judged: BoolArray) -> IntArray:
    found = np.where(mark.any(1), mark.argmax(1) if mark.shape[1] else 0, mark.shape[1])
    return np.asarray(np.where(judged.any(1), found, UNREADABLE), dtype=np.int64)


def cumulative(events: IntArray, taps: int) -> list[Estimate]:
    """By tap: the share of images that can be judged whose event lies at it or before; Wilson 95 % interval."""
    known = events[events != UNREADABLE]
    return [proportion(int((known <= t).sum()), len(known)) for t in range(taps)]


def share(mark: BoolArray, among: BoolArray) -> list[tuple[int, Estimate]]:
    """By tap: how many images are ``among``, and which share of them is marked; Wilson 95 % interval."""
    counts, hits = among.sum(0), (mark & among).sum(0)
    return [(int(n), proportion(int(k), int(n))) for k, n in zip(hits, counts, strict=True)]


def beyond(mark: BoolArray, other: BoolArray, among: BoolArray) -> list[tuple[int, Estimate]]:
    """By tap: how many images are ``among``, and how much more of them are marked than are under the other mark."""
    more, less = (mark & ~other & among).sum(0), (other & ~mark & among).sum(0)
    counts = zip(among.sum(0).tolist(), more.tolist(), less.tolist(), strict=True)
    return [(n, paired_difference(up, down, n)) for n, up, down in counts]


def means(values: NDArray[np.float32]) -> list[Estimate]:
    """By tap: the mean of (images, taps) numbers; NaN for fewer than two images."""
    columns = values.astype(np.float64).T
    return [student(c) if np.isfinite(c).sum() > 1 else Estimate(np.nan) for c in columns]


@dataclass(frozen=True)
class Half:
    """By which position half of the images' events have happened, and its 95 % interval.

    ``None`` without images; no interval for fewer than six, whose extremes do not hold the median with 95 %.
    """

    images: int
    median: int | None = None
    low: int | None = None
    high: int | None = None


def half(events: IntArray) -> Half:
    """The lower median of the events that can be judged; its interval runs between order statistics (binomial)."""
    known = np.sort(events[events != UNREADABLE])
    if not len(known):
        return Half(0)
    median = int(known[(len(known) - 1) // 2])
    if len(known) < _FEWEST_FOR_INTERVAL:
        return Half(len(known), median)
    found = median_interval(torch.from_numpy(known))
    return Half(len(known), median, int(found.low), int(found.high))


@dataclass(frozen=True)
class Comparison:
    """Depths of departure under two perturbations, paired by image.

    Attributes:
        first: a perturbation.
        second: another.
        images: that both move, and that can be judged.
        earlier: how many leave earlier under the first.
        later: how many leave later under the first.
        difference: mean of first minus second, in taps.
        p_value: of Wilcoxon's signed rank test, two-sided; ``None`` for fewer than :data:`FEWEST` images.
        holm: the same after Holm's correction for all comparisons (1979).
    """

    first: str
    second: str
    images: int
    earlier: int
    later: int
    difference: float | None
    p_value: float | None
    holm: float | None = None


def compare(first: str, second: str, a: IntArray, b: IntArray) -> Comparison:
    """Compare the events (n,) of the same n images under two perturbations; zero differences count (Pratt 1959)."""
    from scipy.stats import wilcoxon

    apart = a - b
    n, earlier, later = len(apart), int((apart < 0).sum()), int((apart > 0).sum())
    p_value = None
    if n >= FEWEST:
        # The normal approximation: exact tables know neither ties nor zeros.
        p_value = float(wilcoxon(apart, zero_method="pratt", method="approx").pvalue) if earlier + later else 1.0
    return Comparison(first, second, n, earlier, later, float(apart.mean()) if n else None, p_value)
