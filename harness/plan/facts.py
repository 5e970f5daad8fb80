"""What tables say of the parts of a suite beside what was measured: asked once, when a suite is planned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...attacks.base.kinds import Effort

if TYPE_CHECKING:
    from ...analyses.base import Analysis
    from ...attacks.base.perturbation import Perturbation
    from ...detectors.base.detector import Detector
    from ..core.registry import Origin

DECIDES_NO_NUMBER = True


@dataclass(frozen=True)
class PerturbationFacts:
    """A perturbation at one budget.

    Attributes:
        kind: noise, corruption, attack or adaptive.
        family: perturbations of one family count as seen together.
        library: the package whose code runs.
        norm, eps: the budget, ``None`` where there is none.
        images: maximum number of evaluate images that it perturbs, ``None`` for all.
        box: ``white`` or ``black``; empty where that is not known.
        one_step: it takes a single gradient step.
        gradients: it needs gradients of the model.
        effort: of an adaptive attack, what it invests per image; ``None`` where it does not say.
        is_checked: of an adaptive attack, that its check at a large budget says whether it works.
    """

    kind: str
    family: str
    library: str
    norm: str | None
    eps: float | None
    images: int | None
    box: str
    one_step: bool
    gradients: bool
    effort: Effort | None
    is_checked: bool


@dataclass(frozen=True)
class DetectorFacts:
    """A detector: what its surrogate is, and whether its scores are drawn."""

    surrogate: str
    randomised: bool


@dataclass(frozen=True)
class AnalysisFacts:
    """An analysis: its title, its paper, and whether it reads perturbed images."""

    title: str
    paper: str
    reads_perturbed: bool


@dataclass(frozen=True)
class Facts:
    """The facts of a suite's parts, by label."""

    perturbations: Mapping[str, PerturbationFacts]
    detectors: Mapping[str, DetectorFacts]
    analyses: Mapping[str, AnalysisFacts]


def perturbation_facts(made: Perturbation, origin: Origin | None = None) -> PerturbationFacts:
    """Return what a perturbation says of itself; where it names no library, that of its origin."""
    info = made.info
    return PerturbationFacts(
        kind=info.kind,
        family=str(made.family),
        library=str(info.library) or ("" if origin is None else origin.library),
        norm=made.norm,
        eps=None if made.eps is None else float(made.eps),
        images=made.images,
        # What made the images of a file is unknown.
        box=info.box if made.learnable else "",
        one_step=info.one_step,
        gradients=info.gradients,
        effort=made.effort,
        is_checked=bool(getattr(made, "is_checked", True)),
    )


def detector_facts(made: Detector) -> DetectorFacts:
    """Return what a detector says of itself."""
    return DetectorFacts(str(made.surrogate_kind), bool(made.randomised))


def analysis_facts(made: Analysis[Any]) -> AnalysisFacts:
    """Return what an analysis says of itself."""
    return AnalysisFacts(str(made.info.title), str(made.info.paper), bool(made.reads_perturbed))
