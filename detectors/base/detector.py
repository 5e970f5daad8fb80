"""What a detector is: fitted on clean traces (and perturbed ones, if supervised), then scores traces.

Larger scores mean more suspicious, always. The contract in one place: ``Detector``, ``DetectorInfo``, what a detector
may declare (needs, views, input gradients), and how its fitted state is stored.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

from torch import Tensor

from ...harness.core.errors import UsageError
from ...harness.core.ranges import Ranged
from ...harness.core.registry import DETECTORS
from ...harness.tracing.extra_passes import InputGradient, View
from ...harness.tracing.traces import LiveTrace, Need, Traces

Surrogate = Literal["exact", "relaxed", "straight-through", "none"]


@dataclass(frozen=True)
class DetectorInfo:
    """What people should know about a detector; the title is enough.

    Attributes:
        title: a short human name.
        paper: where it comes from: authors, year, and an identifier.
        needs: the representations it reads; an instance may narrow them (:meth:`Detector.needs`).
        supervised: it learns from perturbed images too (``fit_on`` in a suite).
        surrogate: how its surrogate relates to its score; attacks on a detector without a usable one are weaker, and
            its robust accuracy is an upper bound.
        summary: one sentence for ``aftershock list``.
        randomised: its score of an image is drawn anew each time (a random view, noise). One that is and does not
            declare it is not ranked; of one that does, an image passes if it does in a majority of 20 evaluations.
    """

    title: str
    paper: str = ""
    needs: tuple[Need, ...] = (Need("bits"), Need("pooled"))
    supervised: bool = False
    surrogate: Surrogate = "none"
    summary: str = ""
    randomised: bool = False


class Detector(Ranged, ABC):
    """Base of every detector; the constructor's parameters are what a suite may set.

    A subclass sets ``info`` and writes ``fit`` and ``score``. Attributes that ``fit`` sets (tensors, numbers, strings
    and lists or dicts of them) are stored by the default :meth:`state`; names with a leading underscore are not.
    """

    info: ClassVar[DetectorInfo]

    @property
    def needs(self) -> tuple[Need, ...]:
        """What this instance reads; logits are always there."""
        return self.info.needs

    @property
    def supervised(self) -> bool:
        """Whether this instance learns from perturbed images."""
        return self.info.supervised

    @property
    def surrogate_kind(self) -> Surrogate:
        """How this instance's surrogate relates to its score; ``none`` where it has none."""
        return self.info.surrogate

    @property
    def randomised(self) -> bool:
        """Whether this instance's score of an image is drawn anew each time it is asked for."""
        return self.info.randomised

    @property
    def made_of(self) -> tuple[str, ...]:
        """Names of the registered detectors that this instance consists of: their code decides its scores, too."""
        return ()

    @property
    def views(self) -> tuple[View, ...]:
        """Extra forwards that the harness shall trace for this instance."""
        return ()

    @property
    def gradients(self) -> tuple[InputGradient, ...]:
        """Gradients with respect to the input that the harness shall compute for this instance."""
        return ()

    @abstractmethod
    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        """Learn from clean fit images and, if supervised, from successfully perturbed ones.

        Args:
            clean: traces with ``labels`` and a seeded ``generator``; the set may be larger than memory.
            perturbed: traces of perturbed fit images; ``None`` for an unsupervised detector.
        """

    @abstractmethod
    def score(self, traces: Traces) -> Tensor:
        """Suspicion of each image: finite, shape (n,), larger = more suspicious; the same for every batch split."""

    def surrogate(self, live: LiveTrace) -> Tensor:
        """Return a differentiable stand-in for :meth:`score`, shape (n,), for attacks that know this detector.

        Raises:
            UsageError: by default, since a detector need not offer one.
        """
        raise UsageError(f"The detector {type(self).__name__} offers no surrogate.")

    def state(self) -> dict[str, Any]:
        """Return what ``fit`` learned, as tensors and JSON values in nested dicts and lists."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Put back what :meth:`state` gave.

        States come from files, perhaps from an untrusted source: what the constructor checked stays as it is, and
        neither methods nor private attributes can be replaced.

        Raises:
            UsageError: for such a name.
        """
        checked = inspect.signature(type(self)).parameters
        for name, value in state.items():
            if name in checked:
                continue
            if name.startswith("_") or hasattr(type(self), name):
                raise UsageError(f"The state of {type(self).__name__} holds {name!r}, which no fit learns.")
            setattr(self, name, value)


register = DETECTORS.register
