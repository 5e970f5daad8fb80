"""The smallest changes of clean images that a detector flags although the model is right about them."""

from __future__ import annotations

from dataclasses import replace

from ....attacks.adaptive.false_alarm import FalseAlarm
from ....attacks.adaptive.worst_case import WorstCase
from ....attacks.base.perturb_batch import perturb_batch
from ...core.errors import AftershockError
from ...plan.cells import AlarmJob
from ...suite.instances import make_perturbation
from ..work import Output
from .adaptive import judged, passes
from .perturbations import tensors_of, values_of
from .rehearsal import informed
from .target import target_of
from .task_context import TaskContext


def compute_alarms(context: TaskContext, key: str, job: AlarmJob) -> Output:
    """Search on the images that the model gets right and the detector lets pass."""
    worst = make_perturbation(job.part)
    if not isinstance(worst, WorstCase):
        raise AftershockError(f"{job.part.name} says nothing of what a search for false alarms may cost")
    model = context.open(job.model)
    target, learned = informed(context, target_of(context, model, job.target, worst), job.target)
    target = replace(target, flagging=True)
    images, labels, positions = context.clean("evaluate", 0, job.stop)
    right = context.reader.tensor(job.logits, "logits")[: job.stop].argmax(1) == labels
    unflagged = context.reader.tensor(job.clean, "score")[: job.stop] <= target.threshold
    rows = (right & unflagged).nonzero().squeeze(1)
    attack = FalseAlarm.beside(worst, target, learned.get("follows", {}))
    made = perturb_batch(
        attack, model.model, images[rows], labels[rows], positions[rows].tolist(), seed=job.seed, target=target,
        limits=context.limits,
    )  # fmt: skip
    tensors, values = tensors_of(made, rows), values_of(made, attack)
    if not len(rows):
        return Output(key, tensors | {"flagged": made.success}, values)
    target = replace(target, detector=context.detector(job.target.fit, job.target.part))
    given = judged(target, made.images, job.seed)
    tensors |= {"judged": given, "flagged": ~passes(target, given)}
    return Output(key, tensors, values)
