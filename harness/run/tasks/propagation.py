"""The propagation report's cells."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ...core.registry import ANALYSES
from ...core.seeds import generator
from ...plan.cells import EncodersJob, PropagationJob
from ...tracing.traces import Traces
from ..engines import Output
from .task_context import TaskContext


def compute_encoders(context: TaskContext, key: str, job: EncodersJob) -> Output:
    """Fit the report's own encoders on the clean fit images."""
    propagation = ANALYSES.get("propagation")
    clean = context.traces(job.model, job.clean, propagation.NEEDS)
    labels = context.dataset.train.labels(context.sets.fit.tolist())
    tensors, state = propagation.fit_encoders(replace(clean, label_rows=labels)).state()
    return Output(key, tensors, {"state": state})


def compute_propagation(context: TaskContext, key: str, job: PropagationJob) -> Output:
    """Measure a perturbation and its controls against the clean images, tap by tap."""
    propagation = ANALYSES.get("propagation")
    values = context.reader.values(job.encoders)
    encoders = propagation.Encoders.from_state(context.reader.load(job.encoders), values["state"])
    clean = context.traces(job.model, job.clean, propagation.NEEDS)
    perturbed = context.traces(job.model, job.perturbed, propagation.NEEDS)
    control = context.traces(job.model, job.control, propagation.NEEDS)
    rows = torch.cat([context.reader.tensor(t.images.source, "row") for t in job.perturbed])
    success = torch.cat([context.reader.tensor(t.images.source, "success") for t in job.perturbed])
    control_rows = torch.cat([context.reader.tensor(t.images.source, "row") for t in job.control])
    fooled, failed = success.nonzero().squeeze(1), (~success).nonzero().squeeze(1)
    reached, partners = _partners(clean, perturbed.predictions, fooled, generator(job.seed))
    pairs = {
        "success": (clean.pick(rows[fooled]), perturbed.pick(fooled)),
        "failed": (clean.pick(rows[failed]), perturbed.pick(failed)),
        "control": (clean.pick(control_rows), control),
        "target-class": (clean.pick(rows[reached]), clean.pick(partners)),
    }
    tensors: dict[str, Tensor] = {}
    for population, (before, after) in pairs.items():
        tensors[population] = propagation.measure(encoders, before, after)
        tensors[f"cka:{population}"] = propagation.cka(before, after)
    return Output(key, tensors)


def _partners(clean: Traces, predictions: Tensor, fooled: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return for each success a clean image of the predicted class of x'; those without one are left out."""
    known = clean.predictions
    by_class = {int(c): (known == c).nonzero().squeeze(1) for c in known.unique()}
    reached, partners = [], []
    for position in fooled.tolist():
        candidates = by_class.get(int(predictions[position]))
        if candidates is not None:
            reached.append(position)
            partners.append(int(candidates[int(torch.randint(len(candidates), (1,), generator=draws))]))
    return torch.tensor(reached, dtype=torch.int64), torch.tensor(partners, dtype=torch.int64)
