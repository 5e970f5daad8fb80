"""Perturbed images: made, derived from others, or noise of the same size."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..cells import ControlJob, DerivedJob, Opponent, PerturbJob
from ..engines import Output
from ..errors import AftershockError, UnavailableError
from ..instances import make_perturbation
from ..modes import device_of
from ..process_state import CHANGED_FLAG, guarded_part
from ..scoring import Instruments
from ..seeds import Draws, derive_seed, forked_rng
from ..workers.standins.detectors import PluginDetector
from ..workers.standins.perturbations import PluginPerturbation
from .lent import lent, lent_instruments
from .workbench import Workbench

if TYPE_CHECKING:
    from ...attacks.base import Perturbation
    from ...attacks.perturbing import DerivedBatch, PerturbedBatch
    from ...detectors.base import Detector
    from ..defence import DetectorDefence


NO_GRADIENT = (
    "the model gives no gradient with respect to its input, so an attack that follows it cannot work: attacks that "
    "only ask for predictions, such as square, can"
)


def compute_perturbed(bench: Workbench, key: str, job: PerturbJob) -> Output:
    """Perturb the rows that the model gets right and the perturbation covers."""
    from ...attacks.perturbing import Limits, perturb_batch

    perturbation = make_perturbation(job.part)
    white = perturbation.info.kind == "attack" and perturbation.info.gradients
    if white and not bench.reader.values(job.model)["gradient"]:
        raise UnavailableError(NO_GRADIENT)
    images, labels, positions = bench.clean(job.set, job.start, job.stop)
    logits = bench.reader.tensor(job.logits, "logits")[: len(labels)]
    right = (logits.argmax(1) == labels).nonzero().squeeze(1)
    covered = perturbation.covers(positions[right].tolist())
    right = right[torch.tensor(covered, dtype=torch.bool)]
    model, limits = bench.open(job.model), bench.suite.limits
    attacked = lent_instruments(model, perturbation)
    defence = _defence(bench, attacked, job.opponent, perturbation) if job.opponent else None
    try:
        made = perturb_batch(
            perturbation, attacked.model, images[right], labels[right], positions[right].tolist(), seed=job.seed,
            defence=defence, limits=Limits(limits.forwards, limits.backwards, limits.seconds), judge=model.model,
        )  # fmt: skip
    except UnavailableError as error:
        # What is not defined for the task has no cell: whatever an attack raises is a failure, for which no number
        # stands.
        raise AftershockError(str(error)) from error
    tensors = _tensors(made, right + job.start)
    values: dict[str, Any] = {
        "rows": len(right),
        "forwards": made.forwards,
        "backwards": made.backwards,
        "seconds": made.seconds,
        "flags": [*made.flags, *_changes_elsewhere(perturbation)],
        "late": made.late,
    }
    if defence is not None and job.opponent is not None and len(right):
        told = defence.changed
        defence = replace(defence, detector=bench.detector(job.opponent.fit, job.opponent.part), instruments=model)
        judged = torch.stack([_judged(defence, model, made.images, job.seed, k) for k in range(defence.evaluations)])
        # NaN says that a detector was not asked; one that answers so flags the image.
        judged = torch.where(judged.isnan(), torch.inf, judged)
        passed = (judged <= defence.threshold).double().mean(0) > 0.5
        tensors |= {"judged": judged, "told": made.told}
        found, elsewhere, values["questions"] = _elsewhere(bench, model, job.opponent, made)
        tensors |= found
        # What passes while the attack runs has to pass where none does.
        passed &= elsewhere <= defence.threshold
        changes = [f"{CHANGED_FLAG}:{name}" for name in (*told, *defence.changed)]
        values["flags"] += dict.fromkeys([*changes, *_changes_elsewhere(defence.detector)])
        values["undetected"] = int((made.success & passed).sum())
        # An attack of a plugin need not say which of its parts made what.
        turned = zip(made.credits, made.success.tolist(), strict=False)
        values["parts"] = dict(Counter(part for part, fooled in turned if fooled and part))
    return Output(key, tensors, values)


def _changes_elsewhere(part: Perturbation | Detector) -> list[str]:
    """Flags for the state that a plugin's part left changed in its own process."""
    changed = part.changed if isinstance(part, PluginPerturbation | PluginDetector) else []
    return [f"{CHANGED_FLAG}:{name}" for name in changed]


def _elsewhere(
    bench: Workbench, model: Instruments, opponent: Opponent, made: PerturbedBatch
) -> tuple[dict[str, Tensor], Tensor, str]:
    """Ask a process in which no attack runs about the images that an attack asked about on its way, and its last ones.

    Returns:
        what the detector told of the former, and what it says there, by name; the scores of the latter, float64 (n,),
        infinite where there are none; and why there are none, where the detector is to blame.
    """
    detector, asked = bench.detector(opponent.fit, opponent.part), made.images[:0] if made.asked is None else made.asked
    traces = model.traces(detector, torch.cat([asked, made.images]).to(bench.device))
    try:
        scored = bench.fresh_scores(opponent.fit, opponent.part, traces, 1)[0]
    except UnavailableError:
        with torch.no_grad(), guarded_part(detector):
            answer = detector.score(traces)
        scored = answer.detach().double().cpu()
    except AftershockError as error:
        return {}, torch.full((len(made.images),), torch.inf, dtype=torch.float64), str(error)
    found = {"asked:told": made.asked_score, "asked:scored": scored[: len(asked)]}
    return found, scored[len(asked) :], ""


def _judged(defence: DetectorDefence, model: Instruments, images: Tensor, seed: int, number: int) -> Tensor:
    """One evaluation of final images, float64 (n,), the same in every run."""
    with forked_rng(derive_seed(seed, "judged", number)):
        return defence.judge(model.model, images.to(device_of(model.model)), number)[1].cpu()


def _defence(
    bench: Workbench, model: Instruments, opponent: Opponent, perturbation: Perturbation
) -> DetectorDefence:  # fmt: skip
    """A fitted detector as an attack that knows it sees it."""
    from ..defence import DetectorDefence

    detector = lent(bench.detector(opponent.fit, opponent.part), perturbation)
    logits = bench.reader.tensor(opponent.guides, "logits")
    images, labels, _ = bench.clean("fit", 0, len(logits))
    right = logits.argmax(1) == labels
    return DetectorDefence(
        detector=detector,
        instruments=model,
        calibrate=bench.reader.tensor(opponent.calibrate, "score"),
        clean=images[right].to(bench.device),
        labels=labels[right],
    )


def compute_derived(bench: Workbench, key: str, job: DerivedJob) -> Output:
    """Perturbed images projected into a budget or rounded to 8 bits, measured again."""
    from ...attacks.perturbing import limited, rounded

    perturbation = make_perturbation(job.part)
    rows = bench.reader.tensor(job.source, "row")
    clean, labels = _at(bench, job, rows)
    found = bench.reader.tensor(job.source, "images")
    classifier = bench.open(job.model).model
    if job.how == "budget":
        made = limited(classifier, clean, found, labels, perturbation.eps, perturbation.norm)
    else:
        made = rounded(classifier, clean, found, labels, job.levels, perturbation.eps, perturbation.norm)
    return Output(key, _tensors(made, rows), dict(bench.reader.values(job.source)))


def compute_control(bench: Workbench, key: str, job: ControlJob) -> Output:
    """Noise of the same size as each success."""
    from ...attacks.control import equal_norm_control

    success = bench.reader.tensor(job.perturbed, "success")
    rows = bench.reader.tensor(job.perturbed, "row")[success]
    perturbed = bench.reader.tensor(job.perturbed, "images")[success]
    positions = bench.sets.of(job.set)[rows]
    clean, _ = _at(bench, job, rows)
    predictions = bench.reader.tensor(job.logits, "logits").argmax(1)[rows - job.start]
    draws = Draws(derive_seed(job.seed, "control"), positions.tolist())
    control = equal_norm_control(bench.open(job.model).model, clean, perturbed, predictions, draws)
    ratios = {"kept_share": control.kept_share, "linf_ratio": control.linf_ratio, "l2_ratio": control.l2_ratio}
    values = {name: value if math.isfinite(value) else None for name, value in ratios.items()}
    tensors = {"images": control.images, "row": rows[control.positions]}
    return Output(key, tensors, {"rows": len(control.positions), **values})


def _at(bench: Workbench, job: DerivedJob | ControlJob, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Clean images and labels of some rows of a set."""
    split, positions = bench.source(job.set), bench.sets.of(job.set)[rows].tolist()
    return split.images(positions), split.labels(positions)


def _tensors(made: PerturbedBatch | DerivedBatch, rows: Tensor) -> dict[str, Tensor]:
    """What a cell of perturbed images holds, whatever made them."""
    return {
        "images": made.images,
        "row": rows,
        "prediction": made.predictions,
        "success": made.success,
        **{f"norm:{name}": value for name, value in made.norms.items()},
    }
