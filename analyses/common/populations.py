"""Who is looked at of a perturbation: its successes, its failures, noise of the same size, clean images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from .inputs import AnalysisInput, ImageSet, PerturbedSet

SUCCESS, FAILED, CONTROL, TARGET = "success", "failed", "control", "target-class"


@dataclass(frozen=True, eq=False)
class Population:
    """Some images, with the classes that they lie between.

    Attributes:
        perturbation: its label.
        name: ``success``, ``failed``, ``control`` (noise of the same norm as a success) or ``target-class`` (for each
            success, a clean image of its predicted class).
        images: where they are.
        where: int64 (n,), positions in ``images``.
        rows: int64 (n,), positions of the clean originals among the evaluate images.
        own: int64 (n,), true classes of the originals.
        reached: int64 (n,), predicted classes of the successes; of failed images the runner-up.
    """

    perturbation: str
    name: str
    images: ImageSet
    where: Tensor
    rows: Tensor
    own: Tensor
    reached: Tensor

    def __len__(self) -> int:
        return len(self.where)


def chosen_perturbations(given: AnalysisInput, labels: Sequence[str] | None, analysis: str) -> list[PerturbedSet]:
    """The perturbations of some labels, each once; all where there are no labels.

    Raises:
        UsageError: for a label that is not there, and where nothing is.
    """
    there = given.perturbed
    wanted = list(there) if labels is None else labels
    unknown = [label for label in wanted if label not in there]
    if unknown or not wanted:
        raise UsageError(
            f"{analysis} has no perturbation {', '.join(map(repr, unknown)) or 'to study'}; there are "
            f"{', '.join(there) or 'none: add [[perturbations]] to the suite'}."
        )
    return [there[label] for label in dict.fromkeys(wanted)]


def runner_up(one: PerturbedSet) -> Tensor:
    """The most likely class beside the true one, int64 (n,): of a success the predicted class."""
    logits = one.images.traces.logits.clone()
    if not len(logits):
        return torch.empty(0, dtype=torch.int64)
    return logits.scatter(1, one.images.traces.labels.unsqueeze(1), -torch.inf).argmax(1)


def perturbed(one: PerturbedSet, where: Tensor, name: str = SUCCESS) -> Population:
    """Some of the perturbed images.

    Args:
        one: the perturbation's.
        where: int64 (n,), their positions in it.
        name: of the population.
    """
    own = one.images.traces.labels
    return Population(one.label, name, one.images, where, one.rows[where], own[where], runner_up(one)[where])


def controls(one: PerturbedSet, successes: Population) -> Population:
    """Noise of the same size as some successes, for those that have it, in the order of the noise."""
    position = {row: i for i, row in enumerate(successes.rows.tolist())}
    pairs = [(j, position[row]) for j, row in enumerate(one.control_rows.tolist()) if row in position]
    where, of = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    return Population(
        one.label, CONTROL, one.control, where, successes.rows[of], successes.own[of], successes.reached[of]
    )


def originals(given: AnalysisInput, of: Population) -> Population:
    """The clean images behind others."""
    return Population(of.perturbation, "clean", given.evaluate, of.rows, of.rows, of.own, of.reached)


def target_class(
    given: AnalysisInput, successes: Population, pools: Mapping[int, Tensor], draws: torch.Generator
) -> Population:
    """For each success a clean image of its predicted class; successes whose class has none are left out.

    Args:
        given: with the evaluate images.
        successes: of one perturbation.
        pools: by class, positions among the evaluate images to draw from.
        draws: one for each success.
    """
    pairs = []
    for i, c in enumerate(successes.reached.tolist()):
        if len(pools[c]):
            pairs.append((int(pools[c][int(torch.randint(len(pools[c]), (1,), generator=draws))]), i))
    where, of = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
    return Population(
        successes.perturbation, TARGET, given.evaluate, where, successes.rows[of], successes.own[of],
        successes.reached[of],
    )  # fmt: skip
