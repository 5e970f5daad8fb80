"""Kinds of perturbations, and what one invests: known without running any."""

from __future__ import annotations

from dataclasses import dataclass

# Kinds whose success counts against a detector; noise and corruptions are benign.
HOSTILE = ("attack", "adaptive")
# The share of the budget at which false alarms are counted.
QUARTER = 0.25


@dataclass(frozen=True)
class Effort:
    """What an adaptive attack invests per image; the protocol's floor is one of these.

    Attributes:
        steps: gradient steps of one run.
        restarts: runs from different starts.
        queries: evaluations of the true score by an attack without gradients.
    """

    steps: int = 0
    restarts: int = 0
    queries: int = 0

    def __or__(self, other: Effort) -> Effort:
        """Return the larger of the two, number by number: attacks on one image add up to the worst case."""
        return Effort(
            max(self.steps, other.steps), max(self.restarts, other.restarts), max(self.queries, other.queries)
        )

    def __ge__(self, floor: Effort) -> bool:
        """Return whether every number reaches that of ``floor``."""
        return self | floor == self
