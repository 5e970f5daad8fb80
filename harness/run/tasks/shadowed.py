"""Which shadow images are attacked: those that can be compared with the images that they were made of."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ...evaluation.shadows import can_tell, pairs, stand
from ...plan.cells import PerturbJob, ShadowPlan
from ..fitted_target import FittedTarget
from .task_context import TaskContext


def shadow_images(
    context: TaskContext, job: PerturbJob, shadow: ShadowPlan, target: FittedTarget
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return images to attack, their labels, positions and rows of the set.

    Model and detector are right about them and about what they were made of. There are none where too few of the latter
    stand for any outcome to tell something.
    """
    _, labels, positions = context.clean(job.set, job.start, job.stop)
    right = [
        context.reader.tensor(key, "logits")[: job.stop].argmax(1) == labels for key in (shadow.logits, job.logits)
    ]
    scores = [context.reader.tensor(key, "score")[: job.stop].numpy() for key in (shadow.clean, shadow.shadow)]
    compared = pairs((right[0] & right[1]).numpy(), scores[0], scores[1], target.threshold)
    original = context.reader.load(shadow.original)
    standing = stand(compared, original["row"].numpy(), (original["success"] & original["passed"]).numpy())
    rows = torch.from_numpy(compared if can_tell(standing) else np.zeros(0, np.int64))
    return context.reader.tensor(shadow.images, "images")[rows], labels[rows], positions[rows], rows
