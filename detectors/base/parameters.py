"""Checks of detector parameters and fit sets: every mistake is one :class:`UsageError` with what to do."""

from __future__ import annotations

from collections.abc import Sequence

from ...harness.core.errors import UsageError
from ...harness.tracing.traces import Traces


def check_layers(layers: str | Sequence[str]) -> str | list[str]:
    """Return a selection of taps, as a string or a list of names, fit for storing."""
    if isinstance(layers, str) and layers:
        return layers
    if isinstance(layers, list | tuple) and layers and all(isinstance(name, str) and name for name in layers):
        return list(layers)
    raise UsageError(f"layers = {layers!r}: give all, last:N, first:N, or the names of taps.")


def selection(layers: str | list[str]) -> str | tuple[str, ...]:
    """Checked layers in the form that ``Need`` takes."""
    return layers if isinstance(layers, str) else tuple(layers)


def check_images(detector: str, clean: Traces, least: int = 2) -> None:
    """A detector cannot be fitted on fewer than ``least`` clean images."""
    if len(clean) < least:
        raise UsageError(
            f"{detector} was given {len(clean)} clean image{'' if len(clean) == 1 else 's'} to fit on and needs "
            f"at least {least}: raise data.fit."
        )


def check_fitted(detector: str, fitted: object) -> None:
    """Scoring needs a fitted detector; ``fitted`` is empty until then."""
    if not fitted:
        raise UsageError(f"{detector} is not fitted yet: call fit() or load_state() before score().")


def check_perturbed(detector: str, perturbed: Traces | None) -> Traces:
    """Return the perturbed fit images, which a supervised detector needs."""
    if perturbed is None or not len(perturbed):
        raise UsageError(
            f"{detector} learns from perturbed images here and was given none: name perturbations that fool the "
            "model under fit_on."
        )
    return perturbed
