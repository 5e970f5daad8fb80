"""A fitted detector as attacks that know it see it: one pass gives its surrogate, its true score and features."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from ...attacks.base.perturbation import aside
from ...attacks.base.target import Guides, Observation, StandIn
from ...detectors.base.detector import Detector
from ..core.model_state import device_of
from ..core.process_state import guarded_part
from ..core.process_state.guard import own_code
from ..core.state import state_on
from ..evaluation.consistency import EVALUATIONS
from ..statistics.detection import ALPHAS, threshold, threshold_rank
from ..tracing.encoding import encode
from ..tracing.taps import SIGN_FROM_INPUT
from ..tracing.traced_model import LiveViews, TracedModel
from ..tracing.traces import LiveTrace, Need, TapInfo, Traces, sampled_units
from .workers.standins.detectors import only_own_code

# What an attacker draws of a score that is drawn anew for each question, the same at every step (expectation over
# transformations with common random numbers; Athalye, Engstrom, Ilyas, Kwok 2018, arXiv:1707.07397), and the share of
# these draws in which an image has to pass, so that it passes in most of others.
DRAWS, _SURE = 8, 0.75
# The defender's draws are others.
_ATTACKERS = 1_000_000

Kept = Mapping[tuple[str, int | None], Tensor | None]


@dataclass(frozen=True, eq=False)
class _Near:
    """A detector where its traces lie.

    Attributes:
        detector: with its state on the device.
        kept: units of the model's taps (:func:`kept_units`), on the model's device.
        device: where it wants traces.
    """

    detector: Detector
    kept: Kept
    device: torch.device


@dataclass(eq=False)
class FittedTarget:
    """A fitted detector with its threshold, for one model (see :class:`aftershock.attacks.base.target.TargetDetector`).

    Args:
        detector: fitted.
        traced_model: the model that it was fitted for.
        calibrate: its scores of all calibrate images, float64.
        clean: images that the model gets right, of another source set,
        labels: their classes, and
        scores: the detector's scores of them; those that it flags are left out.
        stand_ins: what was learned of it in a rehearsal, and
        rehearsed: the parts of an attack in the order that was found there.
        flagging: whether the attack looks for images that are flagged, not for images that pass.
    """

    detector: Detector
    traced_model: TracedModel
    calibrate: Tensor
    clean: Tensor
    labels: Tensor
    scores: Tensor
    stand_ins: Mapping[str, StandIn] = field(default_factory=dict)
    rehearsed: Sequence[str] = ()
    flagging: bool = False

    def __post_init__(self) -> None:
        scores = self.calibrate.double()
        # A trial with a handful of images has no threshold and no ranking; its attacks aim below the largest score.
        known = threshold_rank(len(scores), ALPHAS["5"]) > 0
        self.threshold: float = threshold(scores.numpy(), ALPHAS["5"]) if known else float(scores.max())
        self.target_score: float = min(float(scores.quantile(0.5)), self.threshold)
        # A detector whose scores hardly vary still needs a unit.
        spread = self.threshold - self.target_score or float(scores.std(correction=0)) or 1.0
        self.scale: float = spread
        self.has_surrogate: bool = self.detector.surrogate_kind != "none"
        # State of the process that the detector left changed, by name.
        self.changed: list[str] = []

    @cached_property
    def _near(self) -> _Near:
        """What is asked at every step of an attack, where the model lies."""
        device = device_of(self.traced_model.model)
        kept = kept_units(self.traced_model.capped(self.detector.needs), self.traced_model.taps, device)
        if device.type == "cpu" or not only_own_code(self.detector):
            return _Near(self.detector, kept, torch.device("cpu"))
        return _Near(detector_on(self.detector, device), kept, device)

    def observe(
        self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
        surrogate: bool = True,
    ) -> Observation:  # fmt: skip
        """See the protocol; detectors with input gradients, or views that no surrogate reads, take further passes."""
        i, needs = replace(self.traced_model, model=model), self.traced_model.capped(self.detector.needs)
        # Code of others may work in place.
        live = i.live_for(self.detector, images, not own_code(self.detector), aside(model))
        live = replace(live, temperature=temperature, straight_through=straight_through)
        suspicion = None
        if self.has_surrogate and surrogate:
            with self._guarded():
                drawn = [self._near.detector.surrogate(one) for one in self._drawn(live, i, images, model)]
            suspicion = drawn[0] if len(drawn) == 1 else torch.stack(drawn).mean(0)
        read = dict.fromkeys(t.name for need in needs for t in need.select(i.taps))
        features: Mapping[str, Tensor] = {name: live.activations[name] for name in read} or {"logits": live.logits}
        if self.detector.views and not self.has_surrogate:
            # What such a detector reads is in its views: stand-ins learn from them, and guides are matched there.
            features = Features(features, {f"view:{view.name}": view.name for view in self.detector.views}, live.view)

        # Where the surrogate has read the views, their passes are there as well.
        traced = not self.detector.gradients and (suspicion is not None or not self.detector.views)
        traced &= not self.detector.randomised

        def score(wanted: Tensor) -> Tensor:
            if not traced:
                return self.query(model, images.detach()[wanted])[1]
            hard = partial(hard_traces, needs=needs, wanted=wanted, kept=self._near.kept, device=self._near.device)
            views = {view.name: hard(live.view(view.name)) for view in self.detector.views}
            return self._score(replace(hard(live), view_traces=views)).to(images.device)

        return Observation(live.logits, suspicion, score, features)

    def query(self, model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
        """See the protocol; of a score that is drawn, what three quarters of the attacker's draws do not exceed.

        For an attack that looks for flagged images it is what three quarters do not fall below.
        """
        if not self.detector.randomised:
            return self.evaluate(model, images, 0)
        found = [self.evaluate(model, images, _ATTACKERS + draw) for draw in range(DRAWS)]
        scores = torch.stack([score for _, score in found]).sort(dim=0).values
        sure = int(_SURE * DRAWS)
        return found[0][0], scores[DRAWS - sure if self.flagging else sure - 1]

    def evaluate(self, model: nn.Module, images: Tensor, draw: int) -> tuple[Tensor, Tensor]:
        """Return logits (n, classes) and one evaluation of the true scores (n,), whose views draw from ``draw``."""
        # ``model`` counts the passes of the one that the detector was fitted for.
        with self._guarded():
            logits, score = replace(self.traced_model, model=model).score(self.detector, images, draw)
        return logits.to(images.device), score.to(images.device)

    def _drawn(
        self, live: LiveTrace, traced_model: TracedModel, images: Tensor, model: nn.Module
    ) -> Iterator[LiveTrace]:  # fmt: skip
        """Yield a trace with each of the attacker's draws of the views; the trace itself where nothing is drawn."""
        if not (self.detector.randomised and self.detector.views):
            yield live
            return
        for draw in range(DRAWS):
            views = LiveViews(replace(traced_model, model=aside(model)), self.detector, images, _ATTACKERS + draw)
            yield replace(live, view_of=views)

    def guides(self) -> Guides:
        """See the protocol."""
        passing = self.scores <= self.threshold
        return Guides(self.clean[passing], self.labels[passing], self.scores[passing].double())

    @property
    def evaluations(self) -> int:
        """How often a final image is scored: several times where the detector declares that its score is drawn."""
        return EVALUATIONS if self.detector.randomised else 1

    def _score(self, traces: Traces) -> Tensor:
        with torch.no_grad(), self._guarded():
            found = self._near.detector.score(traces)
        return found.detach().double()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Keep what the detector does to the process's state from the attack."""
        with guarded_part(self.detector) as changes:
            yield
        self.changed += changes.all


class Features(Mapping[str, Tensor]):
    """Activations by tap, and the logits of views, whose passes are made when they are looked at.

    Args:
        taps: activations that are there.
        views: names of views by the names of their features.
        view_of: makes the pass of a view.
    """

    def __init__(
        self, taps: Mapping[str, Tensor], views: Mapping[str, str], view_of: Callable[[str], LiveTrace]
    ) -> None:
        self._taps, self._views, self._view_of = taps, views, view_of

    def __getitem__(self, name: str) -> Tensor:
        return self._view_of(self._views[name]).logits if name in self._views else self._taps[name]

    def __iter__(self) -> Iterator[str]:
        yield from (*self._taps, *self._views)

    def __len__(self) -> int:
        return len(self._taps) + len(self._views)


def detector_on(detector: Detector, device: torch.device) -> Detector:
    """Return a fitted detector that works on a device, with a copy of the state there."""
    there = copy.copy(detector)
    there.load_state(state_on(detector.state(), device))
    return there


def kept_units(needs: Sequence[Need], taps: Sequence[TapInfo], device: torch.device) -> Kept:
    """Return which units of a tap are kept, by the tap's name and their number, on a device; ``None`` for all."""
    found = {(t.name, need.units): sampled_units(t, need.units) for need in needs for t in need.select(taps)}
    return {of: None if units is None else units.to(device) for of, units in found.items()}


def hard_traces(
    live: LiveTrace, needs: Sequence[Need], wanted: Tensor, kept: Kept,
    device: torch.device,
) -> Traces:  # fmt: skip
    """Return the codes that a recording of the same pass would hold of some images.

    Args:
        live: the pass.
        needs: which codes.
        wanted: which images, bool (n,).
        kept: as :func:`kept_units` gives it, on the trace's device.
        device: where the codes shall lie.
    """
    # All are the usual case once an attack is under way, and a slice copies nothing.
    rows = slice(None) if bool(wanted.all()) else wanted
    codes: dict[str, dict[str, Tensor]] = {}
    for need in needs:
        for tap in need.select(live.taps):
            code = _encode(live, need, tap, rows, kept[tap.name, need.units])
            codes.setdefault(need.code, {})[tap.name] = code.to(device)
    return Traces(live.logits.detach()[rows].float().to(device), live.taps, codes, tuple(needs))


def _encode(live: LiveTrace, need: Need, tap: TapInfo, rows: slice | Tensor, kept: Tensor | None) -> Tensor:
    activation = live.activations[tap.name].detach()[rows]
    signs = need.representation == "bits" and (tap.kind in SIGN_FROM_INPUT or tap.kind == "module")
    source = live.preactivations[tap.name].detach()[rows] if signs else activation
    return encode(need, activation, source, kept)
