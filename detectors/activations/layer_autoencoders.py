"""Detection from one small autoencoder per layer (Wójcik et al. 2020)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Self

import torch
from torch import Tensor

from ...harness.core.ranges import Count, Positive
from ...harness.tracing.traces import LiveTrace, Need, Traces
from ..base.classes import class_groups, replayable
from ..base.detector import Detector, DetectorInfo, Surrogate
from ..base.parameters import (
    check_fitted,
    check_images,
    check_layers,
    check_perturbed,
    selection,
)
from ..base.splits import exclude_training_sources, held_apart
from ..codes.autoencoder import Autoencoder, fit_autoencoders, imq_mmd, load_autoencoder
from ..codes.latent import PCA, Batches, Standardiser, fit_pca, fit_standardiser
from .isolation_forest import IsolationTrees, fit_isolation

Method = Literal["forest", "svc", "logistic"]
Encoder = Literal["wae", "autoencoder", "pca"]
Inputs = Literal["full", "pooled"]
_BATCH = 512
# The prior's variance in the authors' code.
_PRIOR_VARIANCE = 2.0
# Samples per tree: what the forest's authors found enough, and scikit-learn's default.
_TREE_SAMPLES = 256


class LayerAutoencoders(Detector):
    """Encodes every layer by an autoencoder of its own, and judges all layers' codes together.

    Unsupervised (``forest``): each layer gives two features, the mean squared reconstruction error and the length of
    the latent code; an isolation forest of clean images' features scores. Supervised (``svc``, ``logistic``): a
    support vector machine with a Gaussian kernel, or logistic regression, on the layers' latent codes side by side,
    between clean images and perturbed ones, which weigh the same in total.

    The paper trains convolutional Wasserstein autoencoders (MMD with inverse multiquadratics) on whole feature maps for
    150 epochs. Here, so that a layer takes a second and not an hour: fully connected ones, of a layer's pooled maps
    or of a sample of its units, each number standardised; layers of one shape are trained side by side. Others of
    its numbers are kept: the prior's variance of 2, the weight of the MMD of 1e-4, and the latent size of 64, or a
    quarter of the inputs where that is less. One in four fit images is kept from the autoencoders and grows the
    forest (those that the model classifies correctly): on images that they were trained on, autoencoders err too
    little.

    Fitting takes O(images · units · hidden · epochs) per layer, and at most O((clean + perturbed)²) for the ``svc``;
    scoring O(units · hidden) per layer and image, and O(trees) or O(support vectors · codes) for the judge.

    Args:
        method: the unsupervised forest, or a supervised classifier.
        layers: taps to read: ``all``, ``last:N``, ``first:N``, or names.
        encoder: Wasserstein autoencoder, plain autoencoder, or principal components of the same number, the linear
            baseline.
        inputs: one mean per feature map, or activations of single units.
        units: units that are read of each layer, a seeded sample; for ``full`` inputs.
        latent: size of a layer's code, at most.
        hidden: size of the encoder's and the decoder's hidden layer.
        epochs: passes over the fit images.
        penalty: weight of the MMD beside the mean squared error.
        trees: trees of the forest.
        regularisation: the inverse of scikit-learn's C, for the supervised methods.
        temperature: the surrogate of the forest softens splits to this share of a feature's standard deviation.

    Raises:
        UsageError: for a parameter out of range.
    """

    info = DetectorInfo(
        title="Layer-wise autoencoders",
        paper="Wójcik, Morawiecki, Śmieja, Krzyżek, Spurek and Tabor 2020, Adversarial Examples Detection and Analysis "
        "with Layer-wise Autoencoders, arXiv 2006.10013",
        needs=(Need("pooled"),),
        surrogate="relaxed",
        summary="One autoencoder per layer: reconstruction errors and code lengths in an isolation forest.",
    )

    def __init__(
        self,
        method: Method = "forest",
        layers: str | list[str] = "all",
        encoder: Encoder = "wae",
        inputs: Inputs = "pooled",
        units: Count = 256,
        latent: Count = 64,
        hidden: Count = 128,
        epochs: Count = 20,
        penalty: Positive = 1e-4,
        trees: Count = 100,
        regularisation: Positive = 1.0,
        temperature: Positive = 0.5,
    ) -> None:
        self.method: Method = method
        self.layers = check_layers(layers)
        self.encoder: Encoder = encoder
        self.inputs: Inputs = inputs
        self.units = units
        self.latent = latent
        self.hidden = hidden
        self.epochs = epochs
        self.penalty = penalty
        self.trees = trees
        self.regularisation = regularisation
        self.temperature = temperature
        self.coders: list[dict[str, Any]] = []
        self.judge: dict[str, Any] = {}
        self._ready: tuple[torch.device, list[_Coder], _Judge] | None = None

    @property
    def needs(self) -> tuple[Need, ...]:
        """At most ``units`` activations, or the pooled maps, of each of ``layers``."""
        chosen = selection(self.layers)
        return (Need("pooled", chosen) if self.inputs == "pooled" else Need("full", chosen, units=self.units),)

    @property
    def supervised(self) -> bool:
        """Whether ``method`` is a classifier."""
        return self.method != "forest"

    @property
    def surrogate_kind(self) -> Surrogate:
        """Classifiers are differentiable as they are; the forest's splits are relaxed."""
        return "exact" if self.supervised else "relaxed"

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Train the layers' autoencoders on clean images, then the forest, or the classifier on both sets.

        Raises:
            UsageError: for fewer than two clean images, or a supervised method without perturbed ones.
        """
        check_images("layerwise", clean)
        if self.supervised:
            perturbed = check_perturbed(f"layerwise with method = {self.method!r}", perturbed)
        self._ready, self.judge = None, {}
        train, rest = held_apart(clean, len(clean) // 4 if len(clean) >= 16 else 0)
        self.coders = self._fit_coders(train, clean.tap_names())
        if self.supervised and perturbed is not None:
            # Neither side may hold what the autoencoders were trained on: they reconstruct it better than anything new.
            self.judge = self._fit_classifier(
                self._features(rest), self._features(exclude_training_sources(perturbed, train))
            )
        else:
            inside = class_groups(rest) >= 0
            forest = fit_isolation(self._features(rest)[inside], self.trees, _TREE_SAMPLES, clean.generator)
            self.judge = dict(vars(forest))
        self._ready = None
        return self

    def score(self, traces: Traces) -> Tensor:
        """Return float64 (n,); the forest's anomaly, or the classifier's decision function."""
        check_fitted("layerwise", self.judge)
        judge = self._prepared(traces.logits.device)[1]
        features = self._features(traces)
        return judge.anomaly(features) if isinstance(judge, IsolationTrees) else _decision(features.double(), judge)

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return the decision function itself, or the forest with soft splits, (n,)."""
        check_fitted("layerwise", self.judge)
        coders, judge = self._prepared(live.logits.device)
        parts = []
        for tap, coder in zip(live.tap_names(), coders, strict=True):
            parts.append(coder.features(live.pooled(tap) if self.inputs == "pooled" else live.full(tap)))
        features = torch.cat(parts, 1)
        if not isinstance(judge, IsolationTrees):
            return _decision(features, judge)
        return judge.relaxed_anomaly(features, self.temperature * live.temperature, live.straight_through)

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what ``state`` gave."""
        self._ready = None
        super().load_state(state)

    def _read(self, traces: Traces, tap: str) -> Tensor:
        return traces.pooled(tap) if self.inputs == "pooled" else traces.full(tap)

    def _fit_coders(self, train: Traces, taps: Sequence[str]) -> list[dict[str, Any]]:
        """Fit the layers' encoders; those of one shape are trained side by side."""
        fitted: dict[str, dict[str, Any]] = {}
        shapes: dict[tuple[int, int], list[str]] = {}
        for tap in taps:
            standardiser = fit_standardiser(self._read(part, tap) for part in train.batches(_BATCH))
            latent = max(1, min(self.latent, int((standardiser.scale > 0).sum()) // 4))
            fitted[tap] = {"mean": standardiser.mean, "scale": standardiser.scale, "latent": latent}
            shapes.setdefault((len(standardiser.mean), latent), []).append(tap)
        for (width, latent), same in shapes.items():
            standardisers = [Standardiser(fitted[tap]["mean"], fitted[tap]["scale"]) for tap in same]
            models = self._fit_models(train, same, standardisers, width, latent)
            for tap, model in zip(same, models, strict=True):
                fitted[tap]["model"] = {name: value.detach().clone().contiguous() for name, value in model.items()}
        return [fitted[tap] for tap in taps]

    def _fit_models(
        self, train: Traces, taps: Sequence[str], standardisers: Sequence[Standardiser], width: int, latent: int
    ) -> list[Mapping[str, Tensor]]:
        """Return what the encoders of layers of one shape learned from their standardised inputs."""

        def standardised() -> Iterator[Tensor]:
            for part in train.batches(_BATCH):
                pairs = zip(standardisers, taps, strict=True)
                yield torch.stack([standardiser.apply(self._read(part, tap)) for standardiser, tap in pairs])

        read = replayable(standardised, len(taps) * len(train) * width)
        if self.encoder == "pca":
            return [vars(fit_pca(_only(read, index), latent)) for index in range(len(taps))]
        generator = train.generator

        def penalty(codes: Tensor) -> Tensor:
            prior = math.sqrt(_PRIOR_VARIANCE) * torch.randn(codes.shape, generator=generator)
            return self.penalty * imq_mmd(codes, prior.to(codes), _PRIOR_VARIANCE)

        trained = fit_autoencoders(
            read, len(taps), width, latent, (self.hidden,), self.epochs, generator,
            # An epoch has some 16 steps also where images are few.
            batch_size=max(8, min(128, len(train) // 16)),
            penalty=penalty if self.encoder == "wae" else None,
        )  # fmt: skip
        return [model.state_dict() for model in trained]

    def _fit_classifier(self, clean: Tensor, perturbed: Tensor) -> dict[str, Any]:
        standardiser = fit_standardiser([clean])
        rows = standardiser.apply(torch.cat([clean, perturbed])).double().numpy()
        truth = [0] * len(clean) + [1] * len(perturbed)
        fitted: dict[str, Any] = {"mean": standardiser.mean, "scale": standardiser.scale}
        if self.method == "svc":
            from sklearn.svm import SVC

            machine = SVC(C=1 / self.regularisation, class_weight="balanced", random_state=0).fit(rows, truth)
            return fitted | {
                "vectors": torch.from_numpy(machine.support_vectors_.copy()),
                "weights": torch.from_numpy(machine.dual_coef_[0].copy()),
                "bias": float(machine.intercept_[0]),
                "gamma": float(machine._gamma),
            }
        from sklearn.linear_model import LogisticRegression

        line = LogisticRegression(C=1 / self.regularisation, class_weight="balanced", max_iter=1000).fit(rows, truth)
        return fitted | {"weights": torch.from_numpy(line.coef_[0].copy()), "bias": float(line.intercept_[0])}

    def _features(self, traces: Traces) -> Tensor:
        """Return what the judge reads, float32 (n, features)."""
        coders = self._prepared(traces.logits.device)[0]
        found = []
        for part in traces.batches(_BATCH) if len(traces) else (traces,):
            with torch.no_grad():
                layers = zip(part.tap_names(), coders, strict=True)
                found.append(torch.cat([coder.features(self._read(part, tap)) for tap, coder in layers], 1))
        return torch.cat(found)

    def _prepared(self, device: torch.device) -> tuple[list[_Coder], _Judge]:
        """Return encoders and judge on one device; while encoders are fitted there is no judge."""
        if self._ready is None or self._ready[0] != device:
            coders = [_Coder(fitted, self.encoder, self.hidden, self.supervised, device) for fitted in self.coders]
            judge = {n: v.to(device) if isinstance(v, Tensor) else v for n, v in self.judge.items()}
            self._ready = (device, coders, IsolationTrees(**judge) if judge and not self.supervised else judge)
        return self._ready[1], self._ready[2]


# A forest, or what a classifier learned.
_Judge = IsolationTrees | dict[str, Any]


class _Coder:
    """A layer's fitted encoder on one device; everything here can be differentiated."""

    def __init__(
        self, fitted: Mapping[str, Any], encoder: Encoder, hidden: int, codes: bool, device: torch.device
    ) -> None:
        self.standardiser = Standardiser(fitted["mean"].to(device), fitted["scale"].to(device))
        self.codes = codes
        tensors = {name: value.to(device) for name, value in fitted["model"].items()}
        self.model: PCA | Autoencoder
        if encoder == "pca":
            self.model = PCA(**tensors)
        else:
            self.model = load_autoencoder(len(fitted["mean"]), fitted["latent"], (hidden,), tensors)

    def features(self, activations: Tensor) -> Tensor:
        """Of raw activations (n, d): latent codes (n, latent), or reconstruction error and code length (n, 2)."""
        inputs = self.standardiser.apply(activations)
        latent = self.model.encode(inputs)
        if self.codes:
            return latent
        error = (inputs - self.model.decode(latent)).square().mean(1)
        # The constant keeps the root's gradient finite at 0.
        return torch.stack([error, (latent.square().sum(1) + 1e-12).sqrt()], 1)


def _only(batches: Batches, layer: int) -> Batches:
    """Return the stream of one of the layers of (layers, n, d)."""
    return lambda: (rows[layer] for rows in batches())


def _decision(features: Tensor, judge: Mapping[str, Any]) -> Tensor:
    """Return the classifier's decision function, (n,): positive where it says perturbed."""
    rows = Standardiser(judge["mean"], judge["scale"]).apply(features)
    weights: Tensor = judge["weights"].to(rows)
    bias = float(judge["bias"])
    if "vectors" not in judge:
        return (rows * weights).sum(1) + bias
    distances = torch.cdist(rows, judge["vectors"].to(rows), compute_mode="donot_use_mm_for_euclid_dist")
    return (torch.exp(-float(judge["gamma"]) * distances.square()) * weights).sum(1) + bias
