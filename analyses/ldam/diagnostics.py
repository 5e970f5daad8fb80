"""What is no chain at all: one that runs away, stands still, or goes where nothing is a number."""

from __future__ import annotations

import torch
from torch import Tensor

from ...harness.core.errors import UsageError
from .sampler import Chains, Plan

# Beyond these, in units of the nominal temperature and as a chance of acceptance, there is nothing to measure.
_HOTTEST = 100.0
_LEAST = 1e-3


def validate_chains(run: Chains, plan: Plan, unbounded: bool, discriminated: bool) -> None:
    """Look at finished chains before anything is measured on them.

    Args:
        run: with activation, the discriminator's logit and total variation watched.
        plan: how they ran.
        unbounded: whether their coordinates have a temperature.
        discriminated: whether there is a discriminator.

    Raises:
        UsageError: with what to lower.
    """
    watched = run.watched if discriminated else run.watched[..., [0, 2]]
    validate_finite(plan.schedule.step, run.end, run.states, run.potentials, watched, run.virial)
    if plan.method == "mala" and bool((run.acceptance < _LEAST).any()):
        raise UsageError(
            f"{int((run.acceptance < _LEAST).sum())} of ldam's {len(run.acceptance)} chains never move, for the "
            f"Metropolis test rejects every step: lower sampler.step = {plan.schedule.step:g}, or raise "
            "sampler.burn_in."
        )
    if unbounded and float(run.virial.abs().max()) > _HOTTEST:
        raise UsageError(
            f"ldam's chains are {float(run.virial.abs().max()):.2g} times as hot as temperature says: lower "
            f"sampler.step = {plan.schedule.step:g}, pull or the weights."
        )


def validate_finite(step: float, *values: Tensor) -> None:
    """Look for anything that is not finite; ``step`` is what a suite says.

    Raises:
        UsageError: where there is.
    """
    if not all(bool(torch.isfinite(v).all()) for v in values):
        raise UsageError(f"ldam's chains left every bound: lower sampler.step = {step:g}, pull or the weights.")
