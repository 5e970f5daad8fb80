"""Detection from one latent code of all hidden activations together (Pardo et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal, Self, get_args

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Count
from ...harness.tracing.traces import LiveTrace, Need, Traces
from ..base.classes import class_groups, class_means, on_scale, replayable, scale_of
from ..base.detector import Detector, DetectorInfo
from ..base.parameters import check_fitted, check_images, check_layers, selection
from ..base.splits import held_apart
from ..codes.autoencoder import Autoencoder, fit_in_components, load_autoencoder
from ..codes.latent import PCA, Standardiser, fit_pca, fit_standardiser

Part = Literal["reconstruction", "distance", "neighbours", "fringe"]
Component = Literal["all", "reconstruction", "distance", "neighbours", "fringe"]
PARTS: tuple[Part, ...] = get_args(Part)
_BATCH = 512
_HELD_OUT = 8


class Latent(Detector):
    """Encodes the activations of all hidden layers as one vector, and scores what the code misses and where it lies.

    Every unit is standardised, constant ones are dropped, and units of a layer with d of them are weighted by 1 /
    sqrt(d), so that a wide layer does not dominate. An autoencoder inputs → hidden → latent → hidden → inputs is
    trained on clean fit images only, in the leading principal components (64, or four for each number of the code):
    of 1,000 images, most directions of thousands of units are noise, which it would learn by heart. The paper shows
    such a code of "all the possible hidden activations" and finds classification errors in the "fringe areas"
    between classes; it gives neither sizes nor a score, so the components are ours:

    - ``reconstruction``: the root mean square of what the decoder does not give back.
    - ``distance``: the Mahalanobis distance, in the code, to the mean of the predicted class, under one covariance
      within classes (Ledoit and Wolf's shrinkage).
    - ``neighbours``: the mean distance, under the same covariance, to the ``neighbours`` nearest fit images of the
      predicted class.
    - ``fringe``: the log-odds of the other classes to the predicted one in the density at the code, from Gaussian
      kernels on the fit images, as wide as Scott's rule says (1992): which classes lie around it.

    The score is their mean, each in standard deviations of clean images. One in eight fit images is kept from the
    autoencoder and only sets these scales, because a network reconstructs its training images too well. Class means,
    covariance and neighbours come from the images that the model classifies correctly; a class without one has the mean
    of all, and the images of all.

    Training takes O(images · 64 · (hidden · epochs + inputs)), scoring O(inputs · hidden + fit images · latent) per
    image.

    Args:
        encoder: the autoencoder, or principal components of the same number as a linear baseline.
        layers: taps to read: ``all``, ``last:N``, ``first:N``, or names.
        latent: size of the code.
        units: units that are read of each layer, a seeded sample.
        hidden: sizes of the encoder's hidden layers; the decoder mirrors them.
        epochs: passes over the fit images.
        neighbours: how many of the nearest fit images count.
        component: one of the components alone, or all.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="Latent distance",
        paper="Pardo et al. 2019, Coloring the Black Box: Visualizing neural network behavior with a "
        "self-introspective model, arXiv 1910.04903",
        needs=(Need("full", units=256),),
        surrogate="exact",
        summary="An autoencoder of all hidden activations: what it misses, and how far the code is from its class.",
    )

    def __init__(
        self,
        encoder: Literal["autoencoder", "pca"] = "autoencoder",
        layers: str | list[str] = "all",
        latent: Count = 16,
        units: Count = 256,
        hidden: tuple[Count, ...] = (512, 128),
        epochs: Count = 15,
        neighbours: Count = 10,
        component: Component = "all",
    ) -> None:
        self.encoder = encoder
        self.layers = check_layers(layers)
        self.latent = latent
        self.units = units
        self.hidden = list(hidden)
        self.epochs = epochs
        self.neighbours = neighbours
        self.component = component
        self.inputs: dict[str, Tensor] = {}
        self.model: dict[str, Tensor] = {}
        self.classes: dict[str, Tensor] = {}
        self.scales: dict[str, list[float]] = {}
        self._ready: _Model | None = None

    @property
    def needs(self) -> tuple[Need, ...]:
        """At most ``units`` activations of each of ``layers``."""
        return (Need("full", selection(self.layers), units=self.units),)

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Train the encoder and estimate the classes; ``perturbed`` is ignored.

        Raises:
            UsageError: for fewer than two clean images, or activations that never vary.
        """
        check_images("latent", clean)
        self._ready = None
        taps = clean.tap_names()
        train, rest = held_apart(clean, len(clean) // _HELD_OUT if len(clean) >= 4 * _HELD_OUT else 0)
        standardiser = fit_standardiser(_concatenated(train, taps))
        weights = _balance(standardiser.scale, [clean.units(tap, "full") for tap in taps])
        self.inputs = {"mean": standardiser.mean, "scale": standardiser.scale * weights}
        self._fit_encoder(train, taps)
        self._fit_classes(train)
        parts = self._parts_of(rest)
        self.scales = {name: scale_of(parts[name]) for name in PARTS}
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,); see the class."""
        check_fitted("latent", self.scales)
        return self._combine(self._parts_of(traces))

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the score itself, given the class that the live logits predict, (n,)."""
        check_fitted("latent", self.scales)
        inputs = torch.cat([live.full(tap) for tap in live.tap_names()], 1)
        return self._combine(self._model(live.logits.device).parts(inputs, live.logits.argmax(1)))

    def positions(self, traces: Traces) -> Tensor:
        """Where images lie on the latent map, float32 (n, latent): whitened codes, so that distances mean something."""
        check_fitted("latent", self.scales)
        model = self._model(torch.device("cpu"))
        parts = [torch.empty(0, len(self.classes["whitening"]))]
        with torch.no_grad():
            parts += [model.positions(x) for x in _concatenated(traces, traces.tap_names())]
        return torch.cat(parts)

    def landmarks(self) -> tuple[Tensor, Tensor]:
        """Return the images that the classes were learned from, which the model gets right.

        Returns:
            positions, float32 (n, latent), and classes, int64 (n,).
        """
        check_fitted("latent", self.scales)
        return self.classes["points"], self.classes["point_classes"]

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self._ready = None
        super().load_state(state)

    def _fit_encoder(self, train: Traces, taps: tuple[str, ...]) -> None:
        width = len(self.inputs["mean"])
        standardiser = Standardiser(**self.inputs)
        read = replayable(lambda: (standardiser.apply(x) for x in _concatenated(train, taps)), len(train) * width)
        if self.encoder == "pca":
            found = fit_pca(read, self.latent)
            self.model = {name: value.contiguous() for name, value in vars(found).items()}
            return
        # An epoch has some 32 steps also where images are few: Adam needs hundreds of steps to get anywhere.
        size = max(8, min(128, len(train) // 32))
        trained = fit_in_components(read, self.latent, tuple(self.hidden), self.epochs, train.generator, size)
        self.model = {name: value.detach().clone() for name, value in trained.state_dict().items()}

    def _fit_classes(self, train: Traces) -> None:
        from sklearn.covariance import ledoit_wolf

        groups = class_groups(train)
        classes = train.logits.shape[1]
        model = self._model(torch.device("cpu"))
        taps = train.tap_names()
        codes = torch.cat([model.codes(x) for x in _concatenated(train, taps)]).double()
        means = class_means(codes, groups, classes)
        inside = groups >= 0
        residuals = codes[inside] - means[groups[inside]]
        covariance = torch.from_numpy(ledoit_wolf(residuals.numpy(), assume_centered=True)[0])
        # With one image per class nothing varies; the floor keeps the inverse finite.
        floor = max(1e-6 * float(codes.var(0, correction=0).mean()), 1e-12)
        covariance += floor * torch.eye(len(covariance), dtype=torch.float64)
        whitening = torch.linalg.inv(torch.linalg.cholesky(covariance))
        self.classes = {
            "means": means.float(),
            "whitening": whitening.float().contiguous(),
            "points": (codes[inside] @ whitening.T).float(),
            "point_classes": groups[inside],
        }
        self._ready = None

    def _parts_of(self, traces: Traces) -> dict[str, Tensor]:
        model = self._model(traces.logits.device)
        parts: dict[str, list[Tensor]] = {name: [traces.logits.new_empty(0)] for name in PARTS}
        start = 0
        for inputs in _concatenated(traces, traces.tap_names()):
            classes = traces.predictions[start : start + len(inputs)]
            start += len(inputs)
            with torch.no_grad():
                found = model.parts(inputs, classes)
            for name in PARTS:
                parts[name].append(found[name].double())
        return {name: torch.cat(values) for name, values in parts.items()}

    def _combine(self, parts: Mapping[str, Tensor]) -> Tensor:
        chosen = PARTS if self.component == "all" else (self.component,)
        return torch.stack([on_scale(parts[name], self.scales[name]) for name in chosen]).mean(0)

    def _model(self, device: torch.device) -> _Model:
        if self._ready is None or self._ready.device != device:
            encoder: PCA | Autoencoder
            tensors = {name: value.to(device) for name, value in self.model.items()}
            if self.encoder == "pca":
                encoder = PCA(**tensors)
            else:
                encoder = load_autoencoder(len(self.inputs["mean"]), self.latent, tuple(self.hidden), tensors)
            standardiser = Standardiser(**{name: value.to(device) for name, value in self.inputs.items()})
            classes = {name: value.to(device) for name, value in self.classes.items()}
            self._ready = _Model(standardiser, encoder, classes, self.neighbours, device)
        return self._ready


class _Model:
    """The fitted pieces on one device; everything here can be differentiated."""

    def __init__(
        self,
        standardiser: Standardiser,
        encoder: PCA | Autoencoder,
        classes: dict[str, Tensor],
        neighbours: int,
        device: torch.device,
    ) -> None:
        self.standardiser, self.encoder, self.classes, self.device = standardiser, encoder, classes, device
        self.neighbours = neighbours

    def codes(self, activations: Tensor) -> Tensor:
        """(n, latent) of raw activations (n, inputs)."""
        return self.encoder.encode(self.standardiser.apply(activations))

    def positions(self, activations: Tensor) -> Tensor:
        """Return whitened codes, (n, latent), of raw activations (n, inputs)."""
        return self.codes(activations) @ self.classes["whitening"].T

    def parts(self, activations: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Return the components, (n,) each, of raw activations (n, inputs) given the predicted classes."""
        inputs = self.standardiser.apply(activations)
        codes = self.encoder.encode(inputs)
        residual = (inputs - self.encoder.decode(codes)).square().mean(1)
        offset = (codes - self.classes["means"][classes]) @ self.classes["whitening"].T
        # The constants keep the gradients of the roots finite at 0.
        return {
            "reconstruction": (residual + 1e-12).sqrt(),
            "distance": (offset.square().sum(1) + 1e-12).sqrt(),
            **self._around(codes @ self.classes["whitening"].T, classes),
        }

    def _around(self, codes: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Return what the fit images around whitened codes (n, latent) say, (n,) each."""
        points, owners = self.classes["points"], self.classes["point_classes"]
        distances = torch.cdist(codes, points, compute_mode="donot_use_mm_for_euclid_dist")
        own = owners == classes.unsqueeze(1)
        own = own | ~own.any(1, keepdim=True)
        count = min(self.neighbours, len(points))
        nearest = distances.masked_fill(~own, math.inf).topk(count, 1, largest=False).values
        # A class may have fewer images than neighbours are asked for.
        found = nearest.isfinite()
        mean = torch.where(found, nearest, 0.0).sum(1) / found.sum(1)
        exponents = -distances.square() / (2 * _bandwidth(*points.shape) ** 2)
        other = owners != classes.unsqueeze(1)
        other = other | ~other.any(1, keepdim=True)
        inside, outside = (exponents.masked_fill(~mask, -math.inf).logsumexp(1) for mask in (own, other))
        return {"neighbours": mean, "fringe": outside - inside}


def _bandwidth(n: int, d: int) -> float:
    """Scott's rule for whitened points."""
    return float(n ** (-1 / (d + 4)))


def _concatenated(traces: Traces, taps: tuple[str, ...]) -> Iterator[Tensor]:
    for part in traces.batches(_BATCH):
        yield torch.cat([part.full(tap) for tap in taps], 1)


def _balance(scale: Tensor, units: list[int]) -> Tensor:
    """Weights proportional to 1 / sqrt(varying units of the layer), with mean square 1 over all varying units."""
    weights = torch.cat([(part > 0) / (part > 0).sum().clamp(min=1).sqrt() for part in torch.split(scale, units)])
    varying = int((scale > 0).sum())
    if not varying:
        raise UsageError("latent found no unit whose activation varies over the fit images: choose other layers.")
    mean_square = float(weights.square().sum()) / varying
    return weights / math.sqrt(mean_square)
