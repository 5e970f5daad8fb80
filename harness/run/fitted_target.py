"""A fitted detector as attacks that know it see it: one pass gives its surrogate, its true score and features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...attacks.base.target import Guides, Observation
from ...detectors.base.detector import Detector
from ..core.process_state import guarded_part
from ..core.process_state.guard import own_code
from ..evaluation.consistency import EVALUATIONS
from ..statistics.detection import ALPHAS, threshold, threshold_rank
from ..tracing.encoding import encode
from ..tracing.taps import SIGN_FROM_INPUT
from ..tracing.traced_model import TracedModel
from ..tracing.traces import LiveTrace, Need, TapInfo, Traces, sampled_units


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
    """

    detector: Detector
    traced_model: TracedModel
    calibrate: Tensor
    clean: Tensor
    labels: Tensor
    scores: Tensor

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

    def observe(
        self, model: nn.Module, images: Tensor, temperature: float = 1.0, straight_through: bool = False,
        surrogate: bool = True,
    ) -> Observation:  # fmt: skip
        """See the protocol; detectors with views or input gradients are scored by further passes."""
        i, needs = replace(self.traced_model, model=model), self.traced_model.capped(self.detector.needs)
        # Code of others may work in place.
        live = i.live(self.detector.needs, images, copies=not own_code(self.detector))
        live = replace(live, temperature=temperature, straight_through=straight_through)
        suspicion = None
        if self.has_surrogate and surrogate:
            with self._guarded():
                suspicion = self.detector.surrogate(live)
        read = dict.fromkeys(t.name for need in needs for t in need.select(i.taps))
        features = {name: live.activations[name] for name in read} or {"logits": live.logits}

        def score(wanted: Tensor) -> Tensor:
            if self._plain:
                return self._score(hard_traces(live, needs, wanted)).to(images.device)
            return self.query(model, images.detach()[wanted])[1]

        return Observation(live.logits, suspicion, score, features)

    def query(self, model: nn.Module, images: Tensor, draw: int = 0) -> tuple[Tensor, Tensor]:
        """See the protocol; the defender's own draws are not known to an attacker, who has some of its own."""
        # ``model`` counts the passes of the one that the detector was fitted for.
        with self._guarded():
            logits, score = replace(self.traced_model, model=model).score(self.detector, images, draw)
        return logits.to(images.device), score.to(images.device)

    def guides(self) -> Guides:
        """See the protocol."""
        passing = self.scores <= self.threshold
        return Guides(self.clean[passing], self.labels[passing])

    @property
    def evaluations(self) -> int:
        """How often a final image is scored: several times where the detector declares that its score is drawn."""
        return EVALUATIONS if self.detector.randomised else 1

    @property
    def _plain(self) -> bool:
        return not self.detector.views and not self.detector.gradients

    def _score(self, traces: Traces) -> Tensor:
        with torch.no_grad(), self._guarded():
            found = self.detector.score(traces)
        return found.detach().double().cpu()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Keep what the detector does to the process's state from the attack."""
        with guarded_part(self.detector) as changes:
            yield
        self.changed += changes.all


def hard_traces(live: LiveTrace, needs: Sequence[Need], wanted: Tensor) -> Traces:
    """Return the codes that a recording of the same pass would hold of some images, bool (n,), on the CPU."""
    # All are the usual case once an attack is under way, and a slice copies nothing.
    rows = slice(None) if bool(wanted.all()) else wanted
    codes: dict[str, dict[str, Tensor]] = {}
    for need in needs:
        for tap in need.select(live.taps):
            codes.setdefault(need.code, {})[tap.name] = _encode(live, need, tap, rows).cpu()
    return Traces(live.logits.detach()[rows].float().cpu(), live.taps, codes, tuple(needs))


def _encode(live: LiveTrace, need: Need, tap: TapInfo, rows: slice | Tensor) -> Tensor:
    activation = live.activations[tap.name].detach()[rows]
    signs = need.representation == "bits" and (tap.kind in SIGN_FROM_INPUT or tap.kind == "module")
    source = live.preactivations[tap.name].detach()[rows] if signs else activation
    return encode(need, activation, source, sampled_units(tap, need.units))
