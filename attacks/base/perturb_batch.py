"""The only way the harness calls a perturbation: inputs checked, state guarded, results measured.

Libraries return tensors with graphs, "adversarials" that are none when checked again, images beyond their budget,
and models in another mode than before; here each of these is fixed and flagged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ...harness.core.batches import batch_for, in_batches
from ...harness.core.clock import Stopwatch
from ...harness.core.errors import UnavailableError, UsageError
from ...harness.core.model_state import device_of, untouched
from ...harness.core.process_state import CHANGED_FLAG, guarded_part
from ...harness.core.seeds import Draws, derive_seed, forked_rng
from .geometry import levels_within, per_image, project
from .perturbation import Norm, Perturbation, norms
from .target import TargetDetector
from .watched_model import LimitError, Limits, WatchedModel

# A library may round its last clip; only what lies further outside [0, 1] is worth a flag.
_RANGE_TOLERANCE = 1e-6


@dataclass(frozen=True, eq=False)
class PerturbedBatch:
    """What a perturbation made of n images, as measured by the harness.

    Attributes:
        images: x', float32 in [0, 1], (n, channels, height, width), detached, on the CPU.
        predictions: the classes that the model predicts for ``images``, int64, (n,).
        success: prediction differs from the label, bool, (n,).
        norms: linf, l2, l1 and l0 of x' − x by name, float32, (n,).
        forwards: images sent through the model during the attack, per image.
        backwards: gradients taken during the attack, per image.
        seconds: time spent in the attack.
        flags: what had to be fixed or looks wrong, sorted: ``attached`` (a result with its graph), ``dtype``,
            ``shape`` (not a tensor of the images' shape; the clean images stand in), ``non-finite`` (the clean image
            stands in), ``out-of-range`` (clipped), ``over-budget`` (projected; in L0, which has no projection, the
            clean image stands in), ``zero-gradient`` and
            ``non-finite-gradient`` (with respect to images still predicted right), ``non-finite-logits``,
            ``randomised-model`` (the same images twice, other logits), ``limit`` (ended by a limit),
            ``changed-state:NAME`` (it left state of the process changed, which was put back).
        late: images first predicted wrong in the last quarter of the attack's gradient passes, or past the detector
            only in the last quarter of an adaptive attack's iterates, in batches with at least eight of them and with
            images that never got there: more passes would bring more there.
        credits: of an attack of several parts, the part that made each image (n,); otherwise empty.
        told: of an adaptive attack that says so, the true score that it was told of each image, float64 (n,), NaN
            where it found nothing; otherwise empty.
        asked: likewise, fooling iterates that it asked about on its way, one for an image, (k, channels, height, width)
            on the CPU, and
        asked_score: the true scores that it was told of them, float64 (k,).
    """

    images: Tensor
    predictions: Tensor
    success: Tensor
    norms: dict[Norm, Tensor]
    forwards: float
    backwards: float
    seconds: float
    flags: tuple[str, ...]
    late: int = 0
    credits: tuple[str, ...] = ()
    told: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    asked: Tensor | None = None
    asked_score: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))


def perturb_batch(
    perturbation: Perturbation,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    indices: Sequence[int],
    seed: int,
    batch_size: int | None = None,
    target: TargetDetector | None = None,
    limits: Limits | None = None,
    measured_with: nn.Module | None = None,
) -> PerturbedBatch:
    """Perturb images and measure what came out.

    Each image draws from a generator of its own (``Draws(seed, indices)``); global generators are seeded per
    micro-batch, since library attacks know no others. The model and all global random states are afterwards as they
    were. An exception of the perturbation propagates.

    Args:
        perturbation: what to apply.
        model: images in [0, 1] to logits; on any device, in any mode.
        images: float32 in [0, 1], (n, channels, height, width), n may be 0; images that the model classifies
            correctly (some libraries never return on others).
        labels: the true classes, int64, (n,).
        indices: the images' positions in their split.
        seed: the seed of the perturbation.
        batch_size: images that are attacked together; by default as many as suit the device.
        target: the detector that an adaptive attack is made against.
        limits: what the attack may spend per image; ``None`` for as much as it likes.
        measured_with: the model that the images are measured with, where ``model`` is a copy of it for the attack.

    Raises:
        LimitError: if the attack takes more time than it may. Where it asks for more forwards or backwards, what an
            adaptive attack found by then stands (other attacks keep theirs to themselves: the clean images stand in),
            with the flag ``limit``.
        UsageError: for wrong inputs, a model that does not return logits, or a package that is not installed.
        UnavailableError: if the perturbation is not defined for this image shape and number of classes.
    """
    _check_inputs(images, labels, indices, batch_size)
    device, n, measured_with = device_of(model), len(images), measured_with or model
    flags: set[str] = set()
    parts: list[PerturbedBatch] = []

    def attack(rows: slice) -> None:
        clean, truth, positions = images[rows].detach().cpu(), labels[rows].detach().cpu(), indices[rows]
        watched = WatchedModel(model, truth.to(device), target, limits).eval()
        made, seconds, found = _attacked(perturbation, watched, clean, truth, positions, seed, device)
        parts.append(_measured(perturbation, watched, measured_with, made, clean, truth, seconds, found))

    with (
        untouched(model),
        untouched(measured_with),
        torch.inference_mode(False),
        torch.enable_grad(),
        forked_rng(derive_seed(seed, "measure")),
    ):
        if n:
            flags |= _check_model(perturbation, measured_with, images, labels, device)
        in_batches(n, batch_size or batch_for(device, images.shape[1:]), attack)
    return _joined(parts, images.detach().cpu(), flags)


def _attacked(
    perturbation: Perturbation, watched: WatchedModel, clean: Tensor, labels: Tensor, positions: Sequence[int],
    seed: int, device: torch.device,
) -> tuple[object, float, set[str]]:  # fmt: skip
    """Return what a perturbation makes of images that go through the model together, its seconds, and its flags."""
    chunk, flags = tuple(int(i) for i in positions), set()
    with guarded_part(perturbation) as changes, forked_rng(derive_seed(seed, "batch", chunk[0])):
        clock = Stopwatch()
        # Copies: an attack that writes into its input must not move what it is measured against.
        given = clean.clone().to(device), labels.clone().to(device), Draws(seed, chunk)
        try:
            made: object = perturbation.perturb(watched, *given)
        except LimitError as error:
            # Time depends on the machine, so what it ended cannot be kept.
            if error.what == "seconds":
                raise
            made = clean if watched.partial is None else watched.partial
            flags.add("limit")
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = clock.seconds
    return made, seconds, flags | {f"{CHANGED_FLAG}:{name}" for name in changes.all}


def _measured(
    perturbation: Perturbation, watched: WatchedModel, model: nn.Module, made: object, clean: Tensor, labels: Tensor,
    seconds: float, flags: set[str],
) -> PerturbedBatch:  # fmt: skip
    """Measure what a perturbation made of one batch with the model as it is judged by, where that lies."""
    clean = clean.to(device_of(model))
    fixed, found = _fix(made, clean, perturbation.eps, perturbation.norm)
    flags = flags | found | watched.flags
    model.eval()
    with torch.no_grad():
        logits = model(fixed)
    if not bool(logits.isfinite().all()):
        flags.add("non-finite-logits")
    predictions = logits.argmax(1).cpu()
    asked, asked_score = clean[:0].cpu(), torch.empty(0, dtype=torch.float64)
    if watched.asked is not None:
        known = ~watched.asked_score.isnan()
        asked = watched.asked[known].detach().cpu()
        asked_score = watched.asked_score[known].detach().double().cpu()
    return PerturbedBatch(
        images=fixed.cpu(),
        predictions=predictions,
        success=predictions != labels,
        norms={name: value.cpu() for name, value in norms(fixed - clean).items()},
        forwards=watched.forwards,
        backwards=watched.backwards,
        seconds=seconds,
        flags=tuple(flags),
        late=max(watched.late, watched.fooled_late),
        credits=tuple(watched.credits),
        told=watched.told.detach().double().cpu(),
        asked=asked,
        asked_score=asked_score,
    )


def _joined(parts: Sequence[PerturbedBatch], images: Tensor, flags: set[str]) -> PerturbedBatch:
    """Join batches, whose passes are still those of all their images together."""
    nothing = torch.empty(0, dtype=torch.int64)
    return PerturbedBatch(
        images=torch.cat([images[:0], *(p.images for p in parts)]),
        predictions=torch.cat([nothing, *(p.predictions for p in parts)]),
        success=torch.cat([nothing.bool(), *(p.success for p in parts)]),
        norms={name: torch.cat([whole, *(p.norms[name] for p in parts)]) for name, whole in norms(images[:0]).items()},
        forwards=sum(p.forwards for p in parts) / max(len(images), 1),
        backwards=sum(p.backwards for p in parts) / max(len(images), 1),
        seconds=sum((p.seconds for p in parts), 0.0),
        flags=tuple(sorted(flags.union(*(p.flags for p in parts)))),
        late=sum(p.late for p in parts),
        credits=tuple(credit for p in parts for credit in p.credits),
        told=torch.cat([nothing.double(), *(p.told for p in parts)]),
        asked=torch.cat([images[:0], *(p.asked for p in parts if p.asked is not None)]),
        asked_score=torch.cat([nothing.double(), *(p.asked_score for p in parts)]),
    )


@dataclass(frozen=True, eq=False)
class DerivedBatch:
    """What became of perturbed images that were changed afterwards; the fields are those of :class:`PerturbedBatch`."""

    images: Tensor
    predictions: Tensor
    success: Tensor
    norms: dict[Norm, Tensor]


def limited(
    model: nn.Module, clean: Tensor, perturbed: Tensor, labels: Tensor, eps: float | None, norm: Norm | None,
    batch_size: int | None = None,
) -> DerivedBatch:  # fmt: skip
    """The perturbed images projected into a budget, measured again: one point of a minimising attack's budget curve.

    In L0 there is no projection, so what is over the budget is the clean image again.

    Args:
        model: images in [0, 1] to logits.
        clean: x, float32, (n, channels, height, width).
        perturbed: x' as found without a budget, of the same shape.
        labels: the true classes, int64, (n,).
        eps: the budget in ``norm``; without both, nothing is limited.
        norm: linf, l2, l1 or l0.
        batch_size: images per forward pass; by default as many as suit the device.
    """
    images, clean = perturbed.detach().cpu().clone(), clean.detach().cpu()
    if eps is not None and norm is not None:
        images, _ = _within(images, clean, eps, norm)
    return _derived(model, clean, images, labels, batch_size)


def rounded(
    model: nn.Module, clean: Tensor, perturbed: Tensor, labels: Tensor, levels: int = 256, eps: float | None = None,
    norm: Norm | None = None, batch_size: int | None = None,
) -> DerivedBatch:  # fmt: skip
    """Return the perturbed images rounded to equally spaced levels, as an image file holds them, measured again.

    An attacker who saves images keeps them within the budget: in L-inf each pixel goes to the nearest level that does,
    and where none does to the nearest of all. In the other norms it is the nearest level.

    Args:
        model: images in [0, 1] to logits.
        clean: x, float32, (n, channels, height, width).
        perturbed: x' of the same shape.
        labels: the true classes, int64, (n,).
        levels: how many there are from 0 to 1; 256 in an 8-bit file.
        eps: the budget in ``norm``, if there is one.
        norm: linf, l2, l1 or l0.
        batch_size: images per forward pass; by default as many as suit the device.
    """
    steps, clean = levels - 1, clean.detach().cpu()
    images = perturbed.detach().cpu()
    if eps is not None and norm == "linf":
        images = levels_within(images, clean, steps, eps)
    else:
        images = (images.double() * steps).round()
    return _derived(model, clean, (images / steps).clamp(0, 1).float(), labels, batch_size)


def _derived(model: nn.Module, clean: Tensor, images: Tensor, labels: Tensor, batch_size: int | None) -> DerivedBatch:
    device, predicted = device_of(model), torch.empty(len(images), dtype=torch.int64)

    def predict(rows: slice) -> None:
        predicted[rows] = model(images[rows].to(device)).argmax(1).cpu()

    with untouched(model), torch.no_grad(), forked_rng(0):
        in_batches(len(images), batch_size or batch_for(device, images.shape[1:]), predict)
    return DerivedBatch(images, predicted, predicted != labels.cpu(), norms(images - clean))


def _check_inputs(images: Tensor, labels: Tensor, indices: Sequence[int], batch_size: int | None) -> None:
    if not isinstance(images, Tensor) or images.dtype != torch.float32 or images.ndim != 4:
        what = f"{images.dtype} of shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise UsageError(f"Images to perturb are float32 of shape (n, channels, height, width), not {what}.")
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        what = f"{labels.dtype} of shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
        raise UsageError(f"Labels of {len(images)} images are int64 of shape ({len(images)},), not {what}.")
    if len(indices) != len(images):
        raise UsageError(f"There are {len(images)} images but {len(indices)} indices: give one index per image.")
    if batch_size is not None and (isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1):
        raise UsageError(f"batch_size = {batch_size!r}: give a whole number of at least 1.")
    # Written so that NaN fails too.
    if not bool(((images >= 0) & (images <= 1)).all()):
        raise UsageError("Images to perturb must lie in [0, 1]: normalisation is a layer of the model.")


def _check_model(
    perturbation: Perturbation, model: nn.Module, images: Tensor, labels: Tensor, device: torch.device
) -> set[str]:
    """Return what looks wrong with the model; raises for what makes it useless."""
    with torch.no_grad():
        logits, again = model(images[:8].to(device)), model(images[:8].to(device))
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise UsageError("The model must return logits of shape (n, classes), nothing else.")
    classes = logits.shape[1]
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise UsageError(
            f"The model has {classes} classes, but the labels go from {int(labels.min())} to {int(labels.max())}."
        )
    channels, height, width = images.shape[1:]
    reason = perturbation.inapplicable((channels, height, width), classes)
    if reason is not None:
        raise UnavailableError(reason)
    missing = perturbation.missing()
    if missing is not None:
        raise UsageError(missing)
    same = torch.allclose(logits, again, rtol=1e-4, atol=1e-5, equal_nan=True)
    return set() if same else {"randomised-model"}


def _fix(made: object, clean: Tensor, eps: float | None, norm: Norm | None) -> tuple[Tensor, set[str]]:
    """x' as it should have come back (float32, finite, in [0, 1], within its budget), and what was wrong with it."""
    if not isinstance(made, Tensor) or made.shape != clean.shape or made.is_complex():
        return clean.clone(), {"shape"}
    flags: set[str] = set()
    if made.requires_grad:
        flags.add("attached")
    if made.dtype != torch.float32:
        flags.add("dtype")
    images = made.detach().to(clean.device).float()
    finite = images.isfinite().flatten(1).all(1)
    if not bool(finite.all()):
        flags.add("non-finite")
    images = torch.where(per_image(finite, images), images, clean)
    clipped = images.clamp(0, 1)
    if bool(((images - clipped).abs() > _RANGE_TOLERANCE).any()):
        flags.add("out-of-range")
    if eps is not None and norm is not None:
        clipped, over = _within(clipped, clean, eps, norm)
        if over:
            flags.add("over-budget")
    return clipped.contiguous(), flags


def _within(images: Tensor, clean: Tensor, eps: float, norm: Norm) -> tuple[Tensor, bool]:
    """The images within their budget, up to rounding, and whether any was not; L0 puts the clean image in its place."""
    over = norms(images - clean)[norm] > eps * (1 + 1e-5) + 1e-7
    if not bool(over.any()):
        return images, False
    nearest = clean if norm == "l0" else project(images, clean, eps, norm)
    return torch.where(per_image(over, images), nearest, images), True
