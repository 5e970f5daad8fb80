"""What is measured on chains and on the images that they visit, and how sure it is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...harness.statistics.intervals import Estimate, jackknife

Array = NDArray[np.float64]
# Below this, chains are taken to have mixed (Vehtari et al. 2021).
MIXED = 1.01
# Above this, they plainly have not.
UNMIXED = 1.1


def p_value(differences: Array) -> float | None:
    """Two-sided, of Student's t test that paired differences (chains,) have a mean of 0; ``None`` for fewer than 2."""
    from scipy.stats import ttest_1samp

    known = differences[np.isfinite(differences)]
    if len(known) < 2:
        return None
    if not np.ptp(known):
        return 0.0 if known[0] else 1.0
    return float(ttest_1samp(known, 0.0).pvalue)


def over_targets(groups: Sequence[Estimate]) -> Estimate:
    """The mean over targets that are taken as they are, where nothing is shared, so that errors are independent."""
    known = [g for g in groups if math.isfinite(g.value)]
    if not known:
        return Estimate(math.nan)
    mean = sum(g.value for g in known) / len(known)
    reach = math.sqrt(sum((g.high - g.value) ** 2 for g in known)) / len(known)
    return Estimate(mean, mean - reach, mean + reach, known[0].method)


def split_rhat(draws: Array) -> float:
    """Rank-normalised split R-hat, the larger of bulk and folded (Vehtari, Gelman, Simpson, Carpenter, Bürkner 2021).

    Args:
        draws: (steps, chains); NaN for fewer than 4 steps or constant draws, infinite for chains that stand still in
            different places or are not finite.
    """
    if len(draws) < 4:
        return math.nan
    if not np.isfinite(draws).all():
        return math.inf
    found = [_rhat(_ranked(_split(d))) for d in (draws, np.abs(draws - np.median(draws)))]
    return max((r for r in found if not math.isnan(r)), default=math.nan)


def effective_size(draws: Array) -> float:
    """Bulk effective sample size: rank-normalised, over split chains, Geyer's initial monotone sequence.

    Args:
        draws: (steps, chains); NaN for fewer than 4 steps or constant draws.
    """
    if len(draws) < 4 or not np.isfinite(draws).all() or np.ptp(draws) == 0:
        return math.nan
    parts = _ranked(_split(draws))
    n, chains = parts.shape
    covariance = _autocovariance(parts).mean(1)
    within = covariance[0] * n / (n - 1)
    pooled = within * (n - 1) / n + (parts.mean(0).var(ddof=1) if chains > 1 else 0.0)
    correlation = 1 - (within - covariance * n / (n - 1)) / pooled
    correlation[0] = 1.0
    pairs = correlation[: n // 2 * 2].reshape(-1, 2).sum(1)
    negative = np.flatnonzero(pairs <= 0)
    pairs = np.minimum.accumulate(pairs[: negative[0] if len(negative) else len(pairs)])
    time = max(2 * float(pairs.sum()) - 1, 1 / math.log10(n * chains))
    return float(n * chains / time)


def _split(draws: Array) -> Array:
    half = len(draws) // 2
    return np.concatenate([draws[:half], draws[-half:]], 1)


def _ranked(draws: Array) -> Array:
    from scipy.stats import norm, rankdata

    ranks = rankdata(draws).reshape(draws.shape)
    return np.asarray(norm.ppf((ranks - 3 / 8) / (draws.size + 1 / 4)))


def _rhat(draws: Array) -> float:
    n = len(draws)
    if not np.ptp(draws, 0).any():
        return math.inf if np.ptp(draws) else math.nan
    within = draws.var(0, ddof=1).mean()
    between = draws.mean(0).var(ddof=1)
    return float(math.sqrt((within * (n - 1) / n + between) / within))


def _autocovariance(draws: Array) -> Array:
    """(lags, chains), divided by the number of steps."""
    n = len(draws)
    spectrum = np.fft.rfft(draws - draws.mean(0), 2 * n, axis=0)
    return np.asarray(np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[:n] / n)


def percentiles(values: Tensor, data: Tensor) -> Tensor:
    """The share of data (m,) that each value (...) exceeds, ties counting one half; float64."""
    order = data.double().sort().values
    below = torch.searchsorted(order, values.double().contiguous())
    upto = torch.searchsorted(order, values.double().contiguous(), right=True)
    share: Tensor = (below + upto).double() / (2 * len(order))
    return share


def high_frequency(images: Tensor) -> Tensor:
    """The share of an image's spectral power above half the Nyquist frequency, mean excluded, float64 (n,)."""
    flat = images.double()
    power = torch.fft.fft2(flat - flat.mean((2, 3), keepdim=True)).abs().square().sum(1)
    down, right = (torch.fft.fftfreq(side, dtype=torch.float64) for side in images.shape[2:])
    high = (down[:, None].square() + right[None].square()).sqrt() > 0.25
    share: Tensor = (power * high).sum((1, 2)) / power.sum((1, 2)).clamp(min=1e-12)
    return share


def cosine_distances(features: Tensor) -> Tensor:
    """Float64 (n, n) of (n, d)."""
    unit = torch.nn.functional.normalize(features.double(), dim=1)
    return (1 - unit @ unit.T).clamp(min=0)


def pixel_distances(images: Tensor) -> Tensor:
    """Root mean squared difference of images (n, ...), float64 (n, n)."""
    flat = images.double().flatten(1)
    return torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist") / math.sqrt(flat.shape[1])


def between_chains(apart: Tensor, chain: Tensor) -> Tensor:
    """Mean distances between the states of any two chains, float64 (chains, chains).

    Args:
        apart: (n, n) distances.
        chain: int64 (n,), which chain each state belongs to.
    """
    member = (chain[:, None] == chain.unique()).double()
    sizes = member.sum(0)
    found: Tensor = (member.T @ apart.double() @ member) / (sizes[:, None] * sizes)
    return found


def diversity(between: Tensor) -> Estimate:
    """The mean distance between different chains, (chains, chains) being given, with a jackknife over chains."""
    m = len(between)
    if m < 2:
        return Estimate(math.nan)
    off = between * (1 - torch.eye(m, dtype=torch.float64))
    total = float(off.sum())
    mean = total / (m * (m - 1))
    if m < 3:
        return Estimate(mean)
    without = (total - 2 * off.sum(1)) / ((m - 1) * (m - 2))
    return jackknife(mean, without.numpy())
