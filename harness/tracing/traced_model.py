"""What a fitted detector says about images now: one instrumented pass, and the extra ones that it declares."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from ..core.errors import UsageError
from ..core.seeds import derive_seed, generator
from .dropout import ImageDropout
from .extra_passes import InputGradient, View
from .recorder import Overwritten, input_gradient, live_trace, record
from .rows import Rows
from .traces import LiveTrace, Need, TapInfo, Traces, capped, undeclared
from .view_images import climb, view_images


class NeedsCodes(Protocol):
    """A detector or an analysis."""

    @property
    def needs(self) -> tuple[Need, ...]: ...


class Scores(NeedsCodes, Protocol):
    """A fitted detector, as far as it matters here."""

    @property
    def views(self) -> tuple[View, ...]: ...

    @property
    def gradients(self) -> tuple[InputGradient, ...]: ...

    def score(self, traces: Traces) -> Tensor: ...


def view_seed(view: View) -> int:
    """Return the seed of a view's dropout masks: one for all images, runs and guards, so that their scores agree."""
    return derive_seed(0, "dropout", view.name)


@dataclass(frozen=True, eq=False)
class TracedModel:
    """A model with everything that is needed to trace it.

    Attributes:
        model: images in [0, 1] to logits.
        taps: as discovered.
        modules: the named modules among them.
        root: the part of the model whose module paths name the taps.
        bits_per_tap: how many bits of a tap are kept; ``None`` for all.
        overwritten: which taps the model changes later in a pass.
    """

    model: nn.Module
    taps: tuple[TapInfo, ...]
    modules: tuple[str, ...] = ()
    root: nn.Module | None = None
    bits_per_tap: int | None = None
    overwritten: Overwritten = field(default_factory=Overwritten)

    def capped(self, needs: Sequence[Need]) -> tuple[Need, ...]:
        """Return needs as codes of this model are stored."""
        return tuple(capped(need, self.bits_per_tap) for need in needs)

    def codes(self, needs: Sequence[Need], images: Tensor) -> Traces:
        """Logits and codes of images (n, channels, height, width) in [0, 1], on the CPU, from one forward pass."""
        needs = self.capped(needs)
        found = record(self.model, images, self.taps, needs, self.modules, self.root)
        return Traces(found.logits, self.taps, found.codes, needs)

    def live(
        self, needs: Sequence[Need], images: Tensor, also: Collection[str] = (), copies: bool = False
    ) -> LiveTrace:
        """Return a trace that can be differentiated with respect to ``images``, which lie on the model's device.

        Args:
            needs: codes whose taps it holds.
            images: (n, channels, height, width) in [0, 1].
            also: names of further taps.
            copies: whether whoever reads it may work in place.
        """
        seen = None if copies else self.overwritten
        return live_trace(self.model, images, self.taps, self.capped(needs), self.modules, self.root, also, seen)

    def live_for(
        self, detector: Scores, images: Tensor, copies: bool = False, aside: nn.Module | None = None
    ) -> LiveTrace:
        """Return a live trace with the codes that a detector reads; the passes of its views are made when asked for.

        Args:
            detector: whose codes and views are meant.
            images: as for :meth:`live`.
            copies: as there.
            aside: the model for the passes of views, by default the same.
        """
        views = LiveViews(self if aside is None else replace(self, model=aside), detector, images)
        return replace(self.live(detector.needs, images, copies=copies), view_of=views)

    def traces(self, detector: Scores, images: Tensor, seed: int = 0, plain: Traces | None = None) -> Traces:
        """Return traces as a detector's ``score`` gets them: with the views and input gradients that it declares.

        Args:
            detector: whose codes, views and gradients are recorded.
            images: on any device.
            seed: what the transforms of views draw from.
            plain: what :meth:`codes` gave of these images for needs that hold the detector's, if that is known.
        """
        needs = self.capped(detector.needs)
        views = {}
        for view in detector.views:
            changed = view_images(self.model, view, images, generator(seed, "view", view.name))
            seen = record(
                self.model, changed, self.taps, needs, self.modules, self.root, dropout=view.dropout,
                seed=view_seed(view),
            )  # fmt: skip
            views[view.name] = Traces(seen.logits, self.taps, seen.codes, needs)
        gradients = {g.name: input_gradient(self.model, images, g.objective) for g in detector.gradients}
        own = self.codes(needs, images) if plain is None else _part(plain, needs)
        return replace(own, view_traces=views, gradient_rows=gradients)

    def score(
        self, detector: Scores, images: Tensor, seed: int = 0, plain: Traces | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes) and scores (n,), float64, on the CPU; arguments are those of :meth:`traces`."""
        traces = self.traces(detector, images, seed, plain)
        with torch.no_grad():
            return traces.logits, detector.score(traces).detach().double().cpu()


def _part(traces: Traces, needs: Sequence[Need]) -> Traces:
    """Return copies of the codes that some needs name."""
    codes: dict[str, dict[str, Rows]] = {}
    for code in dict.fromkeys(need.code for need in needs):
        wanted = {t.name for need in needs if need.code == code for t in need.select(traces.taps)}
        codes[code] = {t: rows[:].clone() for t, rows in traces.codes[code].items() if t in wanted}
    return Traces(traces.logits.clone(), traces.taps, codes, tuple(needs))


class LiveViews:
    """The passes of a detector's views of some images, differentiable with respect to these, each made once.

    Args:
        traced_model: what makes them.
        detector: that declares the views.
        images: of which they are views.
        seed: what transforms draw from.
    """

    def __init__(self, traced_model: TracedModel, detector: Scores, images: Tensor, seed: int = 0) -> None:
        self._traced_model, self._detector, self._images, self._seed = traced_model, detector, images, seed
        self._made: dict[str, LiveTrace] = {}

    def __call__(self, name: str) -> LiveTrace:
        """Return the pass of a view; raises :class:`UsageError` for one that the detector does not declare."""
        if name not in self._made:
            view = next((v for v in self._detector.views if v.name == name), None)
            if view is None:
                raise UsageError(undeclared(name))
            self._made[name] = self._pass(view)
        return self._made[name]

    def _pass(self, view: View) -> LiveTrace:
        images, draws, model = self._images, generator(self._seed, "view", view.name), self._traced_model
        if view.differentiable:
            changed = view.transform(images.clone(), draws)
            if view.ascent is not None:
                start = changed.detach()
                changed = changed + (climb(model.model, start, view.ascent).to(start) - start)
        else:
            with torch.no_grad():
                moved = view_images(model.model, view, images, draws).to(images) - images.detach()
            changed = images + moved
        with ImageDropout(model.model, view_seed(view)) if view.dropout else nullcontext() as dropping:
            if dropping is not None:
                dropping.begin(changed)
            return model.live(self._detector.needs, changed, copies=True)


def fit_traces(traces: Traces, labels: Tensor, draws: torch.Generator) -> Traces:
    """Return traces as a detector's ``fit`` gets them: with labels and a generator."""
    return replace(traces, label_rows=labels, random=draws)
