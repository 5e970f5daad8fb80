"""What a plan is: cells in an order in which inputs come first, and the map of what is where."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..core.protocol_content import ProtocolContent
from ..suite.resolved import ModelPart, Suite
from .applicability import Applicability
from .cells import Cell, Rounding, SetName, TraceKeys, Variant
from .facts import Facts
from .sets import Sets

DECIDES_NO_NUMBER = True


@dataclass
class ModelPlan:
    """Everything planned for one model and seed.

    ``checks`` holds, by the label of an adaptive perturbation, the cell of the same attack at its large budget;
    ``shadowed`` the one of the same attack on shadow images; ``radii``, by the label of a detector (empty for none at
    all), the search for the smallest perturbations that pass it; ``alarms``, likewise, the cell with the smallest
    changes that it flags although the model is right; ``past_all`` the cell with images that pass all detectors, empty
    where none is planned; ``variants``, by what was made of the first evaluate images, the traces of that;
    ``rounded``, by the label of an attack and the kind of rounding, the cells of its images after that;
    ``standing``, by the name of an analysis that is part of every run and the label of a perturbation, what
    was measured of it.
    """

    part: ModelPart
    seed: int
    key: str
    clean: dict[SetName, tuple[TraceKeys, ...]] = field(default_factory=dict)
    perturbs: dict[tuple[str, SetName], tuple[str, ...]] = field(default_factory=dict)
    controls: dict[str, tuple[str, ...]] = field(default_factory=dict)
    checks: dict[str, str] = field(default_factory=dict)
    shadowed: dict[str, str] = field(default_factory=dict)
    radii: dict[str, str] = field(default_factory=dict)
    alarms: dict[str, str] = field(default_factory=dict)
    past_all: str = ""
    variants: dict[Variant, TraceKeys] = field(default_factory=dict)
    rounded: dict[tuple[str, Rounding], tuple[str, ...]] = field(default_factory=dict)
    fits: dict[str, str] = field(default_factory=dict)
    scores: dict[tuple[str, str], str] = field(default_factory=dict)
    standing: dict[str, dict[str, str]] = field(default_factory=dict)
    analyses: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Plan:
    """The cells of a run, in an order in which inputs come first, and where each result is found.

    ``ModelPlan.scores`` is keyed by detector label and source: ``calibrate``, ``clean``, ``fit`` (of a detector that is
    attacked, the first fit images), ``shadow`` and ``re-encoded``, a perturbation's label, or
    ``control:<label>``, ``8-bit:<label>`` and ``levels:<label>`` (of an adaptive attack only for the detector that it
    was made against).
    ``ranked`` is the number of evaluate images, from the first on, that every adaptive attack of the suite covers;
    ``alarms`` that of those on which false alarms are looked for, 0 where they are not.
    ``protocols``, what rows must share to be compared, is keyed by model label. What ``applicability`` leaves out
    (perturbations that are not defined for the task, detectors that learn from them) has no cells and is in no digest.
    ``facts`` is what tables say of the suite's parts, those without cells too.
    """

    suite: Suite
    sets: Sets
    cells: Mapping[str, Cell]
    models: tuple[ModelPlan, ...]
    protocols: Mapping[str, ProtocolContent]
    applicability: Applicability
    ranked: int
    alarms: int
    facts: Facts
