"""Perturbed images: made, derived from others, or noise of the same size."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....attacks.base.perturb_batch import DerivedBatch, PerturbedBatch, limited, perturb_batch, rounded
from ....attacks.benign.equal_norm_control import equal_norm_control
from ...core.errors import AftershockError, UnavailableError
from ...core.process_state import CHANGED_FLAG, own_code
from ...core.seeds import Draws, derive_seed
from ...plan.cells import ControlJob, DerivedJob, PerturbJob
from ...suite.instances import make_perturbation
from ...tracing.traced_model import TracedModel
from ..work import Output
from ..workers.standins.detectors import PluginDetector
from ..workers.standins.perturbations import PluginPerturbation
from .lent import lent_model
from .task_context import TaskContext

if TYPE_CHECKING:
    from ....attacks.base.perturbation import Perturbation
    from ....attacks.base.target import TargetDetector
    from ....detectors.base.detector import Detector


# Images, their labels, their positions in the split, and their rows of the set.
Chosen = tuple[Tensor, Tensor, Tensor, Tensor]
NO_GRADIENT = (
    "the model gives no gradient with respect to its input, so an attack that follows it cannot work: attacks that "
    "only ask for predictions, such as square, can"
)


def compute_perturbed(context: TaskContext, key: str, job: PerturbJob) -> Output:
    """Perturb the rows that the model gets right and the perturbation covers."""
    perturbation = make_perturbation(job.part)
    model = context.open(job.model)
    made, rows = perturbed(context, job, perturbation, _attacked(context, job, perturbation, model), model)
    return Output(key, tensors_of(made, rows), values_of(made, perturbation))


def _attacked(context: TaskContext, job: PerturbJob, perturbation: Perturbation, model: TracedModel) -> TracedModel:
    """Return a model as a perturbation may have it: a quick copy where last digits do not decide what it finds.

    They do for what looks for the smallest perturbation, and goes along the boundary itself. On an H200 the copy of a
    ResNet-20 is no quicker than the model (.7 to 1.0 of its speed in float32, tests/gpu).
    """
    info, own = perturbation.info, own_code(perturbation) and not isinstance(perturbation, PluginPerturbation)
    here = context.device.type == "cpu"
    if here and own and info.kind == "attack" and info.gradients and not info.minimises:
        quick = context.quick(job.model)
        if quick is not None:
            return replace(model, model=quick, root=None)
    return lent_model(model, perturbation)


def perturbed(
    context: TaskContext, job: PerturbJob, perturbation: Perturbation, attacked: TracedModel, model: TracedModel,
    target: TargetDetector | None = None, chosen: Chosen | None = None,
) -> tuple[PerturbedBatch, Tensor]:  # fmt: skip
    """Return what a perturbation makes of a job's images, and their rows of the set.

    Args:
        context: of the run.
        job: which images.
        perturbation: made from the job's part.
        attacked: the model as the perturbation may have it, and
        model: as it is judged by.
        target: what an adaptive attack knows of its detector.
        chosen: the images, where they are not those of the job that the model gets right.
    """
    white = perturbation.info.kind == "attack" and perturbation.info.gradients
    if white and not context.reader.values(job.model)["gradient"]:
        raise UnavailableError(NO_GRADIENT)
    images, labels, positions, rows = chosen or _right(context, job)
    covered = torch.tensor(perturbation.covers(positions.tolist()), dtype=torch.bool)
    try:
        made = perturb_batch(
            perturbation, attacked.model, images[covered], labels[covered], positions[covered].tolist(), seed=job.seed,
            target=target, limits=context.limits, measured_with=model.model,
        )  # fmt: skip
    except UnavailableError as error:
        # What is not defined for the task has no cell: whatever an attack raises is a failure, for which no number
        # stands.
        raise AftershockError(str(error)) from error
    return made, rows[covered]


def _right(context: TaskContext, job: PerturbJob) -> Chosen:
    """Return the images of a job that the model gets right."""
    images, labels, positions = context.clean(job.set, job.start, job.stop)
    logits = context.reader.tensor(job.logits, "logits")[: len(labels)]
    right = (logits.argmax(1) == labels).nonzero().squeeze(1)
    return images[right], labels[right], positions[right], right + job.start


def values_of(made: PerturbedBatch, perturbation: Perturbation) -> dict[str, Any]:
    """Return what a cell of perturbed images says of how they were made."""
    return {
        "rows": len(made.images),
        "forwards": made.forwards,
        "backwards": made.backwards,
        "seconds": made.seconds,
        "flags": [*made.flags, *changes_elsewhere(perturbation)],
        "late": made.late,
    }


def changes_elsewhere(part: Perturbation | Detector) -> list[str]:
    """Return flags for the state that a plugin's part left changed in its own process."""
    changed = part.changed if isinstance(part, PluginPerturbation | PluginDetector) else []
    return [f"{CHANGED_FLAG}:{name}" for name in changed]


def compute_derived(context: TaskContext, key: str, job: DerivedJob) -> Output:
    """Perturbed images projected into a budget or rounded to 8 bits, measured again."""
    perturbation = make_perturbation(job.part)
    rows = context.reader.tensor(job.source, "row")
    clean, labels = _at(context, job, rows)
    found = context.reader.tensor(job.source, "images")
    classifier = context.open(job.model).model
    if job.how == "budget":
        made = limited(classifier, clean, found, labels, perturbation.eps, perturbation.norm)
    else:
        made = rounded(classifier, clean, found, labels, job.levels, perturbation.eps, perturbation.norm)
    return Output(key, tensors_of(made, rows), dict(context.reader.values(job.source)))


def compute_control(context: TaskContext, key: str, job: ControlJob) -> Output:
    """Noise of the same size as each success."""
    success = context.reader.tensor(job.perturbed, "success")
    rows = context.reader.tensor(job.perturbed, "row")[success]
    perturbed = context.reader.tensor(job.perturbed, "images")[success]
    positions = context.sets.of(job.set)[rows]
    clean, _ = _at(context, job, rows)
    predictions = context.reader.tensor(job.logits, "logits").argmax(1)[rows - job.start]
    draws = Draws(derive_seed(job.seed, "control"), positions.tolist())
    control = equal_norm_control(context.open(job.model).model, clean, perturbed, predictions, draws)
    ratios = {"kept_share": control.kept_share, "linf_ratio": control.linf_ratio, "l2_ratio": control.l2_ratio}
    values = {name: value if math.isfinite(value) else None for name, value in ratios.items()}
    tensors = {"images": control.images, "row": rows[control.positions]}
    return Output(key, tensors, {"rows": len(control.positions), **values})


def _at(context: TaskContext, job: DerivedJob | ControlJob, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Clean images and labels of some rows of a set."""
    split, positions = context.source(job.set), context.sets.of(job.set)[rows].tolist()
    return split.images(positions), split.labels(positions)


def tensors_of(made: PerturbedBatch | DerivedBatch, rows: Tensor) -> dict[str, Tensor]:
    """Return what a cell of perturbed images holds, whatever made them."""
    return {
        "images": made.images,
        "row": rows,
        "prediction": made.predictions,
        "success": made.success,
        **{f"norm:{name}": value for name, value in made.norms.items()},
    }
