"""What an attack learns of a fitted detector on calibrate images, before it meets those that count."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ....attacks.adaptive.rehearsal import Stage, rehearse
from ....attacks.adaptive.stand_ins import from_states, states_of
from ....attacks.adaptive.worst_case import WorstCase
from ...core.errors import AftershockError
from ...core.state import join_state, split_state
from ...plan.cells import RehearsalJob, TargetPlan
from ...suite.instances import make_perturbation
from ..fitted_target import FittedTarget
from ..work import Output
from .lent import lent_model
from .target import target_of
from .task_context import TaskContext


def compute_rehearsal(context: TaskContext, key: str, job: RehearsalJob) -> Output:
    """Learn stand-ins for a detector's score, and in which order the parts of an attack should run."""
    attack = make_perturbation(job.part)
    if not isinstance(attack, WorstCase):
        raise AftershockError(f"{job.part.name} has nothing to rehearse")
    model = lent_model(context.open(job.model), attack)
    target = target_of(context, model, job.target, attack)
    logits = context.reader.tensor(job.logits, "logits")
    images, labels, _ = context.clean("calibrate", 0, len(logits))
    right = (logits.argmax(1) == labels).nonzero().squeeze(1)[: job.images]
    stage = Stage(
        model.model, target, images[right], labels[right], job.seed,
        context.limits,
    )  # fmt: skip
    if not len(right):
        return Output(key, {}, {"state": {}, "parts": [], "follows": {}})
    learned = rehearse(attack, stage)
    tensors, state = split_state(states_of(learned.stand_ins))
    parts = [vars(part) for part in learned.parts]
    return Output(key, tensors, {"state": state, "parts": parts, "follows": dict(learned.follows)})


def informed(context: TaskContext, target: FittedTarget, planned: TargetPlan) -> tuple[FittedTarget, dict[str, Any]]:
    """Return a target with what was learned of it, and what a cell of its attack says of that."""
    if not planned.rehearsal:
        return target, {}
    values = context.reader.values(planned.rehearsal)
    learned = from_states(join_state(context.reader.load(planned.rehearsal), values["state"]))
    names = tuple(part["part"] for part in values["parts"])
    return replace(target, stand_ins=learned, rehearsed=names), {"follows": values["follows"]}
