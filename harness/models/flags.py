"""What is doubtful about a model, found before anything is measured: flags of every row about it."""

from __future__ import annotations

DECIDES_NO_NUMBER = True

RANDOMISED_MODEL = "randomised-model"
PROBABILITIES = "probabilities-for-logits"
LOG_PROBABILITIES = "log-probabilities-for-logits"
BATCH_DEPENDENT = "batch-dependent"
NEAR_CHANCE = "near-chance"
NO_WEIGHTS = "no-weights"
