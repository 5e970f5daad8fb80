"""Lays out a suite, model by model and seed by seed."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from ...attacks.base.kinds import HOSTILE
from ..core.code_digests import part_digest
from ..core.protocol_content import ProtocolContent
from ..core.registry import PACKAGE, PERTURBATIONS
from ..data.types import LEVEL_IMAGES, Dataset, data_levels
from ..suite.resolved import ModelPart, Suite
from ..tracing.traced_model import NeedsCodes
from .alarms import alarm_images, plan_alarms
from .analyses import plan_analyses, plan_standing
from .cells import Images
from .detectors import DetectorPlanner
from .draft import Draft, Made
from .models import model_identity, ready_state
from .past_all import plan_past_all
from .perturbations import plan_adaptive, plan_control, plan_perturbation, plan_rounding
from .plan import ModelPlan, Plan
from .radii import plan_alone, plan_radius, radius_attacks
from .sets import make_sets
from .variants import plan_shadowed, plan_variants

DECIDES_NO_NUMBER = True


def make_plan(
    suite: Suite,
    dataset: Dataset,
    data_digest: str,
    device: str,
    weights: Mapping[str, Path | None],
    limit: int | None = None,
    lost: Mapping[str, Collection[str]] | None = None,
    secret: str = "",
) -> Plan:
    """Lay out a suite.

    Args:
        suite: resolved and checked.
        dataset: loaded, for the sizes of its splits.
        data_digest: digest of the data's bytes and of the code that reads them.
        device: the device type; results of different devices differ in the last digits.
        weights: file of each model label, ``None`` where it is trained.
        limit: maximum number of images in each set.
        lost: labels of the perturbations that failed, by key of the model: analyses are made without them.
        secret: of the run, which decides the shadow images; without one there are none.

    Raises:
        UsageError: if the sets do not fit the splits, or a perturbation cannot be planned.
    """
    sets = make_sets(suite, dataset, limit)
    levels = data_levels(dataset.train.images(sets.fit[:LEVEL_IMAGES].tolist()))
    states = {
        (part.label, seed): ready_state(part, suite.folder, weights[part.label], dataset, seed)
        for part in suite.models
        for seed in suite.seeds
    }
    draft = Draft(suite, sets, data_digest, device, weights, dataset.task, levels, states, lost, secret)
    models = tuple(_plan_model(draft, part, seed) for part in suite.models for seed in suite.seeds)
    protocols = {p.label: ProtocolContent.of(_protocol(draft, p), tuple(suite.seeds)) for p in suite.models}
    return Plan(
        suite, draft.sets, draft.cells, models, protocols, draft.applicability, _ranked(draft),
        alarm_images(draft, _ranked(draft)), draft.facts,
    )  # fmt: skip


def _plan_model(draft: Draft, part: ModelPart, seed: int) -> ModelPlan:
    """Plan everything for one model and seed, in an order in which inputs come first."""
    model_plan = ModelPlan(part, seed, draft.model(part, seed))
    readers: tuple[NeedsCodes, ...] = (
        *draft.standing.values(), *draft.detectors.values(), *draft.analyses.values()
    )  # fmt: skip
    needs = draft.stored_needs(part, (need for reader in readers for need in reader.needs))
    for name in ("fit", "calibrate", "evaluate"):
        model_plan.clean[name] = tuple(
            draft.traces(model_plan, Images(name, start, stop), needs, Made("none", name))
            for start, stop in draft.chunks(name)
        )
    plan_variants(draft, model_plan, needs)
    fitted = [d for d in draft.suite.detectors if d.label not in draft.applicability.unfitted]
    learned = {label for d in fitted for label in (*d.fit_on, *d.fit_negatives)}
    oblivious = [p for p in draft.planned if not p.against]
    adaptive = [p for p in draft.planned if p.against]
    for perturbation in oblivious:
        plan_perturbation(draft, model_plan, perturbation, "evaluate")
        plan_control(draft, model_plan, perturbation)
        if perturbation.label in learned:
            plan_perturbation(draft, model_plan, perturbation, "fit")
    detectors = [DetectorPlanner(draft, model_plan, detector) for detector in fitted]
    attacked = {perturbation.against for perturbation in adaptive}
    for detector in detectors:
        detector.fit()
        if detector.part.label in attacked:
            detector.score_guides()
    for perturbation in adaptive:
        plan_adaptive(draft, model_plan, perturbation)
        plan_control(draft, model_plan, perturbation)
        plan_shadowed(draft, model_plan, perturbation)
        plan_alarms(draft, model_plan, perturbation, _ranked(draft))
    plan_past_all(draft, model_plan, adaptive, _ranked(draft))
    for perturbation in radius_attacks(draft, adaptive):
        plan_alone(draft, model_plan, perturbation, oblivious)
        plan_radius(draft, model_plan, perturbation)
    for perturbation in draft.planned:
        if draft.perturbations[perturbation.label].info.kind in HOSTILE:
            plan_rounding(draft, model_plan, perturbation)
    # All detectors of one perturbation in a row: what is read of its images is read once.
    for perturbation in draft.planned:
        for detector in detectors:
            detector.score_perturbed(perturbation)
    plan_standing(draft, model_plan)
    plan_analyses(draft, model_plan)
    return model_plan


def _ranked(draft: Draft) -> int:
    """Return how many evaluate images, from the first on, every adaptive attack covers."""
    limits = [draft.perturbations[p.label].images for p in draft.applicable if p.against]
    return min([len(draft.sets.evaluate), *(n for n in limits if n is not None)])


def _protocol(draft: Draft, part: ModelPart) -> dict[str, object]:
    """What rows of one model must share to be compared: data, weights, splits, perturbations, threat; and the seeds.

    Perturbations that do not apply to the task are not in it: the suite without them gives the same rows.
    Detectors, other models, analyses and paths are not in it; an adaptive attack counts once, whatever it is made
    against.
    """
    suite, perturbations = draft.suite, []
    for p in {p.label.partition("@")[0]: p for p in draft.applicable}.values():
        entry = PERTURBATIONS.entry(p.name)
        foreign = "" if entry.origin.package == PACKAGE else part_digest(entry, "attacks.base.perturbation")
        perturbations.append([p.label.partition("@")[0], p.name, draft.portable(p), foreign])
    return {
        "data": draft.data_digest,
        "model": model_identity(
            part,
            suite.folder,
            draft.weights[part.label],
            suite.data.name,
            draft.states.get((part.label, suite.seeds[0])),
        ),
        "splits": [draft.positions_digest(n, 0, len(draft.sets.of(n))) for n in ("fit", "calibrate", "evaluate")],
        "perturbations": perturbations,
        "threat": suite.threat,
        "price_images": suite.price_images,
    }
