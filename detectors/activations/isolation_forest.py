"""Isolation forests as tensors: scikit-learn grows the trees, torch evaluates and relaxes them.

Every tree is stored as a complete binary one: node ``i`` has the children ``2 i + 1`` and ``2 i + 2``, and below an
early leaf all thresholds are infinite and all leaves give its path length.

Source: Liu, Ting and Zhou, "Isolation Forest", ICDM 2008.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Rows whose paths through all trees are held at once.
_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class IsolationTrees:
    """A fitted forest of trees of depth ``D``.

    Attributes:
        features: int64 (trees, 2^D − 1): the feature that a node splits on.
        thresholds: float64 (trees, 2^D − 1): values up to it go left.
        lengths: float64 (trees, 2^D): path lengths by leaf, with the expected rest of a leaf of several samples.
        normaliser: the expected path length c(samples per tree).
        spread: float32 (d,): standard deviations of the features, the unit of soft splits.
    """

    features: Tensor
    thresholds: Tensor
    lengths: Tensor
    normaliser: float
    spread: Tensor

    @property
    def depth(self) -> int:
        """How many splits lead to a leaf."""
        return int(self.lengths.shape[1]).bit_length() - 1

    def anomaly(self, x: Tensor) -> Tensor:
        """2^(−E[path length] / normaliser) of rows (n, d), float64 (n,) in (0, 1]: minus ``score_samples``."""
        return torch.cat([self._anomaly(block) for block in torch.split(x, _BLOCK)])

    def _anomaly(self, x: Tensor) -> Tensor:
        trees = torch.arange(len(self.features), device=x.device)
        # scikit-learn grows and reads its trees on float32 values, too.
        values = x.float().double()
        node = torch.zeros(len(x), len(trees), dtype=torch.int64, device=x.device)
        for _ in range(self.depth):
            right = values.gather(1, self.features[trees, node]) > self.thresholds[trees, node]
            node = 2 * node + 1 + right
        lengths = self.lengths[trees, node - self.features.shape[1]]
        return torch.pow(2, -lengths.mean(1) / self.normaliser)

    def relaxed_anomaly(self, x: Tensor, temperature: float, straight_through: bool = False) -> Tensor:
        """The anomaly of expected path lengths where each split is a soft one, (n,), in the dtype of ``x`` (n, d).

        A row goes left with probability (1 + u / (1 + |u|)) / 2, u = (threshold − value) / (temperature · spread). This
        sigmoid falls so slowly that a row far outside of the data still has a gradient, unlike the logistic one.
        """
        flat = x[:, self.features.flatten()].unflatten(1, self.features.shape)
        scale = temperature * self.spread.to(x)[self.features]
        margin = (self.thresholds.to(x) - flat) / scale
        # An infinite threshold, below an early leaf, has a probability of 1 and no gradient.
        margin = margin.clamp(max=1e30)
        left = (1 + margin / (1 + margin.abs())) / 2
        if straight_through:
            left = (margin >= 0).to(left) + left - left.detach()
        lengths = self.lengths.to(x).expand(len(x), -1, -1)
        for level in reversed(range(self.depth)):
            chance = left[:, :, 2**level - 1 : 2 ** (level + 1) - 1]
            lengths = chance * lengths[:, :, 0::2] + (1 - chance) * lengths[:, :, 1::2]
        return torch.pow(2.0, -lengths.squeeze(2).mean(1) / self.normaliser)


def fit_isolation(x: Tensor, trees: int, samples: int, generator: torch.Generator) -> IsolationTrees:
    """Grow a forest on rows (n, d), each tree on at most ``samples`` of them; ``generator`` (CPU) draws the seed."""
    from sklearn.ensemble import IsolationForest

    seed = int(torch.randint(2**31, (), generator=generator))
    rows = x.detach().cpu().float()
    forest = IsolationForest(n_estimators=trees, max_samples=min(samples, len(rows)), random_state=seed)
    forest.fit(rows.numpy())
    return from_sklearn(forest, rows.std(0, correction=0).clamp(min=1e-6))


def from_sklearn(forest: object, spread: Tensor) -> IsolationTrees:
    """Return the tensors of a fitted ``sklearn.ensemble.IsolationForest`` that reads all features."""
    estimators = forest.estimators_  # type: ignore[attr-defined]
    depth = max(1, *(e.tree_.max_depth for e in estimators))
    inner, leaves = 2**depth - 1, 2**depth
    features = np.zeros((len(estimators), inner), dtype=np.int64)
    thresholds = np.full((len(estimators), inner), math.inf)
    lengths = np.zeros((len(estimators), leaves))
    for row, estimator in enumerate(estimators):
        tree = estimator.tree_
        pending = [(0, 0, 0)]
        while pending:
            node, place, level = pending.pop()
            if tree.children_left[node] >= 0:
                features[row, place], thresholds[row, place] = tree.feature[node], tree.threshold[node]
                pending.append((tree.children_left[node], 2 * place + 1, level + 1))
                pending.append((tree.children_right[node], 2 * place + 2, level + 1))
                continue
            below = depth - level
            first = (place + 1) * 2**below - 1 - inner
            lengths[row, first : first + 2**below] = level + expected_path(int(tree.n_node_samples[node]))
    return IsolationTrees(
        torch.from_numpy(features),
        torch.from_numpy(thresholds),
        torch.from_numpy(lengths),
        # One sample per tree leaves nothing to isolate; any positive number does.
        expected_path(int(forest.max_samples_)) or 1.0,  # type: ignore[attr-defined]
        spread,
    )


def expected_path(samples: int) -> float:
    """c(n): the mean path length of an unsuccessful search in a binary search tree of n nodes."""
    if samples <= 1:
        return 0.0
    if samples == 2:
        return 1.0
    return 2 * (math.log(samples - 1) + float(np.euler_gamma)) - 2 * (samples - 1) / samples
