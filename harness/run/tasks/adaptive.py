"""Attacks that know a detector: what each finds, and what the detector says of it where no attack runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ...core.errors import AftershockError, UnavailableError
from ...core.model_state import device_of
from ...core.process_state import CHANGED_FLAG, guarded_part
from ...core.seeds import derive_seed, forked_rng
from ...plan.cells import PerturbJob, TargetPlan
from ...suite.instances import make_perturbation
from ...tracing.traced_model import TracedModel
from ..fitted_target import FittedTarget
from ..work import Output
from .canary import canary_standing
from .lent import lent_model
from .perturbations import changes_elsewhere, perturbed, tensors_of, values_of
from .rehearsal import informed
from .shadowed import shadow_images
from .target import target_of
from .task_context import TaskContext

if TYPE_CHECKING:
    from ....attacks.base.perturb_batch import PerturbedBatch


def compute_adaptive(context: TaskContext, key: str, job: PerturbJob, planned: TargetPlan) -> Output:
    """Perturb the rows that the model gets right so that a fitted detector lets them pass."""
    perturbation = make_perturbation(job.part)
    model = context.open(job.model)
    attacked = lent_model(model, perturbation)
    target, learned = informed(context, target_of(context, attacked, planned, perturbation), planned)
    chosen = shadow_images(context, job, job.shadow, target) if job.shadow is not None else None
    made, rows = perturbed(context, job, perturbation, attacked, model, target, chosen)
    tensors, values = tensors_of(made, rows), values_of(made, perturbation) | learned
    if job.canary:
        values["canary"] = canary_standing(perturbation, context.dataset, context.limits, context.device)
    if not len(rows):
        return Output(key, tensors | {"passed": made.success}, values)
    told = target.changed
    verdict = judge(context, target, planned, model, made, job.seed)
    tensors |= {"judged": verdict.scores, "told": made.told, "passed": verdict.passed, **verdict.asked}
    values["questions"] = verdict.questions
    changes = [f"{CHANGED_FLAG}:{name}" for name in (*told, *verdict.changed)]
    values["flags"] += dict.fromkeys([*changes, *changes_elsewhere(context.detector(planned.fit, planned.part))])
    values["undetected"] = int((made.success & verdict.passed).sum())
    # An attack of a plugin need not say which of its parts made what.
    credited = zip(made.credits, made.success.tolist(), strict=False)
    values["parts"] = dict(Counter(part for part, fooled in credited if fooled and part))
    return Output(key, tensors, values)


@dataclass(frozen=True, eq=False)
class Verdict:
    """What a detector says of an attack's final images where no attack runs.

    Attributes:
        scores: one row for each evaluation, float64 (k, n); infinite where it answered NaN.
        passed: which images pass in most evaluations, and in a process in which no attack runs (where it gives no
            answer, none passes; of a drawn score it gives one evaluation, which is not held against it); bool (n,).
        asked: what it told of images on the way, and what it says there, by name.
        questions: why there is none of the latter, where the detector is to blame.
        changed: state of the process that it left changed, by name.
    """

    scores: Tensor
    passed: Tensor
    asked: Mapping[str, Tensor]
    questions: str
    changed: Sequence[str]


def judge(
    context: TaskContext, target: FittedTarget, planned: TargetPlan, model: TracedModel, made: PerturbedBatch, seed: int
) -> Verdict:  # fmt: skip
    """Ask a detector about an attack's final images, with the model as it is judged by."""
    target = replace(target, detector=context.detector(planned.fit, planned.part), traced_model=model)
    scores = judged(target, made.images, seed)
    asked, there, questions = _elsewhere(context, model, planned, made)
    passed = passes(target, scores)
    if questions or target.evaluations == 1:
        # What passes while the attack runs has to pass where none does; of a drawn score, one draw there says nothing.
        passed &= there <= target.threshold
    return Verdict(scores, passed, asked, questions, target.changed)


def _elsewhere(
    context: TaskContext, model: TracedModel, planned: TargetPlan, made: PerturbedBatch
) -> tuple[dict[str, Tensor], Tensor, str]:
    """Ask a process in which no attack runs about the images that an attack asked about on its way, and its last ones.

    Returns:
        what the detector told of the former, and what it says there, by name; the scores of the latter, float64 (n,),
        infinite where there are none; and why there are none, where the detector is to blame.
    """
    detector, asked = context.detector(planned.fit, planned.part), made.images[:0] if made.asked is None else made.asked
    images = torch.cat([asked, made.images])
    traces = model.traces(detector, images.to(context.device))
    try:
        scored = context.fresh_scores(planned.fit, planned.part, traces, 1, images, model)[0]
    except UnavailableError:
        with torch.no_grad(), guarded_part(detector):
            answer = detector.score(traces)
        scored = answer.detach().double().cpu()
    except AftershockError as error:
        return {}, torch.full((len(made.images),), torch.inf, dtype=torch.float64), str(error)
    found = {"asked:told": made.asked_score, "asked:scored": scored[: len(asked)]}
    return found, scored[len(asked) :], ""


def judged(target: FittedTarget, images: Tensor, seed: int) -> Tensor:
    """Return what a detector says of final images where no attack runs, the same in every run.

    Returns:
        scores, float64 (evaluations, n); NaN says that a detector was not asked, so one that answers so says infinity.
    """
    model = target.traced_model.model
    images, given = images.to(device_of(model)), list[Tensor]()
    for number in range(target.evaluations):
        with forked_rng(derive_seed(seed, "judged", number)):
            given.append(target.evaluate(model, images, number)[1].cpu())
    found = torch.stack(given)
    return torch.where(found.isnan(), torch.inf, found)


def passes(target: FittedTarget, given: Tensor) -> Tensor:
    """Return which images pass in most of some evaluations (k, n), bool (n,)."""
    return (given <= target.threshold).double().mean(0) > 0.5
