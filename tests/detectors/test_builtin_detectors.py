"""What holds for every built-in detector."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from aftershock.detectors.activations.codeshift import CodeShift
from aftershock.detectors.activations.dknn import DeepNeighbours
from aftershock.detectors.activations.kde import KernelDensity
from aftershock.detectors.activations.knn import Neighbours
from aftershock.detectors.activations.latent import Latent
from aftershock.detectors.activations.layer_autoencoders import LayerAutoencoders
from aftershock.detectors.activations.lid import Lid
from aftershock.detectors.activations.mahalanobis import Mahalanobis
from aftershock.detectors.activations.safetynet import SafetyNet
from aftershock.detectors.base.detector import Detector
from aftershock.detectors.bits.bitvector import BitVector
from aftershock.detectors.bits.nap import ActivationPatterns
from aftershock.detectors.combine.combination import CombinedScore
from aftershock.detectors.logits.baselines import Energy, Entropy, KLMatching, Margin, MaxLogit, MaxSoftmax
from aftershock.detectors.logits.vim_gradnorm import GradNorm, Vim
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.parameters import bind
from aftershock.harness.core.registry import DETECTORS
from aftershock.harness.core.state import join_state, split_state
from aftershock.harness.tracing.traces import Traces
from safetensors.torch import load, save
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from support.activations import World
from torch import Tensor

MAKE: dict[str, Callable[[], Detector]] = {
    "logistic": lambda: BitVector("logistic", "all", regularisation=1e-3),
    "svm": lambda: BitVector("svm", ["conv", "dense"], regularisation=1e-3),
    "bernoulli": lambda: BitVector("bernoulli", "all"),
    "hamming": lambda: BitVector("hamming", "last:2", patterns=40),
    "hamming-margin": lambda: BitVector("hamming", "all", patterns=40, weights="margin"),
    "votes": lambda: BitVector("votes", "all", voters=40),
    "votes-margin": lambda: BitVector("votes", "all", voters=60, weights="margin", by_class=True, smoothing=20),
    "nap": lambda: ActivationPatterns("all"),
    "nap-vote": lambda: ActivationPatterns("all", statistic="max", combine="vote", patterns=30),
    "safetynet": lambda: SafetyNet("all", units=40),
    "safetynet-pooled": lambda: SafetyNet("last:2", "pooled", levels=3, images=120),
    "codeshift": lambda: CodeShift(rows=4, columns=4, epochs=8),
    "codeshift-error": lambda: CodeShift(rows=4, columns=4, epochs=8, statistic="max", component="error"),
    "codeshift-sequence": lambda: CodeShift(rows=4, columns=4, epochs=8, component="sequence"),
    "codeshift-disagreement": lambda: CodeShift(rows=3, columns=4, epochs=8, component="disagreement"),
    "codeshift-distance": lambda: CodeShift(rows=4, columns=4, epochs=8, component="distance", weighting="agreement"),
    "codeshift-kmeans": lambda: CodeShift(encoder="kmeans", rows=4, columns=4, statistic="mean+std"),
    "codeshift-kmeans-distance": lambda: CodeShift(encoder="kmeans", rows=4, columns=4, component="distance"),
    "autoencoder": lambda: Latent(latent=6, units=40, hidden=(32,), epochs=10),
    "autoencoder-distance": lambda: Latent(latent=6, units=40, hidden=(32,), epochs=20, component="distance"),
    "pca": lambda: Latent("pca", latent=6, units=40),
    "pca-reconstruction": lambda: Latent("pca", latent=6, units=40, component="reconstruction"),
    "pca-neighbours": lambda: Latent("pca", latent=6, units=40, component="neighbours"),
    "pca-fringe": lambda: Latent("pca", latent=6, units=40, component="fringe"),
    "layerwise": lambda: LayerAutoencoders(inputs="full", units=40, latent=8, hidden=32, epochs=10),
    "layerwise-pca": lambda: LayerAutoencoders(encoder="pca"),
    "layerwise-svc": lambda: LayerAutoencoders("svc", encoder="pca", inputs="full", units=40, latent=8),
    "layerwise-logistic": lambda: LayerAutoencoders("logistic", encoder="pca", inputs="full", units=40, latent=10),
    "msp": MaxSoftmax,
    "energy": Energy,
    "entropy": Entropy,
    "margin": Margin,
    "max-logit": MaxLogit,
    "kl-matching": KLMatching,
    "vim": Vim,
    "gradnorm": GradNorm,
    "knn": Neighbours,
    "lid": Lid,
    "lid-mean": lambda: Lid(combination="mean"),
    "lid-full": lambda: Lid(features="full", units=50, combination="mean"),
    "dknn": DeepNeighbours,
    "kde": KernelDensity,
    "kde-logistic": lambda: KernelDensity(combination="logistic"),
    "combination": CombinedScore,
    "combination-joint": lambda: CombinedScore(method="mahalanobis"),
    "mahalanobis": Mahalanobis,
    "mahalanobis-layers": lambda: Mahalanobis("all", statistic="std"),
    "mahalanobis-logistic": lambda: Mahalanobis("all", combination="logistic"),
}
# The push is orthogonal to no layer's code, but what each component sees of it differs.
LEAST_AUROC = {
    "codeshift-sequence": 0.9, "codeshift-disagreement": 0.9, "codeshift-distance": 0.9,
    "codeshift-kmeans-distance": 0.9, "pca-fringe": 0.8, "knn": 0.94, "dknn": 0.95, "gradnorm": 0.92, "layerwise": 0.95,
}  # fmt: skip
# Nothing is learned from images; they need no fit.
UNFITTED = ("msp", "energy", "entropy", "margin", "max-logit", "gradnorm")
# Distances of few bits tie a lot, which no smooth stand-in does.
LEAST_RANK_CORRELATION = {"nap": 0.8, "nap-vote": 0.8}
# These count layers: where their few values cannot fall further, they stay.
LEAST_DESCENT = {"codeshift-disagreement": 0.85, "nap-vote": 0.85}

every_detector = pytest.mark.parametrize("name", MAKE)


def fit_new(name: str, world: World) -> Detector:
    detector = MAKE[name]()
    clean = world.traces(world.clean(300, 1), detector.needs, fit=True)
    perturbed = world.traces(world.perturbed(200, 2), detector.needs, fit=True)
    return detector.fit(clean, perturbed if detector.supervised else None)


@pytest.fixture(scope="module")
def fitted(world: World) -> Callable[[str], Detector]:
    """Fitted once by name; for tests that only score."""

    @cache
    def fit(name: str) -> Detector:
        return fit_new(name, world)

    return fit


def auroc(negative: Tensor, positive: Tensor) -> float:
    truth = [0] * len(negative) + [1] * len(positive)
    return float(roc_auc_score(truth, torch.cat([negative, positive]).double().numpy()))


@every_detector
def test_planted_perturbation_scores_higher_and_a_clean_one_does_not(name: str, world: World, fitted: Any) -> None:
    detector = fitted(name)
    clean, again, perturbed = (
        detector.score(world.traces(sample, detector.needs))
        for sample in (world.clean(300, 3), world.clean(300, 4), world.perturbed(300, 5))
    )
    assert auroc(clean, perturbed) > LEAST_AUROC.get(name, 0.97)
    # 300 against 300 without a difference: the standard error of the AUROC is 0.024.
    assert abs(auroc(clean, again) - 0.5) < 0.1


@every_detector
def test_scores_do_not_depend_on_how_images_are_cut_into_batches(name: str, world: World, fitted: Any) -> None:
    detector = fitted(name)
    sample = world.clean(70, 6)
    traces = world.traces(sample, detector.needs)
    whole = detector.score(traces)
    assert whole.shape == (70,) and bool(whole.isfinite().all())
    for size in (1, 33):
        parts = torch.cat([detector.score(part) for part in traces.batches(size)])
        torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-5)
    order = torch.randperm(70, generator=torch.Generator().manual_seed(0))
    shuffled = detector.score(world.traces(sample.take(order), detector.needs))
    torch.testing.assert_close(shuffled, whole[order], rtol=1e-5, atol=1e-5)


@every_detector
def test_no_image_gives_no_score(name: str, world: World, fitted: Any) -> None:
    detector = fitted(name)
    traces = world.traces(world.clean(5, 6), detector.needs)
    assert detector.score(traces[:0]).shape == (0,)


@every_detector
def test_same_seed_same_scores(name: str, world: World, fitted: Any) -> None:
    first = fitted(name)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    second = fit_new(name, world)
    assert torch.equal(torch.get_rng_state(), before), "fit drew from the global generator"
    traces = world.traces(world.perturbed(50, 7), first.needs)
    assert torch.equal(first.score(traces), second.score(traces))


@every_detector
def test_state_survives_storage(name: str, world: World, fitted: Any) -> None:
    detector = fitted(name)
    tensors, value = split_state(detector.state())
    stored = save(tensors), json.dumps(value)
    other = MAKE[name]()
    other.load_state(join_state(load(stored[0]), json.loads(stored[1])))
    assert other.needs == detector.needs
    sample = world.perturbed(50, 8)
    traces = world.traces(sample, detector.needs)
    assert torch.equal(other.score(traces), detector.score(traces))
    live = world.live(sample, detector.needs)[0]
    assert torch.equal(other.surrogate(live), detector.surrogate(live))


@every_detector
def test_fitting_again_forgets_the_first_fit(name: str, world: World) -> None:
    detector = fit_new(name, world)
    traces = world.traces(world.perturbed(50, 8), detector.needs)
    detector.score(traces)
    perturbed = world.traces(world.perturbed(60, 21), detector.needs)
    detector.fit(world.traces(world.clean(120, 20), detector.needs, fit=True), perturbed)
    fresh = MAKE[name]().fit(world.traces(world.clean(120, 20), detector.needs, fit=True), perturbed)
    assert torch.equal(detector.score(traces), fresh.score(traces))


@every_detector
def test_surrogate_follows_the_score(name: str, world: World, fitted: Any) -> None:
    detector = fitted(name)
    clean, perturbed = world.clean(60, 9), world.perturbed(60, 10)
    scores, stand_ins = [], []
    for sample in (clean, perturbed):
        scores.append(detector.score(world.traces(sample, detector.needs)))
        live, leaves = world.live(sample, detector.needs)
        stand_in = detector.surrogate(live)
        assert stand_in.shape == (60,)
        gradients = torch.autograd.grad(stand_in.sum(), leaves, allow_unused=True)
        used = [g for g in gradients if g is not None]
        assert used and all(bool(g.isfinite().all()) for g in used)
        moved = torch.stack([g.abs().sum(1) for g in used]).sum(0)
        assert bool((moved > 0).all()), "an image gets no gradient"
        stand_ins.append(stand_in.detach())
    if detector.surrogate_kind == "exact":
        torch.testing.assert_close(torch.cat(stand_ins).double(), torch.cat(scores).double(), rtol=1e-4, atol=1e-4)
    else:
        assert detector.surrogate_kind in ("relaxed", "straight-through")
        assert spearmanr(torch.cat(stand_ins), torch.cat(scores))[0] > LEAST_RANK_CORRELATION.get(name, 0.9)
        assert auroc(*stand_ins) > 0.85


@every_detector
def test_surrogate_descends_the_score(name: str, world: World, fitted: Any) -> None:
    detector = fitted(name)
    sample = world.perturbed(40, 11)
    before = detector.score(world.traces(sample, detector.needs))
    moved = sample
    for _ in range(30):
        live, leaves = world.live(moved, detector.needs)
        gradients = torch.autograd.grad(detector.surrogate(live).sum(), leaves, allow_unused=True)
        steps = [0.05 * g.sign() if g is not None else 0 for g in gradients]
        names = [tap.name for tap in world.taps]
        moved = type(sample)(
            {n: leaf.detach() - step for n, leaf, step in zip(names, leaves[:-1], steps[:-1], strict=True)},
            leaves[-1].detach() - steps[-1],
            sample.labels,
        )
    after = detector.score(world.traces(moved, detector.needs))
    assert float((after < before).double().mean()) > LEAST_DESCENT.get(name, 0.95)
    assert float((after <= before).double().mean()) > 0.95


@every_detector
def test_classes_that_the_fit_images_lack_get_finite_scores(name: str, world: World) -> None:
    detector = MAKE[name]()
    sample = world.clean(200, 12)
    seen = sample.take((sample.labels < 2) & (sample.logits.argmax(1) < 2))
    perturbed = world.traces(world.perturbed(80, 13), detector.needs)
    detector.fit(world.traces(seen, detector.needs, fit=True), perturbed)
    unseen = sample.take(sample.logits.argmax(1) == 4)
    assert bool(detector.score(world.traces(unseen, detector.needs)).isfinite().all())
    assert bool(detector.surrogate(world.live(unseen, detector.needs)[0]).isfinite().all())


@every_detector
@pytest.mark.parametrize("count", [2, 7])
def test_a_handful_of_fit_images_gives_finite_scores(name: str, count: int, world: World) -> None:
    detector = MAKE[name]()
    perturbed = world.traces(world.perturbed(count, 14), detector.needs)
    detector.fit(world.traces(world.clean(count, 15), detector.needs, fit=True), perturbed)
    assert bool(detector.score(world.traces(world.clean(20, 16), detector.needs)).isfinite().all())


@every_detector
def test_a_model_that_is_never_right_can_be_fitted(name: str, world: World) -> None:
    detector = MAKE[name]()
    sample = world.clean(60, 17, wrong=1.1)
    assert not bool((sample.logits.argmax(1) == sample.labels).any())
    perturbed = world.traces(world.perturbed(40, 18), detector.needs)
    detector.fit(world.traces(sample, detector.needs, fit=True), perturbed)
    assert bool(detector.score(world.traces(sample, detector.needs)).isfinite().all())


@every_detector
def test_units_that_never_vary_do_no_harm(name: str, world: World) -> None:
    """A dead map is constant over the fit images; at score time it moves a little."""
    detector = MAKE[name]()

    def dead(x: Tensor) -> Tensor:
        return torch.cat([x.new_full((len(x), 9), -1), x[:, 9:]], 1)

    samples = [world.clean(150, 19), world.perturbed(100, 20), world.clean(80, 21)]
    samples = [s.changed("block.relu", dead).changed("dense", dead) for s in samples]
    clean, perturbed, held_out = samples
    detector.fit(world.traces(clean, detector.needs, fit=True), world.traces(perturbed, detector.needs, fit=True))
    assert bool(detector.score(world.traces(held_out, detector.needs)).isfinite().all())
    revived = held_out.changed("dense", lambda x: torch.cat([x.new_full((len(x), 9), 1e-3), x[:, 9:]], 1))
    assert bool(detector.score(world.traces(revived, detector.needs)).isfinite().all())


@every_detector
def test_info_is_complete(name: str) -> None:
    detector = MAKE[name]()
    info = detector.info
    assert info.title and info.paper and info.summary and info.surrogate in ("exact", "relaxed", "straight-through")


@pytest.mark.parametrize("name", [n for n in MAKE if n not in UNFITTED])
def test_scoring_before_fitting_says_so(name: str, world: World) -> None:
    detector = MAKE[name]()
    with pytest.raises(UsageError, match="not fitted"):
        detector.score(world.traces(world.clean(3, 1), detector.needs))
    with pytest.raises(UsageError, match="not fitted"):
        detector.surrogate(world.live(world.clean(3, 1), detector.needs)[0])


@pytest.mark.parametrize("name", [n for n in MAKE if n not in UNFITTED])
def test_fitting_on_no_image_says_so(name: str, world: World) -> None:
    detector = MAKE[name]()
    traces: Traces = world.traces(world.clean(3, 1), detector.needs, fit=True)
    with pytest.raises(UsageError, match=r"data\.fit"):
        detector.fit(traces[:0], traces)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bitvector", {"method": "forest"}),
        ("bitvector", {"layers": []}),
        ("bitvector", {"layers": ""}),
        ("bitvector", {"regularisation": 0.0}),
        ("bitvector", {"regularisation": float("inf")}),
        ("bitvector", {"smoothing": -1.0}),
        ("bitvector", {"patterns": -1}),
        ("bitvector", {"temperature": 0.0}),
        ("codeshift", {"statistic": "median"}),
        ("codeshift", {"rows": 0}),
        ("codeshift", {"columns": 0}),
        ("codeshift", {"epochs": 0}),
        ("codeshift", {"smoothing": 0.0}),
        ("codeshift", {"component": "none"}),
        ("codeshift", {"temperature": float("nan")}),
        ("latent", {"encoder": "vae"}),
        ("latent", {"latent": 0}),
        ("latent", {"units": 0}),
        ("latent", {"hidden": (512, 0)}),
        ("latent", {"hidden": "512"}),
        ("latent", {"epochs": 0}),
        ("latent", {"component": "error"}),
        ("latent", {"layers": [1]}),
        ("msp", {"temperature": 0.0}),
        ("energy", {"temperature": -1.0}),
        ("mahalanobis", {"layers": ["relu", ""]}),
        ("mahalanobis", {"statistic": "sum"}),
    ],
)
def test_wrong_parameters_are_named(name: str, parameters: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(parameters))):
        DETECTORS.get(name)(**parameters)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("bitvector", {"method": "svm", "layers": ["a", "b"], "regularisation": "1/1000", "patterns": 0}),
        ("codeshift", {"layers": "last:3", "rows": 5, "component": "sequence"}),
        ("latent", {"encoder": "pca", "hidden": [64, 32], "latent": 3}),
        ("energy", {"temperature": 2}),
        ("mahalanobis", {"layers": "all", "statistic": "max"}),
    ],
)
def test_parameters_of_a_suite_are_taken(name: str, parameters: dict[str, Any]) -> None:
    factory = DETECTORS.get(name)
    bound, problems = bind(factory, parameters)
    assert not problems
    assert isinstance(factory(**bound), Detector)
