"""Isolation forests as tensors: scikit-learn grows the trees, torch evaluates and relaxes them.

Every tree is stored as a complete binary one: node ``i`` has the children ``2 i + 1`` and ``2 i + 2``, and below an
early leaf all thresholds are infinite and all leaves give its path length.

Source: Liu, Ting and Zhou, "Isolation Forest", ICDM 2008.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

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
        splits = self._splits
        # A gather, whose gradient is much cheaper than that of an index.
        values = x.gather(1, splits.features.expand(len(x), -1))
        margin = (splits.thresholds.to(x) - values) / (temperature * self.spread.to(x)[splits.features])
        left = (1 + margin / (1 + margin.abs())) / 2
        if straight_through:
            left = (margin >= 0).to(left) + left - left.detach()
        below = x.new_empty(len(x), 0)
        for level in splits.levels:
            known = torch.cat([below, level.constants.to(x).expand(len(x), -1)], 1)
            chance = left.index_select(1, level.nodes)
            below = chance * known.index_select(1, level.left) + (1 - chance) * known.index_select(1, level.right)
        known = torch.cat([below, splits.roots.to(x).expand(len(x), -1)], 1)
        lengths = known.index_select(1, splits.order)
        return torch.pow(2.0, -lengths.mean(1) / self.normaliser)

    @cached_property
    def _splits(self) -> _Splits:
        """The nodes that split, without those below early leaves: complete trees have several times as many."""
        real = self.thresholds.isfinite()
        # Position of each node among those that split, in the order of trees and nodes.
        number = (real.flatten().cumsum(0) - 1).view_as(real)
        levels: list[_Level] = []
        # Position of each node of the level below among those of it that split.
        place = real[:, :0].long()
        for level in reversed(range(self.depth)):
            first, count = 2**level - 1, 2**level
            tree, node = real[:, first : first + count].nonzero().T
            children = [2 * (node + first) + 1, 2 * (node + first) + 2]
            constants = [self._length(tree, child, level + 1) for child in children]
            known = len(levels[-1].nodes) if levels else 0
            sides = []
            for side, child in enumerate(children):
                # What is no split is read from the constants, which come after the values of the level below.
                own = known + side * len(node) + torch.arange(len(node), device=node.device)
                if level + 1 < self.depth:
                    splits = real[tree, child]
                    own = torch.where(splits, place[tree, child - (2 * first + 1)], own)
                sides.append(own)
            levels.append(_Level(number[tree, node + first], sides[0], sides[1], torch.cat(constants)))
            place = real[:, first : first + count].flatten().cumsum(0).view(len(real), count) - 1
        trees = torch.arange(len(real), device=real.device)
        roots = self._length(trees, torch.zeros_like(trees), 0)
        order = torch.where(real[:, 0], place[:, 0], int(real[:, 0].sum()) + trees)
        return _Splits(self.features[real], self.thresholds[real], tuple(levels), roots, order)

    def _length(self, tree: Tensor, node: Tensor, level: int) -> Tensor:
        """Return the path length of the leftmost leaf below nodes, which is that of all leaves below an early one."""
        leaf = (node + 1) * 2 ** (self.depth - level) - 1 - self.features.shape[1]
        return self.lengths[tree, leaf]


@dataclass(frozen=True, eq=False)
class _Level:
    """The splits of one level of all trees.

    Attributes:
        nodes: positions among all splits, int64 (splits,).
        left, right: where the children's lengths stand: among the splits of the level below, then ``constants``.
        constants: path lengths of leaves.
    """

    nodes: Tensor
    left: Tensor
    right: Tensor
    constants: Tensor


@dataclass(frozen=True, eq=False)
class _Splits:
    """A forest without the nodes below early leaves.

    Attributes:
        features, thresholds: of every split, in the order of trees and nodes.
        levels: from the lowest to the roots.
        roots: the path length of each tree that is a single leaf (of others it does not count).
        order: where each tree's length stands: among the splits of the top level, then ``roots``.
    """

    features: Tensor
    thresholds: Tensor
    levels: tuple[_Level, ...]
    roots: Tensor
    order: Tensor


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
