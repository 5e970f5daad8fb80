"""The rules of a model's factory: what it takes, what it gives, and what one batch through the network shows."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from ..core.errors import UsageError, described
from ..core.parameters import bind
from ..core.process_state import Changes
from ..core.registry import origin_of
from ..core.seeds import forked_rng
from ..models.classifier import Classifier
from ..models.factories import ModelFactory, model_factory
from ..models.probe import Probe, probe, probe_images
from ..models.weights import state_digest
from ..tracing.logits import find_logits
from ..tracing.recorder import Survey, survey
from .kit import Broken, Check, Kit, NotApplicable, by_name, name_of

# Tried in turn with a factory that does not ask for the shape.
SHAPES = ((1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 64, 64), (3, 224, 224))
CLASSES = 10
# Another task, for a factory that asks for it.
OTHER_SHAPE, OTHER_CLASSES = (3, 32, 32), 7


@dataclass(eq=False)
class ModelContext:
    """A model's factory that is examined.

    Attributes:
        factory: makes the network.
        params: of the factory, checked.
    """

    factory: ModelFactory
    params: Mapping[str, Any]

    @property
    def asks_for(self) -> tuple[str, ...]:
        """What of ``shape`` and ``classes`` the factory takes."""
        known = inspect.signature(self.factory.make).parameters
        return tuple(name for name in self.factory.given if name in known)

    def network(
        self, shape: tuple[int, int, int] = SHAPES[0], classes: int = CLASSES, seed: int = 0
    ) -> tuple[nn.Module, Changes]:
        """Make the network; see :meth:`ModelFactory.network`."""
        with forked_rng(seed):
            return self.factory.network(shape, classes, self.params)

    @cached_property
    def made(self) -> tuple[nn.Module, Changes]:
        """The network, and what making it changed."""
        return self.network()

    @cached_property
    def classifier(self) -> Classifier:
        """The network on images in [0, 1], in eval mode, for the first shape that it takes."""
        network, tried = self.made[0].eval(), []
        for shape in SHAPES[:1] if "shape" in self.asks_for else SHAPES:
            classes = CLASSES
            try:
                with torch.no_grad():
                    found = find_logits(network(torch.full((2, *shape), 0.5)))[0]
                if "classes" not in self.asks_for:
                    classes = found.shape[1] if found.ndim == 2 and found.shape[1] > 1 else 2
                made = Classifier(network, nn.Identity(), shape, classes).eval()
                with torch.no_grad():
                    made(torch.full((2, *shape), 0.5))
                return made
            except Exception as error:  # whatever the network raises, it cannot take these images
                tried.append(f"{' x '.join(map(str, shape))}: {described(error)}")
        raise Broken(f"it takes none of these images: {'; '.join(tried)}")

    @cached_property
    def probe(self) -> Probe:
        """What one batch shows."""
        return probe(self.classifier, probe_images(None, self.classifier.shape))

    @cached_property
    def survey(self) -> Survey:
        """Its taps."""
        images = probe_images(None, self.classifier.shape)
        return survey(self.classifier, images, (), self.classifier.network)


def _makes(context: ModelContext) -> str:
    network, _ = context.made
    return f"{sum(p.numel() for p in network.parameters()):,} parameters"


def _logits(context: ModelContext) -> str:
    classifier = context.classifier
    looks = context.probe.looks_like
    if looks:
        raise Broken(f"its outputs look like {looks}", "Leave out the last softmax or sigmoid.")
    return f"{' x '.join(map(str, classifier.shape))} images to {classifier.classes} logits"


def _task(context: ModelContext) -> None:
    asked = context.asks_for
    if not asked:
        raise NotApplicable("it takes neither `shape` nor `classes`: it is made for one task")
    shape = OTHER_SHAPE if "shape" in asked else context.classifier.shape
    classes = OTHER_CLASSES if "classes" in asked else context.classifier.classes
    network, _ = context.network(shape, classes)
    with torch.no_grad():
        Classifier(network.eval(), nn.Identity(), shape, classes)(torch.full((2, *shape), 0.5))


def _taps(context: ModelContext) -> str:
    return f"{len(context.survey.taps)} taps"


def _channels(context: ModelContext) -> None:
    if context.survey.unclear:
        raise Broken(f"it is unclear which axis holds the channels at {', '.join(context.survey.unclear[:3])}")


def _batches(context: ModelContext) -> None:
    if context.probe.batch_dependent:
        raise Broken("an image's logits are different in another batch")


def _seeded(context: ModelContext) -> None:
    if state_digest(context.made[0]) != state_digest(context.network()[0]):
        raise Broken("with the same seed it gave another network")


def _process(context: ModelContext) -> None:
    changed = context.made[1].all
    if changed:
        raise Broken(f"making it changes {' and '.join(changed)}")


def _same(context: ModelContext) -> None:
    if context.probe.randomised:
        raise Broken("the same images twice have other logits")


def _gradient(context: ModelContext) -> None:
    if not context.probe.gradient:
        raise Broken("its logits cannot be differentiated with respect to the images")


def _state(context: ModelContext) -> None:
    other = context.probe.other_state
    if other:
        raise Broken(f"its state holds more than plain tensors: {', '.join(other[:3])}")


def _type(context: ModelContext) -> None:
    if context.probe.dtype != "float32":
        raise Broken(f"its logits are {context.probe.dtype}")


def _inputs(context: ModelContext) -> None:
    if context.probe.writes_input:
        raise Broken("its forward changes its input in place")


def _documented(context: ModelContext) -> None:
    if not (getattr(context.factory.make, "__doc__", None) or "").strip():
        raise Broken("it has no docstring")


CHECKS = by_name(
    (
        Check("makes", "The factory gives a torch.nn.Module.",
              "Return the network; take `shape` (channels, height, width) and `classes` if you need them.", _makes,
              gate=True),
        Check("logits", "The network takes float32 images (n, channels, height, width) and gives logits (n, classes).",
              "Return the output of the last linear layer as one tensor.", _logits, gate=True),
        Check("task", "A factory that takes `shape` or `classes` follows them.",
              "Size the first and the last layer by them.", _task),
        Check("taps", "Its activations can be recorded: there is at least one ReLU-like call.",
              "Give the original nn.Module, not a scripted or exported one; name other modules with `tap_modules`.",
              _taps),
        Check("batches", "In eval mode, an image's logits do not depend on the other images of its batch.",
              "Let batch normalisation follow eval(), and normalise nothing over the batch.", _batches),
        Check("seeded", "With the same seed the factory gives the same network.",
              "Draw weights from torch's global generator, which is seeded, or load them.", _seeded),
        Check("global-state", "Building it leaves generators, default dtype, threads and the rest as they are.",
              "Set nothing of torch's own in the factory.", _process),
        Check("documented", "It has a docstring, which `aftershock list models` shows.",
              "Say in a sentence what it is.", _documented, level="recommendation"),
        Check("deterministic", "In eval mode the same images have the same logits.",
              "Let dropout follow eval(), unless a randomised model is meant.", _same, level="recommendation"),
        Check("gradient", "Its logits can be differentiated with respect to the images.",
              "Stay within torch, outside torch.no_grad(); without a gradient, black-box attacks alone remain.",
              _gradient, level="recommendation"),
        Check("channels", "It is known which axis of an activation holds the channels.",
              "Stay within torch between the images and the activation.", _channels, level="recommendation"),
        Check("state", "Its state is made of plain tensors, so that a run can keep it.",
              "Without that the factory must give the same network each time.", _state, level="recommendation"),
        Check("float32", "Its logits are float32.", "Cast them at the end of forward().", _type,
              level="recommendation"),
        Check("inputs", "It leaves the images that it is given alone.", "Copy before operations in place.", _inputs,
              level="recommendation"),
    )
)  # fmt: skip


def _context(part: Any, params: Mapping[str, Any]) -> ModelContext:
    if isinstance(part, str):
        factory = model_factory(None, part) if ":" in part else model_factory(part, None)
    elif isinstance(part, nn.Module) or not callable(part):
        raise UsageError(
            f"{name_of(part)} is not a model's factory: give a function that returns a torch.nn.Module, or its name."
        )
    else:
        factory = ModelFactory(name_of(part), part, origin_of(getattr(part, "__module__", "") or ""), trains=False)
    bound, problems = bind(factory.make, params, factory.given)
    if problems:
        raise UsageError(f"The model {factory.name} is wrong: {'; '.join(problems.values())}.")
    return ModelContext(factory, bound)


KIT = Kit("model", CHECKS, _context)
