"""Differentiable stand-ins for a detector's score, learned from what the detector reads and from its true scores.

A detector without a surrogate, or with one that leads nowhere, is attacked through these. They read the activations
that the detector reads (:func:`~.features.described`) and speak in the units of its score.

- :class:`Gaussian`: half the squared Mahalanobis distance to the nearest class mean, one covariance for all classes
  (Lee et al. 2018, arXiv:1807.03888).
- :class:`Nearest`: a soft minimum of the distances to clean images.
- :class:`Student`: a small network that was taught the true scores (Papernot et al. 2017, arXiv:1602.02697, substitute
  models; here of a detector, from its own taps).

The first two know only clean images, so they are the same for every detector that reads these taps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from ..base.target import Observation, StandIn
from .features import described

# The share of the total variance that is added to every direction: a few hundred images do not span the features.
_SHRINKAGE = 0.05
# Temperature of the soft minimum, in units of the squared distances' own median.
_SOFT = 0.02
_HIDDEN, _STEPS, _RATE, _BATCH = 64, 600, 3e-3, 256


@dataclass(frozen=True, eq=False)
class Units:
    """What a stand-in's own values mean in the units of the detector's score: clean medians and thresholds agree.

    Attributes:
        median: of the stand-in's values of clean images,
        spread: their 95 % quantile minus the median,
        target_score: and the detector's for the same,
        scale: see :class:`~..base.target.TargetDetector`.
    """

    median: float
    spread: float
    target_score: float
    scale: float

    @classmethod
    def of(cls, values: Tensor, target_score: float, scale: float) -> Self:
        """Return the units that follow from a stand-in's values of clean images, (n,)."""
        median, top = (float(values.double().quantile(q)) for q in (0.5, 0.95))
        return cls(median, max(top - median, 1e-9), target_score, scale)

    def to_score(self, values: Tensor) -> Tensor:
        """Return values (n,) in the detector's units."""
        return (values - self.median) / self.spread * self.scale + self.target_score


_PLAIN = Units(0.0, 1.0, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Gaussian:
    """See the module.

    Attributes:
        spread: of each number within classes, (numbers,).
        means: of the classes in units of it, (classes, numbers).
        axes: the directions in which clean images of one class differ, (numbers, k).
        weights: how much a squared distance along each of them counts more than one along no axis, (k,).
        units: of the score.
    """

    spread: Tensor
    means: Tensor
    axes: Tensor
    weights: Tensor
    units: Units

    @classmethod
    def fitted(cls, clean: Tensor, labels: Tensor, target_score: float, scale: float) -> Self:
        """Learn from the vectors (n, numbers) of clean images and their classes (n,).

        The covariance within classes is shrunk towards the identity, since there are fewer images than numbers; its
        inverse needs only the directions that the images span.
        """
        classes = [clean[labels == c].double() for c in labels.unique().tolist()]
        centred = torch.cat([of_class - of_class.mean(0) for of_class in classes])
        spread = centred.square().mean(0).sqrt().clamp_min(1e-6)
        _, sizes, axes = torch.linalg.svd(centred / spread, full_matrices=False)
        variances = (1 - _SHRINKAGE) * sizes.square() / len(centred) + _SHRINKAGE
        means = torch.stack([of_class.mean(0) for of_class in classes]) / spread
        weights = 1 / variances - 1 / _SHRINKAGE
        made = cls(spread.float(), means.float(), axes.T.float().contiguous(), weights.float(), _PLAIN)
        return replace(made, units=Units.of(made.distance(clean), target_score, scale))

    def __call__(self, found: Observation) -> Tensor:
        return self.units.to_score(self.distance(described(found)))

    def distance(self, vectors: Tensor) -> Tensor:
        """Return half the squared distance of vectors (n, numbers) to the nearest mean, (n,)."""
        device = vectors.device
        offsets = (vectors / self.spread.to(device))[:, None] - self.means.to(device)
        along = (offsets @ self.axes.to(device)).square() @ self.weights.to(device)
        return (along + offsets.square().sum(2) / _SHRINKAGE).amin(1) / 2


@dataclass(frozen=True, eq=False)
class Nearest:
    """See the module.

    Attributes:
        spread: of each number, (numbers,).
        clean: vectors of clean images in units of it, (k, numbers).
        softness: temperature of the soft minimum.
        units: of the score.
    """

    spread: Tensor
    clean: Tensor
    softness: float
    units: Units

    @classmethod
    def fitted(cls, clean: Tensor, target_score: float, scale: float) -> Self:
        """Learn from the vectors (n, numbers) of clean images; the second half tells what clean distances are."""
        spread = clean.std(0).clamp_min(1e-6)
        known, held_out = (clean / spread).chunk(2)
        softness = max(_SOFT * float(torch.cdist(held_out, known).square().median()), 1e-9)
        made = cls(spread, known, softness, _PLAIN)
        return replace(made, units=Units.of(made.distance(clean[len(known) :]), target_score, scale))

    def __call__(self, found: Observation) -> Tensor:
        return self.units.to_score(self.distance(described(found)))

    def distance(self, vectors: Tensor) -> Tensor:
        """Return the soft minimum of the squared distances of vectors (n, numbers) to clean ones, (n,)."""
        here, there = vectors / self.spread.to(vectors.device), self.clean.to(vectors.device)
        # A plain difference of squares: the gradient of cdist is not finite where two vectors meet.
        squares = here.square().sum(1)[:, None] + there.square().sum(1) - 2 * here @ there.T
        return -self.softness * torch.logsumexp(-squares / self.softness, 1)


@dataclass(frozen=True, eq=False)
class Student:
    """See the module.

    Attributes:
        centre: (numbers,), and
        spread: of the vectors that it learned from, (numbers,).
        weights: of its two layers, by name.
        target_score: see :class:`~..base.target.TargetDetector`.
        scale: likewise.
    """

    centre: Tensor
    spread: Tensor
    weights: Mapping[str, Tensor]
    target_score: float
    scale: float

    @classmethod
    def taught(cls, vectors: Tensor, scores: Tensor, target_score: float, scale: float, seed: int) -> Self:
        """Learn from the vectors (n, numbers) of images and the detector's true scores of them (n,).

        Scores count in units of the clean spread above the median, far ones by their logarithm; what is not finite
        counts as far above.
        """
        wanted = _pressed((scores.double() - target_score) / scale).float()
        centre, spread = vectors.mean(0), vectors.std(0).clamp_min(1e-6)
        inputs = ((vectors - centre) / spread).asinh()
        draws = torch.Generator().manual_seed(seed)
        network = _network(vectors.shape[1])
        with torch.no_grad():
            for parameter in network.parameters():
                # As torch starts linear layers, but from a generator of its own.
                parameter.uniform_(-1, 1, generator=draws).div_(parameter.shape[-1] ** 0.5)
        optimiser = torch.optim.AdamW(network.parameters(), _RATE, weight_decay=1e-2)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, _STEPS)
        with torch.enable_grad():
            for _ in range(_STEPS):
                rows = torch.randint(len(inputs), (_BATCH,), generator=draws)
                loss = nn.functional.smooth_l1_loss(network(inputs[rows]).squeeze(1), wanted[rows])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
        weights = {name: value.detach() for name, value in network.state_dict().items()}
        return cls(centre, spread, weights, target_score, scale)

    def __call__(self, found: Observation) -> Tensor:
        return self.target_score + self.scale * self.value(described(found))

    def value(self, vectors: Tensor) -> Tensor:
        """Return the pressed score of vectors, (n,)."""
        device = vectors.device
        # What an attack does to a map may lie far outside of what was seen, and still needs a gradient.
        inputs = ((vectors - self.centre.to(device)) / self.spread.to(device)).asinh()
        w = {name: value.to(device) for name, value in self.weights.items()}
        hidden = nn.functional.silu(nn.functional.linear(inputs, w["0.weight"], w["0.bias"]))
        return nn.functional.linear(hidden, w["2.weight"], w["2.bias"]).squeeze(1)


def states_of(stand_ins: Mapping[str, StandIn]) -> dict[str, Any]:
    """Return what stand-ins learned, as tensors and JSON values in nested dicts, by name."""
    return {name: _fields_of(made) for name, made in stand_ins.items()}


def from_states(states: Mapping[str, Any]) -> dict[str, StandIn]:
    """Return the stand-ins that :func:`states_of` gave.

    Raises:
        TypeError: where a field is missing or unknown.
    """
    made: dict[str, StandIn] = {}
    for name, kind in (("student", Student), ("gaussian", Gaussian), ("nearest", Nearest)):
        if name in states:
            state = dict(states[name])
            made[name] = kind(**(state | {"units": Units(**state["units"])} if "units" in state else state))
    return made


def _fields_of(made: object) -> dict[str, Any]:
    found = {}
    for name, value in vars(made).items():
        found[name] = dict(vars(value)) if isinstance(value, Units) else value
    return found


def _network(numbers: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(numbers, _HIDDEN), nn.SiLU(), nn.Linear(_HIDDEN, 1))


def _pressed(excess: Tensor) -> Tensor:
    """Return what is far above or below 0 by its logarithm, odd and smooth; at most 20."""
    excess = excess.nan_to_num(nan=1e8, posinf=1e8, neginf=-1e8)
    return excess.sign() * excess.abs().log1p()
