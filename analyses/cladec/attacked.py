"""From which layer on a decoded attacked image is read as the class that the attack reached."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..common.inputs import AnalysisInput, PerturbedSet
from ..common.populations import Population, controls, perturbed
from ..common.recording import read_images
from .measured import IMAGE, SHOWN, Reading
from .measures import logits_of
from .training import Key, Trained


@dataclass(frozen=True, eq=False)
class Fooling:
    """The images of one perturbation that fool the model, and noise of the same size beside them.

    Attributes:
        success: the perturbed ones.
        images: their pixels, (n, channels, height, width).
        control: noise on the same source images.
        noise: its pixels, (k, channels, height, width).
        originals: the first few images before the perturbation.
        values: per-image values of every seed, by tap and source name (of the undecoded image: its own name and an
            empty one), by measure.
        shown: reconstructions of the first images by the first seed, by tap and source.
    """

    success: Population
    images: Tensor
    control: Population
    noise: Tensor
    originals: Tensor
    values: dict[tuple[str, str], dict[str, list[Tensor]]]
    shown: dict[Key, Tensor]

    def record(self) -> Reading:
        """What is kept of it."""
        stacked = {key: {m: torch.stack(v) for m, v in found.items()} for key, found in self.values.items()}
        own, reached = self.success.own[:SHOWN], self.success.reached[:SHOWN]
        return Reading(
            self.success.perturbation, len(self.images), len(self.noise), own, reached, self.originals,
            self.images[:SHOWN], stacked, self.shown,
        )  # fmt: skip


def read_fooling(given: AnalysisInput, one: PerturbedSet, limit: int) -> Fooling:
    """At most ``limit`` images on which the perturbation succeeded, and the controls of the same source images."""
    success = perturbed(one, one.success.nonzero().squeeze(1)[:limit])
    control = controls(one, success)
    pixels = [read_images(p.images.read, len(p.images), p.where) for p in (success, control)]
    originals = read_images(given.evaluate.read, len(given.evaluate), success.rows[:SHOWN])
    return Fooling(success, pixels[0], control, pixels[1], originals, {}, {})


def follow(
    found: Fooling, trained: Trained, judge: nn.Module, device: torch.device, templates: Mapping[Key, Tensor]
) -> None:
    """Add what one seed's decoders and fresh classifier make of the images.

    Args:
        found: of one perturbation.
        trained: the seed's decoders.
        judge: the seed's classifier, trained on clean images.
        device: where it lies.
        templates: mean reconstruction of every class (classes, pixels), NaN for a class without images.
    """
    for prefix, images, of in (("", found.images, found.success), ("control_", found.noise, found.control)):
        if not len(images):
            continue
        _add(found.values.setdefault((IMAGE, ""), {}), prefix, logits_of(judge, images, device), of)
        for key in trained.decoders:
            decoded = trained.reconstruct(*key, images)
            seen = found.values.setdefault((key[0], key[1].name), {})
            _add(seen, prefix, logits_of(judge, decoded, device), of)
            distances = torch.cdist(decoded.flatten(1), templates[key]).nan_to_num(torch.inf)
            mine, other = (distances.gather(1, c[:, None])[:, 0] for c in (of.reached, of.own))
            seen.setdefault(f"{prefix}nearer", []).append((mine < other).float())
            if not prefix and key not in found.shown:
                found.shown[key] = decoded[:SHOWN]


def class_means(decoded: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean image of each class, (classes, pixels); NaN where there is none."""
    means = torch.full((classes, decoded[0].numel()), torch.nan)
    for c in labels.unique().tolist():
        means[c] = decoded[labels == c].flatten(1).mean(0)
    return means


def _add(seen: dict[str, list[Tensor]], prefix: str, logits: Tensor, of: Population) -> None:
    read = logits.argmax(1)
    seen.setdefault(f"{prefix}reached", []).append((read == of.reached).float())
    seen.setdefault(f"{prefix}true", []).append((read == of.own).float())
