"""The rules of the perturbation contract, each as a check that says what is broken and what to do.

Whatever a perturbation returns is measured by the harness as in a run, which puts right what it can and flags it; here
the flags are findings.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...attacks.base.from_function import from_function
from ...attacks.base.kinds import HOSTILE
from ...attacks.base.perturb_batch import PerturbedBatch, perturb_batch
from ...attacks.base.perturbation import CountingModel, Perturbation, norms
from ..core.errors import AftershockError, UnavailableError
from ..core.process_state import CHANGED_FLAG
from ..core.registry import PERTURBATIONS
from ..core.seeds import Draws
from ..models.weights import state_digest
from ..suite.instances import checked_perturbation
from .fixture import Fixture, make_fixture
from .kit import Broken, Check, Kit, NotApplicable, by_name, factory_of, name_of, say_what_is_missing

IMAGES = 24
# In another batch sums are rounded otherwise, and an attack that follows signs may end elsewhere on a few images.
MOVED = 1e-3
STRAYED = 0.2
# Forwards and backwards per image up to which a cost is low, and medium.
COSTS = {"low": 50.0, "medium": 1000.0, "high": float("inf")}


@dataclass(eq=False)
class PerturbationContext:
    """A perturbation that is examined.

    Attributes:
        make: gives a fresh instance.
        fixture: what it is examined on.
    """

    make: Callable[[], Perturbation]
    fixture: Fixture
    _results: dict[tuple[int, int], PerturbedBatch] = field(default_factory=dict, init=False)

    @cached_property
    def perturbation(self) -> Perturbation:
        """One instance, for all checks."""
        return self.make()

    @property
    def images(self) -> Tensor:
        """Images that the model gets right."""
        return self.fixture.right_images[:IMAGES]

    @property
    def labels(self) -> Tensor:
        """Their classes."""
        return self.fixture.right_labels[:IMAGES]

    def measured(self, seed: int = 0, batch_size: int = 128) -> PerturbedBatch:
        """Return what the perturbation makes of the images, as a run measures it."""
        if (seed, batch_size) not in self._results:
            self._results[seed, batch_size] = self.of(slice(None), seed, batch_size)
        return self._results[seed, batch_size]

    def of(self, rows: slice, seed: int = 0, batch_size: int = 128) -> PerturbedBatch:
        """Likewise, of some of the images."""
        indices = list(range(IMAGES))[rows]
        return perturb_batch(
            self.perturbation, self.fixture.traced_model.model, self.images[rows], self.labels[rows], indices, seed,
            batch_size,
        )  # fmt: skip

    def raw(self, images: Tensor, labels: Tensor) -> object:
        """Return what :meth:`Perturbation.perturb` itself returns."""
        model = CountingModel(self.fixture.traced_model.model)
        return self.perturbation.perturb(model, images, labels, Draws(0, list(range(len(images)))))


def _info(context: PerturbationContext) -> None:
    checked_perturbation(context.perturbation)


def _described(context: PerturbationContext) -> None:
    say_what_is_missing(context.perturbation.info)


def _perturbs(context: PerturbationContext) -> str:
    perturbation = context.perturbation
    if perturbation.info.kind == "adaptive":
        raise NotApplicable("an adaptive attack is made against a detector: run it in a suite that has one")
    missing = perturbation.missing()
    if missing:
        raise NotApplicable(missing)
    channels, height, width = context.images.shape[1:]
    classes = len(context.fixture.classes)
    reason = perturbation.inapplicable((channels, height, width), classes)
    if reason:
        raise NotApplicable(f"not on digits of 8 x 8: {reason}")
    try:
        made = context.measured()
    except UnavailableError as error:
        raise NotApplicable(str(error)) from error
    if "shape" in made.flags:
        given = context.raw(context.images.clone(), context.labels.clone())
        what = f"the shape {tuple(given.shape)}" if isinstance(given, Tensor) else type(given).__name__
        raise Broken(f"it returned {what} for images of the shape {tuple(context.images.shape)}")
    if "non-finite" in made.flags:
        raise Broken("it returned values that are not finite", "Guard divisions by norms that may be zero.")
    share = float(made.success.double().mean())
    return f"the model is fooled on {share:.0%} of {IMAGES} images; mean L-inf {float(made.norms['linf'].mean()):.3g}"


def _flag(flag: str, text: str) -> Callable[[PerturbationContext], None]:
    def examine(context: PerturbationContext) -> None:
        if flag in _results(context).flags:
            raise Broken(text)

    return examine


def _results(context: PerturbationContext) -> PerturbedBatch:
    """Return what it makes of the images, for checks that say nothing where it makes nothing."""
    try:
        _perturbs(context)
    except (Broken, AftershockError) as error:
        raise NotApplicable("it needs a perturbation that passes `perturbs`") from error
    return context.measured()


def _budget(context: PerturbationContext) -> str:
    eps, norm = context.perturbation.eps, context.perturbation.norm
    if eps is None or norm is None:
        raise NotApplicable("it has no budget")
    made = _results(context)
    if "over-budget" in made.flags:
        given: Any = context.raw(context.images.clone(), context.labels.clone())
        largest = float(norms(given.detach().cpu() - context.images)[norm].max())
        raise Broken(f"the perturbation has {norm} {largest:.4g}, and its budget is {eps:.4g}")
    return f"at most {float(made.norms[norm].max()):.4g} of {eps:.4g} in {norm}"


def _seeded(context: PerturbationContext) -> None:
    first = _results(context)
    again = context.of(slice(None))
    if not torch.equal(first.images, again.images):
        raise Broken("the same images and seed gave other results")


def _batches(context: PerturbationContext) -> str:
    whole = _results(context)
    parts = context.measured(batch_size=7)
    moved = (whole.images - parts.images).abs().flatten(1).amax(1) > MOVED
    if float(moved.double().mean()) > STRAYED:
        raise Broken(f"in batches of 7, {int(moved.sum())} of {IMAGES} images have other results")
    return f"{int(moved.sum())} of {IMAGES} images have other results in batches of 7"


def _one_image(context: PerturbationContext) -> None:
    _results(context)
    if "shape" in context.of(slice(0, 1)).flags:
        raise Broken("a batch of one image came back in another shape")
    covered = context.perturbation.covers([])
    if covered != []:
        raise Broken(f"covers([]) gave {covered!r:.60}")
    context.of(slice(0, 0))


def _inputs(context: PerturbationContext) -> None:
    _results(context)
    images, labels = context.images.clone(), context.labels.clone()
    context.raw(images, labels)
    if not torch.equal(images, context.images) or not torch.equal(labels, context.labels):
        raise Broken("it writes into the images or labels that it is given")


def _model(context: PerturbationContext) -> None:
    _results(context)
    model = context.fixture.traced_model.model
    before = state_digest(model), [m.training for m in model.modules()]
    try:
        context.raw(context.images.clone(), context.labels.clone())
        after = state_digest(model), [m.training for m in model.modules()]
    finally:
        model.eval()
        gradients = [p for p in model.parameters() if p.requires_grad or p.grad is not None]
        for parameter in model.parameters():
            parameter.requires_grad_(False)
            parameter.grad = None
    if before != after or gradients:
        what = "weights" if before[0] != after[0] else "mode" if before != after else "parameters' gradients"
        raise Broken(f"it changes the model's {what}")


def _process(context: PerturbationContext) -> None:
    flags = [f.partition(":")[2] for f in _results(context).flags if f.startswith(f"{CHANGED_FLAG}:")]
    if flags:
        raise Broken(f"it changes {' and '.join(flags)}")


def _box(context: PerturbationContext) -> None:
    info, made = context.perturbation.info, _results(context)
    if info.kind not in HOSTILE:
        raise NotApplicable(f"a {info.kind} does not use the model")
    if made.backwards and not info.gradients:
        raise Broken(f"it takes {made.backwards:.3g} gradients per image, and its info says gradients=False")
    if not made.backwards and info.gradients:
        raise Broken("it takes no gradient, and its info says gradients=True, which is the default")


def _benign(context: PerturbationContext) -> None:
    info, made = context.perturbation.info, _results(context)
    if info.kind in HOSTILE:
        raise NotApplicable("an attack may ask the model")
    if made.forwards or made.backwards:
        raise Broken(f"it is called {info.kind}, and asks the model {made.forwards:.3g} times per image")


def _stochastic(context: PerturbationContext) -> None:
    first, other = _results(context), context.measured(seed=1)
    drawn = not torch.equal(first.images, other.images)
    if drawn and not context.perturbation.info.stochastic:
        raise Broken("another seed gives other results, and its info says stochastic=False, which is the default")
    if not drawn and context.perturbation.info.stochastic:
        raise Broken("another seed gives the same results, and its info says stochastic=True")


def _effect(context: PerturbationContext) -> str:
    made = _results(context)
    hostile = context.perturbation.info.kind in HOSTILE
    if hostile and not bool(made.success.any()):
        raise Broken(f"it fools the model on none of {IMAGES} images")
    if not bool((made.norms["linf"] > 0).any()):
        raise Broken("it changes none of the images")
    return f"fooled on {float(made.success.double().mean()):.0%}"


def _gradients(context: PerturbationContext) -> None:
    flags = sorted({"zero-gradient", "non-finite-gradient"} & set(_results(context).flags))
    if flags:
        raise Broken(f"it met gradients that tell it nothing ({', '.join(flags)})")


def _cost(context: PerturbationContext) -> str:
    made, cost = _results(context), context.perturbation.info.cost
    passes = made.forwards + made.backwards
    # An attack that stops early on digits may well take more elsewhere.
    if passes > COSTS[cost]:
        found = next(name for name, most in COSTS.items() if passes <= most)
        raise Broken(f"it takes {passes:.4g} passes per image, which is {found}, and its info says cost={cost!r}")
    return f"{passes:.4g} passes per image"


CHECKS = by_name(
    (
        Check("info", "Its info has the right types: kind, family, norm, budget.",
              "Write `info = PerturbationInfo(title=..., kind=..., family=...)`.", _info, gate=True),
        Check("perturbs", "perturb(model, images, labels, draws) returns finite images of the same shape.",
              "Return one image for each that it was given; return it unchanged where nothing was found.",
              _perturbs, gate=True),
        Check("in-range", "The images stay in [0, 1].", "End with `.clamp(0, 1)`.",
              _flag("out-of-range", "it returned values outside [0, 1]")),
        Check("budget", "The perturbation stays within eps, in the norm that it says.",
              "Project onto the budget after the last step, and after clamping; or say another `norm`.", _budget),
        Check("seeded", "The same images and seed give the same result.",
              "Draw from `draws`, or from torch's, NumPy's and Python's global generators, which are seeded.", _seeded),
        Check("batches", "The result for an image does not depend on the other images of its batch.",
              "Draw from `draws`, which has a generator for each image; reduce losses with a sum, not with a mean.",
              _batches),
        Check("one-image", "A batch of one image is enough; of no image, nothing is covered.",
              "Avoid squeeze() without a dimension, and statistics over the batch.", _one_image),
        Check("model", "The model's weights, mode and gradients stay as they are.",
              "Use torch.autograd.grad(loss, images), not loss.backward(); leave train() and eval() alone.", _model),
        Check("global-state", "Generators, default dtype, threads and other state of the process stay as they are.",
              "Use `draws`; set nothing of torch's, NumPy's or Python's own.", _process),
        Check("declared-box", "It takes gradients of the model if, and only if, its info says so.",
              "Set `gradients=` in its PerturbationInfo to what it does: True is a white-box attack.", _box),
        Check("declared-kind", "Noise and corruptions do not use the model.",
              'Call it kind="attack", or leave the model alone.', _benign),
        Check("described", "It says where it comes from and, in a sentence, what it does.",
              "Add `paper=...` and `summary=...` to its PerturbationInfo.", _described, level="recommendation"),
        Check("inputs", "The images and labels that it is given stay as they are.",
              "Work on copies: no operation that ends in an underscore on `images`.", _inputs, level="recommendation"),
        Check("detached", "The result carries no graph.", "End with `.detach()`.",
              _flag("attached", "it returned a tensor that requires a gradient"), level="recommendation"),
        Check("float32", "The result is float32.", "End with `.float()`.",
              _flag("dtype", "it returned another type"), level="recommendation"),
        Check("effect", "An attack fools the model on at least one image; whatever it is, it changes some.",
              "Try a larger budget; if it fools nothing there, see whether it climbs the right loss.", _effect,
              level="recommendation"),
        Check("gradients", "The gradients that it follows are finite and not zero.",
              "Saturated losses vanish: work on logits, or use a margin.", _gradients, level="recommendation"),
        Check("declared-draws", "Its info says whether it draws random numbers.",
              "Set `stochastic=`: only then does each seed of a run draw anew.", _stochastic, level="recommendation"),
        Check("declared-cost", "It does not take more passes than its info says.",
              "Set `cost=`: low up to 50 passes per image, medium up to 1,000, high above.", _cost,
              level="recommendation"),
    )
)  # fmt: skip


def _context(part: Any, params: Mapping[str, Any]) -> PerturbationContext:
    if isinstance(part, Perturbation):
        return PerturbationContext(lambda: copy.deepcopy(part), make_fixture())
    if inspect.isroutine(part):
        part = from_function(part, name_of(part))
    made = factory_of(PERTURBATIONS, part, params, Perturbation, "aftershock.Perturbation")
    return PerturbationContext(made, make_fixture())


KIT = Kit("perturbation", CHECKS, _context)
