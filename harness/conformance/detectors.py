"""The rules of the detector contract, each as a check that says what was broken and what to do."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor

from ...detectors.base.detector import Detector
from ...detectors.base.scores import checked_scores
from ..core.errors import AftershockError, UsageError
from ..core.registry import DETECTORS
from ..core.state import join_state, split_state
from ..statistics.detection import auroc
from ..suite.instances import checked_detector
from ..tracing.traces import Traces
from .fixture import Fixture, make_fixture
from .kit import Broken, Check, Kit, NotApplicable, by_name, factory_of, say_what_is_missing, unchanged_process

# Scores of the same image in other batches may differ by the rounding of float32 sums.
SAME = 1e-4
# What an image may take to score; a run gives up on slower detectors ([limits] score_seconds).
SECONDS_PER_IMAGE = 1.0
# Minimum AUROC on the planted case that a detector sees best.
NOTICED = 0.7
# Minimum rank correlation of a surrogate with its score.
FOLLOWS = 0.5


@dataclass(eq=False)
class DetectorContext:
    """A detector that is examined.

    Attributes:
        make: gives a fresh, unfitted instance.
        fixture: what it is examined on.
    """

    make: Callable[[], Detector]
    fixture: Fixture
    _fitted: Detector | None = field(default=None, init=False)

    def fresh(self) -> Detector:
        """Return a new instance, fitted."""
        detector = self.make()
        self.fixture.fit(detector)
        return detector

    @property
    def fitted(self) -> Detector:
        """An instance fitted once, for checks that only score."""
        if self._fitted is None:
            self._fitted = self.fresh()
        return self._fitted

    def scores(self, images: Tensor, detector: Detector | None = None) -> Tensor:
        """Return scores of images, checked for form."""
        detector = detector or self.fitted
        return formed(detector.score(self.fixture.traces(detector, images)), len(images))


def formed(scores: object, images: int) -> Tensor:
    """Return scores as float64; raises :class:`Broken` unless they are what a run takes."""
    try:
        return checked_scores(scores, images)
    except AftershockError as error:
        text, _, fix = str(error).partition(": ")
        raise Broken(text, f"{fix[:1].upper()}{fix[1:]}." if fix else "") from error


def _info(context: DetectorContext) -> None:
    checked_detector(context.make())


def _described(context: DetectorContext) -> None:
    say_what_is_missing(context.make().info)


def _needs(context: DetectorContext) -> None:
    for need in context.make().needs:
        try:
            need.select(context.fixture.traced_model.taps)
        except UsageError as error:
            raise Broken(str(error).rstrip(".")) from error


def _fits(context: DetectorContext) -> None:
    detector = context.make()
    found = context.fixture.fit(detector)
    if found is not detector:
        raise Broken(f"fit() returned {type(found).__name__ if found is not None else None}")


def _scores(context: DetectorContext) -> None:
    context.scores(context.fixture.clean)
    for images in context.fixture.planted.values():
        context.scores(images)


def _few_images(context: DetectorContext) -> None:
    if (rest := context.scores(context.fixture.clean[:0])).numel():
        raise Broken(f"no image gave {rest.numel()} scores")
    context.scores(context.fixture.clean[:1])


def _not_drawn(context: DetectorContext) -> None:
    """Leave a rule about equal scores out for a detector whose scores are drawn."""
    if context.fitted.randomised:
        raise NotApplicable("the detector declares that its score is drawn (`randomised=True`)")


def _deterministic(context: DetectorContext) -> None:
    _not_drawn(context)
    detector = context.fitted
    first, again = (context.scores(context.fixture.clean, detector) for _ in range(2))
    if not torch.equal(first, again):
        raise Broken("scoring the same traces twice gave other numbers")
    other = context.scores(context.fixture.clean, context.fresh())
    if not torch.equal(first, other):
        raise Broken("fitting twice with the same seed gave other scores")


def _batches(context: DetectorContext) -> None:
    _not_drawn(context)
    images = context.fixture.clean[:40]
    traces = context.fixture.traces(context.fitted, images)
    whole = formed(context.fitted.score(traces), len(images))
    for size in (1, 17):
        parts = [formed(context.fitted.score(part.alone()), len(part)) for part in traces.batches(size)]
        _same(torch.cat(parts), whole, f"in batches of {size}")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    _same(context.scores(images[order]), whole[order], "in another order")


def _same(found: Tensor, expected: Tensor, when: str) -> None:
    scale = float(expected.std()) or 1.0
    worst = float((found - expected).abs().amax())
    if worst > SAME * max(scale, 1e-6) + SAME * float(expected.abs().amax()):
        raise Broken(f"{when} a score moved by {worst:.3g}; the scores' standard deviation is {scale:.3g}")


def _remembers_nothing(context: DetectorContext) -> None:
    _not_drawn(context)
    before = context.scores(context.fixture.clean)
    for images in context.fixture.planted.values():
        context.scores(images)
    if not torch.equal(before, context.scores(context.fixture.clean)):
        raise Broken("clean images got other scores after perturbed ones had been scored")


def _labels(context: DetectorContext) -> None:
    read: list[str] = []

    class Wire:
        """Rows that tell when they are read."""

        shape = (len(context.fixture.clean),)

        def __len__(self) -> int:
            return self.shape[0]

        def __getitem__(self, rows: slice) -> Tensor:
            read.append("labels")
            raise UsageError("Labels are known only to fit(); score() must do without them.")

    draws = torch.Generator()
    before = draws.get_state()
    traces = replace(context.fixture.traces(context.fitted, context.fixture.clean), label_rows=Wire(), random=draws)
    read.clear()
    try:
        context.fitted.score(traces)
    except UsageError:
        if not read:
            raise
    if read:
        raise Broken("score() reads labels")
    if not torch.equal(before, draws.get_state()):
        raise Broken("score() draws from the generator")


def _state(context: DetectorContext) -> None:
    from safetensors.torch import load, save

    _not_drawn(context)
    detector = context.fitted
    tensors, values = split_state(detector.state())
    other = context.make()
    other.load_state(join_state(load(save(tensors)) if tensors else {}, json.loads(json.dumps(values))))
    for name, images in {"clean": context.fixture.clean, **context.fixture.planted}.items():
        if not torch.equal(context.scores(images, detector), context.scores(images, other)):
            raise Broken(f"after its state was stored and loaded, it scores {name} images otherwise")
    if detector.surrogate_kind != "none":
        images = context.fixture.clean[:8]
        first, again = (d.surrogate(context.fixture.live(d, images)).detach() for d in (detector, other))
        if not torch.allclose(first, again, rtol=1e-5, atol=1e-6):
            raise Broken("after its state was stored and loaded, its surrogate gives other numbers")


def _global_state(context: DetectorContext) -> None:
    model = context.fixture.traced_model.model

    def model_state() -> dict[str, Any]:
        return {
            "the model's mode": [m.training for m in model.modules()],
            "the model's weights": [float(p.double().sum()) for p in model.state_dict().values()],
            "the model's gradients": [p.grad is not None or p.requires_grad for p in model.parameters()],
        }

    with unchanged_process(model_state):
        detector = context.fresh()
        context.scores(context.fixture.clean, detector)
        if detector.surrogate_kind != "none":
            with torch.enable_grad():
                detector.surrogate(context.fixture.live(detector, context.fixture.clean[:4])).sum().backward()


def _inputs(context: DetectorContext) -> None:
    detector = context.make()
    clean = context.fixture.fit_traces(detector)
    perturbed = context.fixture.traces(detector, context.fixture.fit_planted) if detector.supervised else None
    scored = context.fixture.traces(detector, context.fixture.clean)
    copies = [(name, t, _digest(t)) for name, t in (("fit", clean), ("fit", perturbed), ("score", scored)) if t]
    detector.fit(clean, perturbed)
    detector.score(scored)
    changed = {name for name, traces, digest in copies if _digest(traces) != digest}
    if changed:
        raise Broken(f"{' and '.join(sorted(changed))}() changes the traces that it was given")


def _digest(traces: Traces) -> list[float]:
    rows = [traces.logits_rows, *(r for taps in traces.codes.values() for r in taps.values())]
    return [float(r[0 : len(traces)].double().square().sum()) for r in rows]


def _planted(context: DetectorContext) -> str:
    clean = context.scores(context.fixture.clean).numpy()
    found = {name: auroc(context.scores(x).numpy(), clean) for name, x in context.fixture.planted.items()}
    told = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    if context.fitted.supervised and found["pgd"] < NOTICED:
        raise Broken(f"it was fitted on PGD and does not detect PGD: AUROC {told}")
    if max(found.values()) < NOTICED:
        what = "it scores clean images higher" if min(found.values()) <= 1 - NOTICED else "it detects none of them"
        raise Broken(f"{what}: AUROC {told}")
    return f"AUROC {told}"


def _speed(context: DetectorContext) -> None:
    traces = context.fixture.traces(context.fitted, context.fixture.clean[:1])
    began = time.perf_counter()
    context.fitted.score(traces)
    seconds = time.perf_counter() - began
    if seconds > SECONDS_PER_IMAGE:
        raise Broken(f"one image took {seconds:.1f} s to score")


def _few_fit_images(context: DetectorContext) -> None:
    for count in (2, 12):
        detector = context.make()
        try:
            context.fixture.fit(detector, count)
        except UsageError:
            continue  # one clear sentence is as good
        context.scores(context.fixture.clean, detector)


def _surrogate(context: DetectorContext, device: str = "cpu") -> None:
    detector, world = context.fitted, context.fixture
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
    expected = context.scores(images)
    found = values.detach().double().cpu()
    if detector.surrogate_kind == "exact":
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.std())):
            worst = float((found - expected).abs().amax())
            raise Broken(f"its surrogate is called exact, but differs from the score by up to {worst:.3g}")
        return
    correlation = float(spearmanr(found.numpy(), expected.numpy())[0])
    if not correlation >= FOLLOWS:
        raise Broken(f"the rank correlation of its surrogate with its score is {correlation:.2f}")


def _gpu(context: DetectorContext) -> None:
    if not torch.cuda.is_available():
        raise NotApplicable("there is no GPU here")
    try:
        _surrogate(context, "cuda")
    finally:
        context.fixture.traced_model.model.to("cpu")


CHECKS = by_name(
    (
        Check("info", "Its info has the right types: title, needs, kind of surrogate.",
              "Write `info = DetectorInfo(title=...)`; the title is enough.", _info, gate=True),
        Check("described", "It says where it comes from and, in a sentence, what it does.",
              "Add `paper=...` and `summary=...` to its DetectorInfo.", _described, level="recommendation"),
        Check("needs", "Its needs are Needs, and name taps that exist.",
              "Use `Need(\"bits\" | \"pooled\" | \"full\", taps)` with taps all, last:N, first:N or names.", _needs,
              gate=True),
        Check("fits", "fit(clean, perturbed) learns and returns the detector itself.",
              "End fit() with `return self`; an unsupervised detector gets perturbed = None.", _fits, gate=True),
        Check("scores", "score(traces) gives one finite real number per image, shape (n,).",
              "Reduce over units, not over images; guard divisions and logarithms against zero.", _scores, gate=True),
        Check("few-images", "No image gives no score, and one image is enough.",
              "Avoid squeeze() without a dimension, and statistics over the batch.", _few_images),
        Check("deterministic", "The same traces and seed give the same scores.",
              "Draw only in fit(), and only from `clean.generator`.", _deterministic),
        Check("batches", "An image's score does not depend on the other images of its batch.",
              "Standardise with numbers that fit() learned, not with those of the batch.", _batches),
        Check("remembers-nothing", "Scoring changes nothing: the detector must not learn from the perturbed set.",
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
              "Reverse the sign if clean images score higher; else compare with what fit() saw.", _planted),
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
)  # fmt: skip


def _context(part: Any, params: Mapping[str, Any]) -> DetectorContext:
    if isinstance(part, Detector):
        return DetectorContext(lambda: copy.deepcopy(part), make_fixture())
    factory = factory_of(DETECTORS, part, params, Detector, "aftershock.Detector")
    return DetectorContext(factory, make_fixture())


KIT = Kit("detector", CHECKS, _context)
