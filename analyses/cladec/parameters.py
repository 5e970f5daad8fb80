"""The named parts of ClaDec's parameters, each a table in a suite."""

from __future__ import annotations

from dataclasses import dataclass

from ...harness.core.ranges import Count, Positive
from .training import Budget


@dataclass(frozen=True)
class DecoderTraining:
    """How every decoder (and RefAE) is trained.

    Args:
        epochs: Passes over the fit images.
        width: Maps of its hidden layers.
        batch_size: Images per step.
        learning_rate: Learning rate of Adam at the start; it follows half a cosine down to 0.
    """

    epochs: Count = 6
    width: Count = 32
    batch_size: Count = 64
    learning_rate: Positive = 3e-3

    @property
    def budget(self) -> Budget:
        """What the training takes."""
        return Budget(self.epochs, self.batch_size, self.learning_rate, self.width)


@dataclass(frozen=True)
class JudgeTraining:
    """How the fresh classifiers are trained that read reconstructions.

    Args:
        images: Maximum number of fit images.
        epochs: Passes over them.
        retrain: Train judges on reconstructions, too.
    """

    images: Count = 10000
    epochs: Count = 4
    retrain: bool = False
