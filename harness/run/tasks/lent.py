"""Models and detectors for code of others: what it changes there (weights, hooks, methods) stays there."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TypeVar

from ...core.process_state import own_code
from ...tracing.traced_model import TracedModel

T = TypeVar("T")


def lent(held: T, part: object) -> T:
    """Return a copy of something for a part; parts of this package get the thing itself, which they leave as it is.

    What cannot be copied is lent as it is.
    """
    if own_code(part):
        return held
    try:
        return copy.deepcopy(held)
    except Exception:
        return held


def lent_model(held: TracedModel, part: object) -> TracedModel:
    """Return traced_model with a model of their own, as :func:`lent`."""
    model, root = lent((held.model, held.root), part)
    return replace(held, model=model, root=root)
