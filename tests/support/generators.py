"""The global generators of random numbers, which the package leaves alone."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def numpy_state() -> list[int]:
    """What NumPy's global generator is about to give."""
    state: Any = np.random.get_state()
    return [*state[1].tolist(), *state[2:]]


def generator_states() -> tuple[object, ...]:
    """What the global generators of torch, NumPy and Python are about to give; equal where nothing was drawn."""
    return torch.get_rng_state().tolist(), numpy_state(), random.getstate()
