"""A model for code of others: what it changes there (weights, hooks, methods) reaches nobody else."""

from __future__ import annotations

import copy
from dataclasses import replace

from ..process_state import own_code
from ..scoring import Instruments


def lent(instruments: Instruments, part: object) -> Instruments:
    """Return instruments with a copy of the model; parts of this package get the model itself, which they leave alone.

    A model that cannot be copied is lent as it is.
    """
    if own_code(part):
        return instruments
    try:
        model, root = copy.deepcopy((instruments.model, instruments.root))
    except Exception:
        return instruments
    return replace(instruments, model=model, root=root)
