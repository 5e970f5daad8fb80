"""The latent map: codes of all hidden activations, how pure classes are in it, and tracks of perturbations through it.

The code itself is that of the detector ``latent`` (standardised units, layers weighted alike, an autoencoder or
principal components); here it is read as a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...detectors.activations.latent import Latent
from ...detectors.codes.autoencoder import Autoencoder
from ...detectors.codes.latent import PCA, Standardiser
from ...harness.tracing.traced_model import TracedModel
from ...harness.tracing.traces import Need, Traces
from ..common.recording import BATCH

# Images per traced batch of tracks: an image has as many as there are steps.
_TRACKED = 128

EncoderName = Literal["autoencoder", "pca"]


class Code:
    """A fitted latent code: encoder, class means and fit images, from a fitted :class:`Latent`.

    Attributes:
        detector: the fitted detector.
        size: how many numbers a code has; fewer than asked for where the data vary in fewer directions.
    """

    def __init__(self, detector: Latent) -> None:
        self.detector = detector
        self._standardiser = Standardiser(**detector.inputs)
        self._encoder: PCA | Autoencoder
        if detector.encoder == "pca":
            self._encoder = PCA(**detector.model)
        else:
            width = len(detector.inputs["mean"])
            self._encoder = Autoencoder(width, detector.latent, tuple(detector.hidden))
            self._encoder.load_state_dict(detector.model)
            self._encoder.eval().requires_grad_(False)
        self.size = detector.classes["means"].shape[1]

    def standardise(self, activations: Tensor) -> Tensor:
        """The encoder's input (n, d) for raw activations (n, d): standardised, layers weighted alike."""
        return self._standardiser.apply(activations)

    def encode(self, activations: Tensor) -> Tensor:
        """Codes float32 (n, size) of raw activations (n, d)."""
        return torch.cat([self._encoder.encode(self.standardise(x)) for x in activations.split(BATCH)])

    def residual(self, activations: Tensor) -> Tensor:
        """What the decoder does not give back of :meth:`standardise`, (n, d)."""
        inputs = self.standardise(activations)
        return inputs - self._encoder.decode(self._encoder.encode(inputs))

    def whiten(self, codes: Tensor) -> Tensor:
        """Codes in which the spread within classes is the same in all directions."""
        return codes @ self.detector.classes["whitening"].T

    def class_distances(self, codes: Tensor) -> Tensor:
        """Mahalanobis distances (n, classes) to the means of the classes, as the detector measures them."""
        centres = self.whiten(self.detector.classes["means"])
        return torch.cdist(self.whiten(codes), centres, compute_mode="donot_use_mm_for_euclid_dist")


def fit_code(detector: Latent, fit: Traces, draws: torch.Generator) -> Code:
    """Fit a latent code on clean traces with labels."""
    return Code(detector.fit(replace(fit, random=draws)))


def activations(traces: Traces) -> Tensor:
    """All hidden activations as one vector per image, float32 (n, d); held in memory."""
    taps = traces.tap_names()
    parts = [torch.cat([part.full(tap) for tap in taps], 1) for part in traces.batches(BATCH)]
    return torch.cat(parts) if parts else torch.empty(0, sum(traces.units(tap, "full") for tap in taps))


def purity(codes: Tensor, labels: Tensor, neighbours: int) -> Tensor:
    """Which share of its nearest neighbours has an image's class, float64 (n,); an image is not its own neighbour.

    Args:
        codes: (n, k), n at least 2; Euclidean distances count.
        labels: int64 (n,).
        neighbours: how many; at most n − 1.
    """
    from sklearn.neighbors import NearestNeighbors

    count = min(neighbours, len(codes) - 1)
    # Without an argument scikit-learn leaves each point out of its own neighbours, also among duplicates.
    nearest = NearestNeighbors(n_neighbors=count).fit(codes.numpy()).kneighbors(return_distance=False)
    return (labels[torch.from_numpy(nearest).long()] == labels.unsqueeze(1)).double().mean(1)


def chance_purity(labels: Tensor) -> float:
    """The expected purity where neighbours have nothing to do with classes."""
    counts = torch.bincount(labels).double()
    n = len(labels)
    return float((counts * (counts - 1)).sum() / (n * (n - 1)))


@dataclass(frozen=True, eq=False)
class Tracks:
    """Images on their straight way to other ones.

    Attributes:
        share: float64 (steps,), t from 0 (the clean image) to 1 (the other).
        codes: by name of a code, float32 (m, steps, size).
        logits: float32 (m, steps, classes).
    """

    share: Tensor
    codes: Mapping[str, Tensor]
    logits: Tensor

    def flips(self) -> Tensor:
        """The first t at which the clean prediction is no longer the largest logit, float64 (m,); NaN where never."""
        clean = self.logits[:, 0].argmax(1)
        own = self.logits.gather(2, clean.view(-1, 1, 1).expand(-1, self.logits.shape[1], 1)).squeeze(2)
        others = self.logits.scatter(2, clean.view(-1, 1, 1).expand(-1, self.logits.shape[1], 1), -torch.inf)
        return first_crossing(self.share, others.amax(2) - own)

    def nearing(self, name: str, code: Code, clean: Tensor, reached: Tensor) -> Tensor:
        """Distance to the mean of class ``clean`` minus that to class ``reached``, float64 (m, steps)."""
        m, steps, size = self.codes[name].shape
        distances = code.class_distances(self.codes[name].reshape(-1, size)).reshape(m, steps, -1)
        rows = torch.arange(m)
        return (distances[rows, :, clean] - distances[rows, :, reached]).double()


def first_crossing(share: Tensor, values: Tensor) -> Tensor:
    """The first t at which each row of (m, steps) rises above 0, linear between steps, float64 (m,); NaN: never.

    A row that starts above 0 crosses at the first t.
    """
    values = values.double()
    above = values > 0
    crosses = above.any(1)
    last = above.int().argmax(1)
    before = (last - 1).clamp(min=0)
    rows = torch.arange(len(values))
    low, high = values[rows, before], values[rows, last]
    part = torch.where(last > 0, -low / (high - low).clamp(min=1e-300), 0.0).clamp(0, 1)
    found = share[before] + part * (share[last] - share[before])
    return torch.where(crosses, found, torch.nan)


def trace_tracks(
    needs: Sequence[Need],
    network: TracedModel,
    codes: Mapping[str, Code],
    clean: Tensor,
    other: Tensor,
    steps: int,
) -> Tracks:
    """Encode x + t · δ for t = 0 ... 1.

    Args:
        needs: what is traced.
        network: the model.
        codes: by name.
        clean: x, float32 (m, channels, height, width) in [0, 1].
        other: x + δ, the same shape.
        steps: at least 2; the first is ``clean`` itself, the last ``other`` itself.
    """
    share = torch.linspace(0, 1, steps, dtype=torch.float64)
    weights = share.to(clean.dtype).view(1, -1, 1, 1, 1)
    found: dict[str, list[Tensor]] = {name: [] for name in codes}
    logits: list[Tensor] = []
    size = max(1, _TRACKED // steps)
    for x, y in zip(clean.split(size), other.split(size), strict=True):
        between = x.unsqueeze(1) + weights * (y - x).unsqueeze(1)
        between[:, -1] = y
        traces = network.codes(needs, between.flatten(0, 1))
        raw = activations(traces)
        for name, code in codes.items():
            found[name].append(code.encode(raw).unflatten(0, (len(x), steps)))
        logits.append(traces.logits.unflatten(0, (len(x), steps)))
    return Tracks(share, {name: torch.cat(parts) for name, parts in found.items()}, torch.cat(logits))


def three(codes: Tensor) -> Tensor:
    """Codes (..., k) with zeros or cuts as points in three dimensions, float32."""
    missing = 3 - codes.shape[-1]
    return torch.nn.functional.pad(codes.float(), (0, missing)) if missing else codes.float()
