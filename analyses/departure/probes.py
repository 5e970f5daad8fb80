"""Which class a tap's code is read as: readers that are fitted on clean images, and how near a code is to two classes.

A reader knows nothing of perturbations and of the network's head: it says what the codes of a tap tell about the class.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...detectors.codes.latent import Standardiser, fit_standardiser

Kind = Literal["centroid", "neighbours", "linear"]

# Rows for which distances to all centroids are held at once.
_ROWS = 4096
# Steps of the solver of the linear reader; standardised codes of a tap that separates classes never quite converge.
_STEPS = 200


@dataclass(frozen=True, eq=False)
class TapReader:
    """What was learned about one tap from clean images.

    Attributes:
        standardiser: of the pooled means.
        classes: int64 (k,), the classes that have an image, ascending.
        centroids: float64 (k, maps), their mean standardised codes.
        verdict: standardised codes (n, maps) to positions in ``classes``, int64 (n,).
    """

    standardiser: Standardiser
    classes: Tensor
    centroids: Tensor
    verdict: Callable[[Tensor], Tensor]

    def read(self, codes: Tensor) -> Tensor:
        """The class that each of (n, maps) codes is read as, int64 (n,)."""
        if not len(codes):
            return torch.empty(0, dtype=torch.int64)
        return self.classes[self.verdict(self.standardiser.apply(codes))]

    def margin(self, codes: Tensor, own: Tensor, reached: Tensor) -> Tensor:
        """How much nearer codes lie to the centroid of one class than to that of another, as a share of their distance.

        By the triangle inequality it is in [-1, 1]: 1 at the own class's centroid, 0 half-way, -1 at the other's.

        Args:
            codes: (n, maps).
            own: int64 (n,), classes.
            reached: int64 (n,), other classes.

        Returns:
            float32 (n,); NaN where a class has no centroid or both have the same.
        """
        apart = torch.full((len(codes),), torch.nan, dtype=torch.float64)
        places = [torch.searchsorted(self.classes, c).clamp(max=len(self.classes) - 1) for c in (own, reached)]
        known = (self.classes[places[0]] == own) & (self.classes[places[1]] == reached)
        x = self.standardiser.apply(codes[known]).double()
        near, far = (self.centroids[p[known]] for p in places)
        between = (near - far).norm(dim=1)
        found = ((x - far).norm(dim=1) - (x - near).norm(dim=1)) / between
        apart[known] = torch.where(between > 0, found.clamp(-1, 1), torch.nan)
        return apart.float()


def fit_reader(kind: Kind, codes: Tensor, labels: Tensor, neighbours: int) -> TapReader:
    """Fit a reader on clean images.

    Args:
        kind: ``centroid``, ``neighbours`` or ``linear``.
        codes: float32 (n, maps), at least one.
        labels: int64 (n,), their classes; ``linear`` needs two or more.
        neighbours: how many vote; all where there are fewer codes.
    """
    standardiser = fit_standardiser([codes])
    x = standardiser.apply(codes)
    classes, position = torch.unique(labels, return_inverse=True)
    member = (position == torch.arange(len(classes)).unsqueeze(1)).double()
    centroids = member @ x.double() / member.sum(1, keepdim=True)
    if kind == "centroid":
        return TapReader(standardiser, classes, centroids, lambda z: _nearest(z, centroids))
    model = _estimator(kind, min(neighbours, len(codes)))
    with warnings.catch_warnings():
        # The solver says when it stops early; the accuracy on held-out images says what that costs.
        warnings.simplefilter("ignore")
        model.fit(x.numpy(), position.numpy())  # type: ignore[attr-defined]
    return TapReader(
        standardiser, classes, centroids,
        lambda z: torch.from_numpy(model.predict(z.numpy())).long(),  # type: ignore[attr-defined]
    )  # fmt: skip


def _nearest(x: Tensor, centroids: Tensor) -> Tensor:
    return torch.cat([
        torch.cdist(part.double(), centroids, compute_mode="donot_use_mm_for_euclid_dist").argmin(1)
        for part in x.split(_ROWS)
    ])  # fmt: skip


def _estimator(kind: Kind, neighbours: int) -> object:
    if kind == "neighbours":
        from sklearn.neighbors import KNeighborsClassifier

        return KNeighborsClassifier(neighbours, algorithm="brute")
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(max_iter=_STEPS)


def spread(taps: Sequence[str], most: int) -> list[int]:
    """Positions of at most ``most`` taps, evenly spread from the first to the last; the last alone for one."""
    if len(taps) <= most:
        return list(range(len(taps)))
    steps = torch.linspace(len(taps) - 1, 0, most, dtype=torch.float64)
    return sorted({round(float(s)) for s in steps})
