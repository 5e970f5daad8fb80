"""The smallest perturbations that fool a model and pass a detector, measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ....attacks.adaptive.pixels import Ball
from ....attacks.adaptive.smallest_radius import Known, NoDetector, SmallestRadius
from ....attacks.adaptive.worst_case import WorstCase
from ....attacks.base.perturb_batch import PerturbedBatch, limited, perturb_batch
from ....attacks.base.target import TargetDetector
from ...core.errors import AftershockError, UnavailableError
from ...plan.cells import RadiusJob
from ...suite.instances import make_perturbation
from ..work import Output
from .adaptive import judge
from .lent import lent_model
from .perturbations import NO_GRADIENT, tensors_of, values_of
from .rehearsal import informed
from .target import target_of
from .task_context import TaskContext

# What passed in the search may not where no attack runs (drawn scores, last digits): then these multiples are tried.
_OUTWARD = (1.0, 1.03, 1.1, 1.25, 1.5)
# Images that pass where no attack runs and that a search, which asks about them, may take for flagged: so many, or this
# share; and by how much it may lie beyond them for the last digits.
_ROWS, _SHARE, _BEYOND = 2, 0.1, 1.001


def compute_radius(context: TaskContext, key: str, job: RadiusJob) -> Output:
    """Search for the smallest perturbation of each of the first images that the model gets right.

    The cell holds the nearest images that the search found and, by row, the measured distance of the nearest that
    passes where no attack runs (``radius``: these, what lies a little beyond them, or what other attacks on the
    detector found) and of the nearest image that fools, whether it passes or not (``alone``); infinite where there is
    none.
    """
    attack = make_perturbation(job.part)
    if not isinstance(attack, WorstCase):
        raise AftershockError(f"{job.part.name} has no budget from which a radius could be searched")
    if not context.reader.values(job.model)["gradient"]:
        raise UnavailableError(NO_GRADIENT)
    logits = context.reader.tensor(job.logits, "logits")
    images, labels, positions = context.clean("evaluate", 0, len(logits))
    right = (logits.argmax(1) == labels).nonzero().squeeze(1)[: job.images]
    model = context.open(job.model)
    attacked, target = lent_model(model, attack), None
    known = _known(context, job, right, positions)
    asked: TargetDetector = NoDetector()
    learned: dict[str, Any] = {}
    if job.target is not None:
        target, learned = informed(context, target_of(context, attacked, job.target, attack), job.target)
        asked = target
    search = SmallestRadius(attack.large_eps, attack.ball, known=known, follows=learned.get("follows"))
    made = perturb_batch(
        search, attacked.model, images[right], labels[right], positions[right].tolist(), job.seed, target=asked,
        limits=context.limits, measured_with=model.model,
    )  # fmt: skip
    radius = torch.full((len(right),), torch.inf)

    def passes(rows: Tensor, shown: Tensor) -> Tensor:
        if target is None or job.target is None:
            return torch.ones(len(rows), dtype=torch.bool)
        last = replace(made, images=shown, asked=None, asked_score=made.asked_score[:0])
        verdict = judge(context, target, job.target, model, last, job.seed)
        if verdict.questions:
            # Who does not answer there would never pass.
            raise AftershockError(verdict.questions)
        return verdict.passed

    if len(right):
        radius = nearest_passing(model.model, made, images[right], labels[right], attack.ball, attack.large_eps, passes)
        elsewhere = _passed_elsewhere(context, job, right, attack.ball)
        drawn = target is not None and target.detector.randomised
        if not drawn and "limit" not in made.flags and hides(elsewhere, credited_distances(made, attack.ball)):
            raise AftershockError("the detector flagged images for this search that it lets pass where no attack runs")
        radius = torch.minimum(radius, elsewhere)
    alone = torch.tensor([search.alone.get(i, torch.inf) for i in positions[right].tolist()])
    tensors = tensors_of(made, right)
    tensors |= {"radius": radius, "alone": alone}
    values = values_of(made, search) | {"reach": attack.large_eps, "parts": dict(Counter(filter(None, made.credits)))}
    return Output(key, tensors, values)


def hides(elsewhere: Tensor, found: Tensor) -> bool:
    """Return whether a search was told of too many images that they are flagged, which pass where no attack runs.

    Args:
        elsewhere: distances (n,) of images that pass there and that the search asked about; infinite where none does.
        found: the smallest distances (n,) that it found.
    """
    known = elsewhere.isfinite()
    return int((known & (found > elsewhere * _BEYOND)).sum()) > max(_ROWS, _SHARE * int(known.sum()))


def credited_distances(made: PerturbedBatch, norm: Ball) -> Tensor:
    """Return the distances (n,) of what a search found, infinite where it found nothing."""
    credited = torch.tensor([bool(part) for part in made.credits], dtype=torch.bool)
    return torch.where(credited, made.norms[norm], torch.inf)


def nearest_passing(
    model: nn.Module, made: PerturbedBatch, clean: Tensor, labels: Tensor, norm: Ball, reach: float,
    passes: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:  # fmt: skip
    """Return the distance of the nearest image, at or a little beyond each one found, that fools and passes, (n,).

    Args:
        model: that images are measured with.
        made: what was found; images without a credit are none.
        clean: (n, channels, height, width).
        labels: their classes.
        norm: of the distance.
        reach: the largest that counts.
        passes: which images (k, channels, height, width) of some rows (k,) pass, bool (k,).
    """
    found = torch.full((len(clean),), torch.inf)
    credited = torch.tensor([bool(part) for part in made.credits], dtype=torch.bool)
    for multiple in _OUTWARD:
        rows = (credited & found.isinf()).nonzero().flatten()
        if not len(rows):
            break
        # Bit for bit what was found, for the multiple 1.
        moved = made.images[rows] + (multiple - 1) * (made.images[rows] - clean[rows])
        tried = limited(model, clean[rows], moved.clamp(0, 1), labels[rows], None, None)
        within = tried.norms[norm] <= reach * (1 + 1e-5) + 1e-7
        passed = tried.success & within & passes(rows, tried.images)
        found[rows] = torch.where(passed, tried.norms[norm], torch.inf)
    return found


def _passed_elsewhere(context: TaskContext, job: RadiusJob, rows: Tensor, norm: Ball) -> Tensor:
    """Return the distances (n,) of the nearest images that other attacks on the same detector got past it."""
    least = dict.fromkeys(rows.tolist(), torch.inf)
    for cell in job.known if job.target is not None else ():
        found = context.reader.load(cell)
        if "passed" in found:
            got = found["success"] & found["passed"]
            for row, distance in zip(found["row"][got].tolist(), found[f"norm:{norm}"][got].tolist(), strict=True):
                if row in least:
                    least[row] = min(least[row], distance)
    return torch.tensor(list(least.values()))


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
