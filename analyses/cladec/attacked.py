"""From which layer on a decoded attacked image is read as the class that the attack reached."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..base import ImageSet, PerturbedSet
from .measures import Estimate, difference, estimate, logits_of
from .training import Key, Trained

# The column of the images themselves, before any tap.
IMAGE = "image"
_READ = 256
_SHOWN = 8


@dataclass(frozen=True, eq=False)
class Turned:
    """The images that one perturbation turned, and noise of the same size beside them.

    Attributes:
        label: the perturbation's.
        images: (n, channels, height, width).
        true: true classes (n,).
        reached: what the model says now (n,).
        originals: the first few images before the perturbation.
        control: noisy images (k, channels, height, width).
        control_true: (k,).
        control_reached: the class that the perturbation reached on the same source image (k,).
    """

    label: str
    images: Tensor
    true: Tensor
    reached: Tensor
    originals: Tensor
    control: Tensor
    control_true: Tensor
    control_reached: Tensor


@dataclass(eq=False)
class Reading:
    """What became of one perturbation's images; per-image values (n,) of every seed, by measure.

    Attributes:
        turned: the images.
        values: by tap and source name (of the undecoded image: its own name and an empty one), by measure: ``reached``
            and ``true`` are what the fresh classifier reads, ``nearer`` says whether the reconstruction lies nearer to
            the mean reconstruction of the reached class than to that of the true one; ``control_...`` for noise.
        shown: reconstructions of the first images by the first seed, by tap and source.
    """

    turned: Turned
    values: dict[tuple[str, str], dict[str, list[Tensor]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    shown: dict[Key, Tensor] = field(default_factory=dict)

    def estimate(self, tap: str, source: str, measure: str) -> Estimate | None:
        """The share of images, or ``None`` without any."""
        seeds = self.values[tap, source].get(measure)
        return estimate(torch.stack(seeds), True) if seeds and len(seeds[0]) else None

    def turning(self, taps: Sequence[str], source: str) -> str | None:
        """The first tap from which on, and everywhere behind, the reached class is read more often than the true one.

        "More often": the interval of the paired difference lies above 0.
        """
        found = None
        for tap in reversed(taps):
            seen = self.values[tap, source]
            lead = difference(torch.stack(seen["reached"]) - torch.stack(seen["true"]), True)
            if lead.low <= 0:
                break
            found = tap
        return found


def read_turned(perturbed: PerturbedSet, evaluate: ImageSet, limit: int) -> Turned:
    """At most ``limit`` images on which the perturbation succeeded, and the controls of the same source images."""
    at = torch.nonzero(perturbed.success).flatten()[:limit]
    images, reached = _take(perturbed.images, at)
    rows = perturbed.rows[at]
    originals = torch.cat([evaluate.read(slice(r, r + 1)) for r in rows[:_SHOWN].tolist()] or [images[:0]])
    class_of = dict(zip(rows.tolist(), reached.tolist(), strict=True))
    control_at = torch.tensor([i for i, r in enumerate(perturbed.control_rows.tolist()) if r in class_of]).long()
    control, _ = _take(perturbed.control, control_at)
    control_reached = [class_of[r] for r in perturbed.control_rows[control_at].tolist()]
    return Turned(
        perturbed.label, images, _labels(perturbed.images, at), reached, originals,
        control, _labels(perturbed.control, control_at), torch.tensor(control_reached, dtype=torch.int64),
    )  # fmt: skip


def follow(
    reading: Reading, trained: Trained, judge: nn.Module, device: torch.device, templates: Mapping[Key, Tensor]
) -> None:
    """Add one seed's decoders and fresh classifier to a reading.

    Args:
        reading: of one perturbation.
        trained: the seed's decoders.
        judge: the seed's classifier, trained on clean images.
        device: where it lies.
        templates: mean reconstruction of every class (classes, pixels), NaN for a class without images.
    """
    turned = reading.turned
    sets = (
        ("", turned.images, turned.true, turned.reached),
        ("control_", turned.control, turned.control_true, turned.control_reached),
    )
    for prefix, images, true, reached in sets:
        if not len(images):
            continue
        _add(reading.values[IMAGE, ""], prefix, logits_of(judge, images, device), true, reached)
        for key in trained.decoders:
            decoded = trained.reconstruct(*key, images)
            seen = reading.values[key[0], key[1].name]
            _add(seen, prefix, logits_of(judge, decoded, device), true, reached)
            distances = torch.cdist(decoded.flatten(1), templates[key]).nan_to_num(torch.inf)
            mine, other = (distances.gather(1, c[:, None])[:, 0] for c in (reached, true))
            seen[f"{prefix}nearer"].append((mine < other).float())
            if not prefix and key not in reading.shown:
                reading.shown[key] = decoded[:_SHOWN]


def class_means(decoded: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean image of each class, (classes, pixels); NaN where there is none."""
    means = torch.full((classes, decoded[0].numel()), torch.nan)
    for c in labels.unique().tolist():
        means[c] = decoded[labels == c].flatten(1).mean(0)
    return means


def _add(seen: dict[str, list[Tensor]], prefix: str, logits: Tensor, true: Tensor, reached: Tensor) -> None:
    read = logits.argmax(1)
    seen[f"{prefix}reached"].append((read == reached).float())
    seen[f"{prefix}true"].append((read == true).float())


def _take(found: ImageSet, at: Tensor) -> tuple[Tensor, Tensor]:
    """The images at positions (sorted) and the model's predictions for them, read in batches."""
    images, predictions = [found.read(slice(0, 0))], [torch.empty(0, dtype=torch.int64)]
    for start in range(0, len(found), _READ):
        inside = at[(at >= start) & (at < start + _READ)] - start
        if len(inside):
            rows = slice(start, min(start + _READ, len(found)))
            images.append(found.read(rows)[inside])
            predictions.append(found.traces[rows].predictions[inside])
    return torch.cat(images), torch.cat(predictions)


def _labels(found: ImageSet, at: Tensor) -> Tensor:
    return found.traces.labels[at] if len(at) else torch.empty(0, dtype=torch.int64)
