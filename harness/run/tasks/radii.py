"""The smallest perturbations that fool a model and pass a detector, measured."""

from __future__ import annotations

from collections import Counter

import torch
from torch import Tensor

from ....attacks.adaptive.smallest_radius import Known, NoDetector, SmallestRadius
from ....attacks.adaptive.worst_case import WorstCase
from ....attacks.base.perturb_batch import perturb_batch
from ....attacks.base.target import TargetDetector
from ....attacks.base.watched_model import Limits
from ...core.errors import AftershockError
from ...plan.cells import RadiusJob
from ...suite.instances import make_perturbation
from ..work import Output
from .adaptive import judge
from .lent import lent_model
from .perturbations import NO_GRADIENT, tensors_of, values_of
from .rehearsal import informed
from .target import target_of
from .task_context import TaskContext


def compute_radius(context: TaskContext, key: str, job: RadiusJob) -> Output:
    """Search for the smallest perturbation of each of the first images that the model gets right.

    The cell holds the nearest images found and, by row, their measured distance (``radius``) and that of the nearest
    image that fools, whether it passes or not (``alone``); infinite where nothing was found.
    """
    attack = make_perturbation(job.part)
    if not isinstance(attack, WorstCase):
        raise AftershockError(f"{job.part.name} has no budget from which a radius could be searched")
    if not context.reader.values(job.model)["gradient"]:
        raise AftershockError(NO_GRADIENT)
    logits = context.reader.tensor(job.logits, "logits")
    images, labels, positions = context.clean("evaluate", 0, len(logits))
    right = (logits.argmax(1) == labels).nonzero().squeeze(1)[: job.images]
    model = context.open(job.model)
    attacked, target = lent_model(model, attack), None
    known = _known(context, job, right, positions)
    search = SmallestRadius(attack.large_eps, attack.ball, known=known)
    asked: TargetDetector = NoDetector()
    if job.target is not None:
        target, _ = informed(context, target_of(context, attacked, job.target, attack), job.target)
        asked = target
    limits = context.suite.limits
    made = perturb_batch(
        search, attacked.model, images[right], labels[right], positions[right].tolist(), job.seed, target=asked,
        limits=Limits(limits.forwards, limits.backwards, limits.seconds), measured_with=model.model,
    )  # fmt: skip
    passed = made.success & torch.tensor([bool(part) for part in made.credits], dtype=torch.bool)
    if target is not None and job.target is not None and len(right):
        passed &= judge(context, target, job.target, model, made, job.seed).passed
    alone = torch.tensor([search.alone.get(i, torch.inf) for i in positions[right].tolist()])
    tensors = tensors_of(made, right)
    tensors |= {"radius": torch.where(passed, made.norms[attack.ball], torch.inf), "alone": alone}
    values = values_of(made, search) | {"reach": attack.large_eps, "parts": dict(Counter(filter(None, made.credits)))}
    return Output(key, tensors, values)


def _known(context: TaskContext, job: RadiusJob, rows: Tensor, positions: Tensor) -> dict[int, Known]:
    """Return what other cells know of some rows, by their positions in the split; first what the search alone found."""
    images: dict[int, list[Tensor]] = {int(row): [] for row in rows}
    floors = dict.fromkeys(images, 0.0)
    for cell in (job.alone, *job.known) if job.alone else job.known:
        found = context.reader.load(cell)
        for row, image, fooled in zip(found["row"].tolist(), found["images"], found["success"].tolist(), strict=True):
            if row in images and fooled:
                images[row].append(image)
        if cell == job.alone:
            for row, radius in zip(found["row"].tolist(), found["radius"].tolist(), strict=True):
                floors[row] = radius if radius < torch.inf else 0.0
    return {
        int(positions[row]): Known(torch.stack(of), floors[row]) for row, of in images.items() if of
    }  # fmt: skip
