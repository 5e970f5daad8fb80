"""Votes of the bits that discriminate perturbed images from clean ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .blocks import BitBlocks
from .patterns import class_frequencies


@dataclass(frozen=True)
class BitVotes:
    """The bits that vote, for all images or for those of each predicted class.

    Attributes:
        index: int64 (groups, voters): which units vote; one group speaks for all classes, or there is one per class.
        sign: float32 (groups, voters): +1 where an on bit is a vote for "perturbed", −1 where an off bit is.
        weight: float32 (groups, voters): what each vote counts.
    """

    index: Tensor
    sign: Tensor
    weight: Tensor

    def share(self, bits: Tensor, classes: Tensor) -> Tensor:
        """Return the weighted share of votes for "perturbed", (n,) in [0, 1], of bits (n, units), 0/1 or relaxed."""
        group = classes.to(self.index.device)
        if len(self.index) == 1:
            group = torch.zeros_like(group)
        chosen = bits.gather(1, self.index[group].to(bits.device))
        sign, weight = self.sign[group].to(bits), self.weight[group].to(bits)
        # Divided last, so that equal votes are whole numbers and their ties are ties.
        return (weight * torch.where(sign > 0, chosen, 1 - chosen)).sum(1) / weight.sum(1)


def fit_votes(
    clean: BitBlocks,
    perturbed: BitBlocks,
    clean_groups: Tensor,
    perturbed_groups: Tensor,
    classes: int,
    voters: int,
    weighted: bool,
    smoothing: float,
) -> BitVotes:
    """Choose the ``voters`` units whose on-frequencies differ most between clean and perturbed images.

    Args:
        clean: bits of the clean images.
        perturbed: bits of the perturbed images.
        clean_groups: int64: the class that each clean image was predicted as, −1 to leave it out.
        perturbed_groups: the same for perturbed images.
        classes: 1 to compare over all images, or the number of classes to compare within predicted classes, where a
            class's frequencies are drawn towards those over all classes by ``smoothing`` images.
        voters: how many units vote.
        weighted: a vote counts as much as its frequencies differ; all count the same otherwise.
        smoothing: see ``classes``.
    """
    before = class_frequencies(clean, clean_groups, classes, smoothing)
    after = class_frequencies(perturbed, perturbed_groups, classes, smoothing)
    # A stable order: equal differences are taken in the order of the units.
    order = (after - before).abs().argsort(dim=1, descending=True, stable=True)[:, :voters]
    difference = (after - before).gather(1, order)
    weight = difference.abs() if weighted else torch.ones_like(difference)
    weight = torch.where(weight.sum(1, keepdim=True) > 0, weight, 1.0)
    return BitVotes(order, torch.where(difference > 0, 1.0, -1.0), weight)
