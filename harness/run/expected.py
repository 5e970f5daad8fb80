"""What cells are expected to take before they are computed: from cells of the same content elsewhere, or typical costs.

Typical costs are those of the built-in suites on one core, in forward passes of the model (a backward one counts two)
and in seconds that do not depend on the model. An adaptive attack stops at an image that it got past, so that its cost
may be a tenth or three times what is typical. What was measured on this machine is remembered in the cache
(:class:`.rates.Rates`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from ..core.content_keys import content_key
from ..plan.cells import Cell, PastAllJob
from ..plan.models import model_spec
from ..plan.plan import Plan
from .rates import Rates

if TYPE_CHECKING:
    from pathlib import Path

    from ..data.types import Dataset
    from ..plan.facts import PerturbationFacts

DECIDES_NO_NUMBER = True

Basis = Literal["measured", "similar", "typical"]

# Seconds of one forward pass for each number of an image: networks grow with their images (a ResNet-20 on CIFAR-10
# takes 1.5 ms, a small one on digits 0.03 ms).
_PASS = {"cpu": 5e-7, "cuda": 2e-8}
# Seconds of a cell of no images.
_EMPTY = 0.003
# A score whose surrogate is differentiated takes that much longer than the model's own pass, in seconds.
_SURROGATE = 1e-4


@dataclass(frozen=True)
class Cost:
    """Typical cost of an image: forward passes, and seconds besides."""

    passes: float
    seconds: float


# Of an image, by kind; what attacks take depends on their effort.
TYPICAL = {
    "trace": Cost(0.7, 1.5e-5),
    "variant": Cost(4.0, 3e-4),
    "rounded": Cost(1.7, 8e-5),
    "control": Cost(2.0, 2e-4),
    "fit": Cost(1.0, 1.5e-4),
    "score": Cost(0.5, 8e-5),
    "view": Cost(1.5, 5e-4),
    "gradient": Cost(6.0, 5e-4),
    "encoders": Cost(1.0, 2e-4),
    "propagation": Cost(2.0, 2e-4),
    "analysis": Cost(5.0, 7e-4),
}
# Bytes that are stored of an image, for each of its numbers, and besides.
_STORED = {
    "perturb": (3.5, 0), "check": (3.5, 0), "shadowed": (3.5, 0), "false-alarm": (3.5, 0), "control": (2.5, 0),
    "rounded": (3.0, 0), "variant": (3.0, 0), "trace": (2.0, 500), "view": (2.0, 500), "gradient": (4.0, 0),
    "fit": (1.0, 400), "score": (0.0, 20), "propagation": (0.0, 250),
}  # fmt: skip
# Shares of what an adaptive attack takes for an image.
_ADAPTIVE = {
    "perturb": 1.0, "rehearsal": 0.3, "check": 0.1, "false-alarm": 0.1, "shadowed": 0.02, "past-all": 0.5,
    "radius": 1.0,
}  # fmt: skip
# Loading a model, and going through the test split once.
_LOADING = 1.0


@dataclass(frozen=True)
class Expected:
    """Expected seconds of one cell, and where they come from.

    Attributes:
        seconds: on one worker.
        basis: ``measured``: the same part on the same model, on this machine; ``similar``: typical costs, corrected by
            what such cells took on this machine; ``typical``: typical costs alone.
    """

    seconds: float
    basis: Basis


class Expectation:
    """Expects what the cells of a plan take.

    Args:
        plan: the plan.
        dataset: the suite's, for the size of an image and of the test split.
        device: the device type.
        weights: file of each model label, ``None`` where it is trained or comes ready.
        rates: what was measured on this machine.
    """

    def __init__(
        self, plan: Plan, dataset: Dataset, device: str, weights: Mapping[str, Path | None], rates: Rates
    ) -> None:
        self._facts = plan.facts.perturbations
        self._rates = rates
        self._test_images = len(dataset.test)
        self._values = math.prod(dataset.shape)
        self._pass = _PASS.get(device, _PASS["cuda"]) * self._values
        self._device, self._data = device, plan.suite.data.name
        self._models = {m.key: _content(m.part) for m in plan.models}
        # Images that go through a model while it is trained; 0 for one that is loaded.
        self._training: dict[str, float] = {}
        for model in plan.models:
            spec = model_spec(model.part, plan.suite.folder, weights[model.part.label])
            epochs = spec.recipe(plan.suite.data.name).epochs if spec.needs_training else 0
            self._training[model.key] = float(epochs * len(dataset.train))
        self._likes: dict[tuple[str | None, ...], str] = {}

    def __call__(self, cell: Cell) -> float:
        """Return the expected seconds of a cell."""
        return self.of(cell).seconds

    def of(self, cell: Cell) -> Expected:
        """Return what a cell is expected to take."""
        images = max(1, cell.images)
        known = self._rates.measured(self.like(cell))
        if known is not None:
            return Expected(known * images, "measured")
        typical = self.typical(cell)
        factor = self._rates.factor(cell.kind)
        return Expected(typical * (factor or 1.0), "typical" if factor is None else "similar")

    def typical(self, cell: Cell) -> float:
        """Return the seconds that are typical of a cell."""
        if cell.kind == "model":
            return _LOADING + self._pass * self.passes(cell)
        cost = self._cost(cell)
        return _EMPTY + max(1, cell.images) * (cost.passes * self._pass + cost.seconds)

    def passes(self, cell: Cell) -> float:
        """Return how many forward passes of single images a cell takes, typically; a backward one counts two."""
        if cell.kind == "model":
            return self._test_images + 3 * self._training[cell.key]
        return max(1, cell.images) * self._cost(cell).passes

    def stored(self, cell: Cell) -> float:
        """Return how many bytes a cell is expected to store."""
        images = max(1, cell.images)
        known = self._rates.bytes_per_image(self.like(cell))
        each, more = _STORED.get(cell.kind, (0.0, 0))
        return images * (each * self._values + more if known is None else known)

    def _cost(self, cell: Cell) -> Cost:
        return self._adaptive(cell) or self._oblivious(cell) or TYPICAL.get(cell.kind, TYPICAL["propagation"])

    def like(self, cell: Cell) -> str:
        """Return a digest that cells have in common that take about the same time for an image."""
        job = cell.job
        recheck, how = getattr(job, "recheck", None), getattr(job, "how", None)
        # Labels are unique in a suite: each group is digested once.
        group = (cell.kind, getattr(job, "model", cell.key), cell.name.part, cell.name.code, recheck, how)
        if group not in self._likes:
            self._likes[group] = self._digest(cell, recheck, how)
        return self._likes[group]

    def _digest(self, cell: Cell, recheck: str | None, how: str | None) -> str:
        job = cell.job
        part = _part(cell)
        target = getattr(job, "target", None)
        against = _content(target.part) if target is not None else None
        opponents = [_content(o.target.part) for o in job.opponents] if isinstance(job, PastAllJob) else None
        model = self._models.get(getattr(job, "model", cell.key), None)
        return content_key(
            "like", what=cell.kind, part=None if part is None else _content(part), against=against,
            opponents=opponents, recheck=recheck, model=model, data=self._data, device=self._device,
            code=cell.name.code, how=how, training=self._training.get(cell.key),
        )[:20]  # fmt: skip

    def _adaptive(self, cell: Cell) -> Cost | None:
        """Return what an adaptive attack takes for an image, by what it invests."""
        target = getattr(cell.job, "target", None)
        if cell.kind not in _ADAPTIVE:
            return None
        if target is None and not isinstance(cell.job, PastAllJob):
            return None
        facts = self._of(cell)
        effort = facts.effort if facts is not None else None
        steps, queries = (300.0, 100.0) if effort is None else (3.0 * effort.steps * effort.restarts, effort.queries)
        passes = (steps + queries) * _ADAPTIVE[cell.kind]
        return Cost(passes, passes * _SURROGATE)

    def _oblivious(self, cell: Cell) -> Cost | None:
        if cell.kind not in ("perturb", "radius"):
            return None
        params: Mapping[str, Any] = getattr(_part(cell), "params", {})
        facts, steps = self._of(cell), params.get("steps")
        if facts is not None and facts.kind in ("noise", "corruption"):
            return Cost(1.0, 1e-4)
        if cell.kind == "radius":
            return Cost(300.0, 300 * 2e-5)
        restarts = params.get("restarts", 1)
        passes = 3.0 * (steps if isinstance(steps, int) else 1 if facts is not None and facts.one_step else 30)
        passes *= restarts if isinstance(restarts, int) else 1
        return Cost(passes, passes * 1e-5 + 5e-5)

    def _of(self, cell: Cell) -> PerturbationFacts | None:
        return self._facts.get(getattr(_part(cell), "label", cell.name.part))


def _part(cell: Cell) -> Any:
    """Return the part that a cell is about, ``None`` where it is about none."""
    return getattr(cell.job, "part", None)


def _content(part: Any) -> list[Any]:
    """Return what a part of a suite is, without its label."""
    factory = getattr(part, "factory", None)
    return [part.name, factory, {k: str(v) for k, v in sorted(part.params.items())}]
