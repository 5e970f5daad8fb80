"""The rules of the detector contract, each as a check that says what was broken and how to mend it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, get_args

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor

from ...detectors.base.detector import Detector, Surrogate
from ..core.errors import UsageError
from ..core.state import join_state, split_state
from ..statistics.detection import auroc
from ..tracing.traces import Need, Traces
from .world import World

# Scores of the same image in other batches may differ by the rounding of float32 sums.
SAME = 1e-4
# What an image may take to score; a run gives up on slower detectors ([limits] score_seconds).
SECONDS_PER_IMAGE = 1.0
# The least AUROC on the planted case that a detector sees best.
NOTICED = 0.7
# The least rank correlation of a surrogate with its score.
FOLLOWS = 0.5


class Broken(Exception):
    """A rule was broken; the text says how."""


class NotApplicable(Exception):
    """The check says nothing about this detector, or cannot be done here; the text says why."""


@dataclass(eq=False)
class Patient:
    """A detector under examination.

    Attributes:
        make: gives a fresh, unfitted instance.
        world: what it is examined on.
    """

    make: Callable[[], Detector]
    world: World
    _fitted: Detector | None = field(default=None, init=False)

    def fresh(self) -> Detector:
        """A new instance, fitted."""
        detector = self.make()
        self.world.fit(detector)
        return detector

    @property
    def fitted(self) -> Detector:
        """An instance fitted once, for checks that only score."""
        if self._fitted is None:
            self._fitted = self.fresh()
        return self._fitted

    def scores(self, images: Tensor, detector: Detector | None = None) -> Tensor:
        """Scores of images, checked for form."""
        detector = detector or self.fitted
        return formed(detector.score(self.world.traces(detector, images)), len(images))


@dataclass(frozen=True)
class Check:
    """One rule.

    Attributes:
        name: a short name.
        rule: what must hold, as a sentence.
        mend: how to repair what breaks it.
        examine: raises :class:`Broken` or :class:`NotApplicable`; may return what it measured.
    """

    name: str
    rule: str
    mend: str
    examine: Callable[[Patient], str | None]


def formed(scores: object, images: int) -> Tensor:
    """Scores as float64, if they are one finite number for each image; raises :class:`Broken`."""
    if not isinstance(scores, Tensor):
        raise Broken(f"score() returned {type(scores).__name__}")
    if tuple(scores.shape) != (images,):
        raise Broken(f"score() returned the shape {tuple(scores.shape)} for {images} images")
    if scores.device.type != "cpu":
        raise Broken(f"score() returned a tensor on {scores.device}, though its traces are on the CPU")
    if not scores.is_floating_point():
        raise Broken(f"score() returned {scores.dtype}")
    if not bool(scores.isfinite().all()):
        raise Broken(f"{int((~scores.isfinite()).sum())} of {images} scores are not finite")
    return scores.detach().double()


def _info(patient: Patient) -> None:
    detector = patient.make()
    info = getattr(detector, "info", None)
    empty = [name for name in ("title", "paper", "summary") if not str(getattr(info, name, "")).strip()]
    if info is None or empty:
        raise Broken(f"info says nothing about {', '.join(empty) or 'anything'}")
    if info.surrogate not in get_args(Surrogate):
        raise Broken(f"info.surrogate = {info.surrogate!r}")


def _needs(patient: Patient) -> None:
    detector = patient.make()
    for need in detector.needs:
        if not isinstance(need, Need):
            raise Broken(f"needs holds {need!r}, which is no Need")
        try:
            need.select(patient.world.instruments.taps)
        except UsageError as error:
            raise Broken(str(error)) from error


def _fits(patient: Patient) -> None:
    detector = patient.make()
    found = patient.world.fit(detector)
    if found is not detector:
        raise Broken(f"fit() returned {type(found).__name__ if found is not None else None}")


def _scores(patient: Patient) -> None:
    patient.scores(patient.world.clean)
    for images in patient.world.planted.values():
        patient.scores(images)


def _few_images(patient: Patient) -> None:
    if (rest := patient.scores(patient.world.clean[:0])).numel():
        raise Broken(f"no image gave {rest.numel()} scores")
    patient.scores(patient.world.clean[:1])


def _not_drawn(patient: Patient) -> None:
    """Leave a rule about equal scores out for a detector whose scores are drawn."""
    if patient.fitted.randomised:
        raise NotApplicable("the detector declares that its score is drawn (`randomised=True`)")


def _deterministic(patient: Patient) -> None:
    _not_drawn(patient)
    detector = patient.fitted
    first, again = (patient.scores(patient.world.clean, detector) for _ in range(2))
    if not torch.equal(first, again):
        raise Broken("scoring the same traces twice gave other numbers")
    other = patient.scores(patient.world.clean, patient.fresh())
    if not torch.equal(first, other):
        raise Broken("fitting twice with the same seed gave other scores")


def _batches(patient: Patient) -> None:
    _not_drawn(patient)
    images = patient.world.clean[:40]
    traces = patient.world.traces(patient.fitted, images)
    whole = formed(patient.fitted.score(traces), len(images))
    for size in (1, 17):
        parts = [formed(patient.fitted.score(part.alone()), len(part)) for part in traces.batches(size)]
        _same(torch.cat(parts), whole, f"in batches of {size}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    _same(patient.scores(images[order]), whole[order], "in another order")


def _same(found: Tensor, expected: Tensor, when: str) -> None:
    scale = float(expected.std()) or 1.0
    worst = float((found - expected).abs().amax())
    if worst > SAME * max(scale, 1e-6) + SAME * float(expected.abs().amax()):
        raise Broken(f"{when} a score moved by {worst:.3g}; the scores' standard deviation is {scale:.3g}")


def _remembers_nothing(patient: Patient) -> None:
    _not_drawn(patient)
    before = patient.scores(patient.world.clean)
    for images in patient.world.planted.values():
        patient.scores(images)
    if not torch.equal(before, patient.scores(patient.world.clean)):
        raise Broken("clean images got other scores after perturbed ones had been scored")


def _labels(patient: Patient) -> None:
    read: list[str] = []

    class Wire:
        """Rows that tell when they are read."""

        shape = (len(patient.world.clean),)

        def __len__(self) -> int:
            return self.shape[0]

        def __getitem__(self, rows: slice) -> Tensor:
            read.append("labels")
            raise UsageError("Labels are known only to fit(); score() must do without them.")

    draws = torch.Generator()
    before = draws.get_state()
    traces = replace(patient.world.traces(patient.fitted, patient.world.clean), label_rows=Wire(), random=draws)
    read.clear()
    try:
        patient.fitted.score(traces)
    except UsageError:
        if not read:
            raise
    if read:
        raise Broken("score() reads labels")
    if not torch.equal(before, draws.get_state()):
        raise Broken("score() draws from the generator")


def _state(patient: Patient) -> None:
    from safetensors.torch import load, save

    _not_drawn(patient)
    detector = patient.fitted
    tensors, values = split_state(detector.state())
    other = patient.make()
    other.load_state(join_state(load(save(tensors)) if tensors else {}, json.loads(json.dumps(values))))
    for name, images in {"clean": patient.world.clean, **patient.world.planted}.items():
        if not torch.equal(patient.scores(images, detector), patient.scores(images, other)):
            raise Broken(f"after its state was stored and loaded, it scores {name} images otherwise")
    if detector.surrogate_kind != "none":
        images = patient.world.clean[:8]
        first, again = (d.surrogate(patient.world.live(d, images)).detach() for d in (detector, other))
        if not torch.allclose(first, again, rtol=1e-5, atol=1e-6):
            raise Broken("after its state was stored and loaded, its surrogate gives other numbers")


def _global_state(patient: Patient) -> None:
    def seen() -> dict[str, Any]:
        model = patient.world.instruments.model
        return {
            "torch's global generator": torch.get_rng_state().tolist(),
            "NumPy's global generator": str(np.random.get_state()),
            "Python's global generator": random.getstate(),
            "torch's default dtype": torch.get_default_dtype(),
            "whether gradients are recorded": torch.is_grad_enabled(),
            "the number of threads": torch.get_num_threads(),
            "the model's mode": [m.training for m in model.modules()],
            "the model's weights": [float(p.double().sum()) for p in model.state_dict().values()],
            "the model's gradients": [p.grad is not None or p.requires_grad for p in model.parameters()],
        }

    before = seen()
    try:
        detector = patient.fresh()
        patient.scores(patient.world.clean, detector)
        if detector.surrogate_kind != "none":
            with torch.enable_grad():
                detector.surrogate(patient.world.live(detector, patient.world.clean[:4])).sum().backward()
        after = seen()
        changed = [name for name, value in before.items() if after[name] != value]
    finally:
        torch.set_rng_state(torch.tensor(before["torch's global generator"], dtype=torch.uint8))
        torch.set_default_dtype(before["torch's default dtype"])
        torch.set_grad_enabled(before["whether gradients are recorded"])
        torch.set_num_threads(before["the number of threads"])
    if changed:
        raise Broken(f"it changes {' and '.join(changed)}")


def _inputs(patient: Patient) -> None:
    detector = patient.make()
    clean = patient.world.fit_traces(detector)
    perturbed = patient.world.traces(detector, patient.world.fit_planted) if detector.supervised else None
    scored = patient.world.traces(detector, patient.world.clean)
    copies = [(name, t, _digest(t)) for name, t in (("fit", clean), ("fit", perturbed), ("score", scored)) if t]
    detector.fit(clean, perturbed)
    detector.score(scored)
    changed = {name for name, traces, digest in copies if _digest(traces) != digest}
    if changed:
        raise Broken(f"{' and '.join(sorted(changed))}() changes the traces that it was given")


def _digest(traces: Traces) -> list[float]:
    rows = [traces.logits_rows, *(r for taps in traces.codes.values() for r in taps.values())]
    return [float(r[0 : len(traces)].double().square().sum()) for r in rows]


def _planted(patient: Patient) -> str:
    clean = patient.scores(patient.world.clean).numpy()
    found = {name: auroc(patient.scores(x).numpy(), clean) for name, x in patient.world.planted.items()}
    told = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    if patient.fitted.supervised and found["pgd"] < NOTICED:
        raise Broken(f"it was fitted on PGD and does not notice PGD: AUROC {told}")
    if max(found.values()) < NOTICED:
        what = "it scores clean images higher" if min(found.values()) <= 1 - NOTICED else "it notices none of them"
        raise Broken(f"{what}: AUROC {told}")
    return f"AUROC {told}"


def _speed(patient: Patient) -> None:
    traces = patient.world.traces(patient.fitted, patient.world.clean[:1])
    began = time.perf_counter()
    patient.fitted.score(traces)
    seconds = time.perf_counter() - began
    if seconds > SECONDS_PER_IMAGE:
        raise Broken(f"one image took {seconds:.1f} s to score")


def _few_fit_images(patient: Patient) -> None:
    for count in (2, 12):
        detector = patient.make()
        try:
            patient.world.fit(detector, count)
        except UsageError:
            continue  # one clear sentence is as good
        patient.scores(patient.world.clean, detector)


def _surrogate(patient: Patient, device: str = "cpu") -> None:
    detector, world = patient.fitted, patient.world
    overridden = type(detector).surrogate is not Detector.surrogate
    if detector.surrogate_kind == "none":
        if overridden and type(detector).info.surrogate == "none":
            raise Broken("it has a surrogate(), but its info says that there is none")
        raise NotApplicable(
            "it offers no surrogate; adaptive attacks on it are weaker: read its robust accuracy as an upper bound"
        )
    images = torch.cat([world.clean[:60], *(x[:20] for x in world.planted.values())])
    live = world.live(detector, images, device)
    values = detector.surrogate(live)
    if not isinstance(values, Tensor) or tuple(values.shape) != (len(images),) or not bool(values.isfinite().all()):
        what = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise Broken(f"surrogate() returned {what}, or numbers that are not finite, for {len(images)} images")
    if not values.requires_grad:
        raise Broken("its surrogate has no gradient: it was computed from stored codes, or detached")
    (gradient,) = torch.autograd.grad(values.sum(), live.images, allow_unused=True, materialize_grads=True)
    if not bool(gradient.isfinite().all()):
        raise Broken("the gradient of its surrogate is not finite")
    moved = float((gradient.flatten(1).abs().amax(1) > 0).double().mean())
    if moved < 0.5:
        raise Broken(f"the gradient of its surrogate is zero for {1 - moved:.0%} of the images")
    expected = patient.scores(images)
    found = values.detach().double().cpu()
    if detector.surrogate_kind == "exact":
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std())):
            worst = float((found - expected).abs().amax())
            raise Broken(f"its surrogate is called exact, but differs from the score by up to {worst:.3g}")
        return
    correlation = float(spearmanr(found.numpy(), expected.numpy())[0])
    if not correlation >= FOLLOWS:
        raise Broken(f"the rank correlation of its surrogate with its score is {correlation:.2f}")


def _gpu(patient: Patient) -> None:
    if not torch.cuda.is_available():
        raise NotApplicable("there is no GPU here")
    try:
        _surrogate(patient, "cuda")
    finally:
        patient.world.instruments.model.to("cpu")


CHECKS: Mapping[str, Check] = {
    check.name: check
    for check in (
        Check("info", "It says what it is: title, paper, summary, kind of surrogate.",
              "Complete `info = DetectorInfo(title=..., paper=..., summary=...)`.", _info),
        Check("needs", "Its needs are Needs, and name taps that exist.",
              "Use `Need(\"bits\" | \"pooled\" | \"full\", taps)` with taps all, last:N, first:N or names.", _needs),
        Check("fits", "fit(clean, perturbed) learns and returns the detector itself.",
              "End fit() with `return self`; an unsupervised detector gets perturbed = None.", _fits),
        Check("scores", "score(traces) gives one finite floating-point number per image, shape (n,), on the CPU.",
              "Reduce over units, not over images; guard divisions and logarithms against zero.", _scores),
        Check("few-images", "No image gives no score, and one image is enough.",
              "Avoid squeeze() without a dimension, and statistics over the batch.", _few_images),
        Check("deterministic", "The same traces and seed give the same scores.",
              "Draw only in fit(), and only from `clean.generator`.", _deterministic),
        Check("batches", "An image's score does not depend on the other images of its batch.",
              "Standardise with numbers that fit() learned, not with those of the batch.", _batches),
        Check("remembers-nothing", "Scoring changes nothing: the perturbed set must not teach the detector.",
              "Set attributes in fit() only.", _remembers_nothing),
        Check("labels", "score() reads neither labels nor the generator, not even within try.",
              "Use `traces.predictions` for the class; draw in fit().", _labels),
        Check("state", "What fit() learned survives storage in safetensors.",
              "Keep what score() needs in public attributes (tensors, numbers, strings, lists, dicts), or override "
              "state() and load_state().", _state),
        Check("global-state", "Global generators, dtype, gradient mode, threads and the model stay as they are.",
              "Use `with torch.no_grad()`, `clean.generator`, and explicit dtypes.", _global_state),
        Check("inputs", "The traces that it is given stay as they are.",
              "Work on copies: no operation that ends in an underscore on `traces.pooled(...)`.", _inputs),
        Check("planted", "Larger scores are more suspicious: noise, inverted digits or PGD score above clean ones.",
              "Turn the sign if clean images score higher; else compare with what fit() saw.", _planted),
        Check("speed", f"One image takes less than {SECONDS_PER_IMAGE:g} s to score.",
              "Move work to fit(), and compute whole batches with tensor operations.", _speed),
        Check("few-fit-images", "A handful of fit images, or classes without any, give finite scores or one sentence.",
              "Fall back on all classes together where a class has no image; raise UsageError otherwise.",
              _few_fit_images),
        Check("surrogate", "Its surrogate has finite gradients and follows the score.",
              "Compute it from `live`, with tensor operations that keep the graph; soften comparisons.", _surrogate),
        Check("gpu", "Its surrogate works where the model lies on a GPU.",
              "Move fitted tensors to the device of `live.logits`.", _gpu),
    )
}  # fmt: skip
