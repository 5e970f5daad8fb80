"""A fitted detector as an attack that knows it sees it: opened from the cells that its plan names."""

from __future__ import annotations

from ....attacks.base.perturbation import Perturbation
from ...plan.cells import TargetPlan
from ...tracing.traced_model import TracedModel
from ..fitted_target import FittedTarget
from .lent import lent
from .task_context import TaskContext

# Fit images among which feature matching finds its guides.
GUIDES = 256


def target_of(
    context: TaskContext, model: TracedModel, planned: TargetPlan, perturbation: Perturbation
) -> FittedTarget:  # fmt: skip
    """Return a fitted detector as an attack that knows it sees it."""
    detector = lent(context.detector(planned.fit, planned.part), perturbation)
    logits = context.reader.tensor(planned.guide_logits, "logits")[:GUIDES]
    images, labels, _ = context.clean("fit", 0, len(logits))
    right = logits.argmax(1) == labels
    return FittedTarget(
        detector=detector,
        traced_model=model,
        calibrate=context.reader.tensor(planned.calibrate, "score"),
        clean=images[right].to(context.device),
        labels=labels[right],
        scores=context.reader.tensor(planned.guide_scores, "score")[:GUIDES][right],
    )
