"""Images that fool the model and pass all detectors of a suite at once."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ....attacks.adaptive.past_all import Opponent, PastAll
from ....attacks.adaptive.worst_case import WorstCase
from ....attacks.base.perturb_batch import perturb_batch
from ...core.errors import AftershockError
from ...plan.cells import PastAllJob, TargetPlan
from ...suite.instances import make_perturbation
from ...tracing.traced_model import TracedModel
from ..fitted_target import FittedTarget
from ..work import Output
from .adaptive import judged, passes
from .perturbations import tensors_of, values_of
from .rehearsal import informed
from .target import target_of
from .task_context import TaskContext


def compute_past_all(context: TaskContext, key: str, job: PastAllJob) -> Output:
    """Search on the images that the model gets right and every detector lets pass."""
    worst, model = make_perturbation(job.part), context.open(job.model)
    if not isinstance(worst, WorstCase):
        raise AftershockError(f"{job.part.name} says nothing of what a search past all detectors may cost")
    images, labels, positions = context.clean("evaluate", 0, job.stop)
    wanted = context.reader.tensor(job.logits, "logits")[: job.stop].argmax(1) == labels
    opponents, targets = [], []
    for one in job.opponents:
        target, learned = informed(context, target_of(context, model, one.target, worst), one.target)
        opponents.append(Opponent.of(target, learned.get("follows", {})))
        targets.append(target)
        wanted &= context.reader.tensor(one.clean, "score")[: job.stop] <= target.threshold
    rows = wanted.nonzero().squeeze(1)
    attack = PastAll.beside(worst, opponents, _starts(context, job, rows, positions))
    made = perturb_batch(
        attack, model.model, images[rows], labels[rows], positions[rows].tolist(), seed=job.seed,
        limits=context.limits,
    )  # fmt: skip
    judges = [target_of(context, model, planned, worst) for planned in job.judges]
    plans = [*(one.target for one in job.opponents), *job.judges]
    found = [
        _passes(context, model, target, planned, made.images, job.seed)
        for target, planned in zip((*targets, *judges), plans, strict=True)
    ]
    passed = torch.stack(found[: len(targets)])
    judging = torch.stack(found[len(targets) :]) if judges else passed[:0]
    return Output(key, tensors_of(made, rows) | {"passed": passed, "judged": judging}, values_of(made, attack))


def _starts(context: TaskContext, job: PastAllJob, rows: Tensor, positions: Tensor) -> dict[int, Tensor]:
    """Return what the attacks on single detectors made of each image, by its position."""
    found: dict[int, list[Tensor]] = {}
    for one in job.opponents:
        made = context.reader.load(one.made)
        of_row = dict(zip(made["row"].tolist(), made["images"], strict=True))
        for row in rows.tolist():
            if row in of_row:
                found.setdefault(int(positions[row]), []).append(of_row[row])
    return {position: torch.stack(images) for position, images in found.items()}


def _passes(
    context: TaskContext, model: TracedModel, target: FittedTarget, planned: TargetPlan, images: Tensor, seed: int
) -> Tensor:
    """Return which images a detector lets pass where no attack runs, bool (n,)."""
    if not len(images):
        return torch.zeros(0, dtype=torch.bool)
    target = replace(target, detector=context.detector(planned.fit, planned.part), traced_model=model)
    return passes(target, judged(target, images, seed))
