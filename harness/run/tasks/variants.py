"""Variants of the evaluate images: those that the run's secret decides, and those that are the same in every run."""

from __future__ import annotations

import torch
from torch import Tensor

from ....attacks.benign.variants import reencoded, shadows
from ...core.batches import batch_for, in_batches
from ...core.model_state import untouched
from ...core.seeds import Draws, derive_seed
from ...plan.cells import VariantJob
from ..work import Output
from .task_context import TaskContext

# Changes that are drawn for each image, of which one is kept.
_DRAWS = 16


def compute_variant(context: TaskContext, key: str, job: VariantJob) -> Output:
    """Make variants of the first evaluate images."""
    made = _shadows(context, job) if job.how == "shadow" else reencoded(context.clean("evaluate", 0, job.stop)[0])
    return Output(key, {"images": made.float()}, {"rows": len(made)})


def _shadows(context: TaskContext, job: VariantJob) -> Tensor:
    """Return shadow images about which the model is as sure as about the images that they were made of.

    A change that lowers the model's margin makes an attack easier, whatever a detector knows.
    """
    images, labels, positions = context.clean("evaluate", 0, job.stop)
    wanted = _margin(context.reader.tensor(job.logits, "logits")[: job.stop], labels)
    kept, nearest = images.clone(), torch.full((len(images),), torch.inf)
    for number in range(_DRAWS):
        drawn = shadows(images, Draws(derive_seed(job.seed, number), positions.tolist()), job.levels)
        apart = (_margin(_logits(context, job.model, drawn), labels) - wanted).abs()
        # Any change is better than none.
        better = (apart < nearest) | (nearest.isinf() & ~apart.isfinite())
        kept[better], nearest[better] = drawn[better], apart[better]
    return kept


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Return by how much the logit of the true class leads all others."""
    true = logits.gather(1, labels[:, None])
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return true.squeeze(1) - others.amax(1)


def _logits(context: TaskContext, key: str, images: Tensor) -> Tensor:
    model, parts = context.open(key).model, list[Tensor]()

    def predict(rows: slice) -> None:
        parts.append(model(images[rows].to(context.device)).cpu())

    with untouched(model), torch.no_grad():
        in_batches(len(images), batch_for(context.device, images.shape[1:]), predict)
    return torch.cat(parts)
