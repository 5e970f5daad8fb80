"""Langevin chains, unadjusted or Metropolis-adjusted, many at once, over any potential on R^d.

Borders and scales of images are a matter of coordinates (:mod:`.space`), so the kernel knows neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Method = Literal["ula", "mala"]
Decay = Literal["constant", "polynomial"]
# States (n, d) to the potential U = -log density + constant, (n,), and to what is watched, (n, k).
Potential = Callable[[Tensor], tuple[Tensor, Tensor]]

# What the Metropolis-adjusted kernel should accept in many dimensions (Roberts & Rosenthal 1998).
ACCEPTANCE = 0.574


@dataclass(frozen=True)
class Schedule:
    """The step size ε_t = step · (1 + t / offset)^-power; constant for power 0."""

    step: float
    power: float = 0.0
    offset: float = 100.0

    def at(self, t: int) -> float:
        """The step size of step ``t``."""
        return float(self.step * (1 + t / self.offset) ** -self.power)


@dataclass(frozen=True)
class Plan:
    """How long chains run and what is kept of them.

    Attributes:
        steps: all of them.
        burn_in: steps at the start that are not kept.
        thin: every so many of the rest is kept.
        schedule: of the step size.
        method: ``ula`` moves always; ``mala`` accepts or rejects, so that its stationary density is exact.
        adapt: ``mala`` alone: each chain's step size follows its acceptance during the burn-in and is fixed afterwards.
    """

    steps: int
    burn_in: int
    thin: int
    schedule: Schedule
    method: Method = "ula"
    adapt: bool = True


@dataclass(frozen=True, eq=False)
class Chains:
    """What n chains left.

    Attributes:
        states: (kept, n, d), the thinned states after the burn-in.
        watched: float64 (steps after the burn-in, n, k).
        potentials: float64 (steps after the burn-in, n).
        acceptance: float64 (n,), the mean chance that a Metropolis test accepts (or would have accepted) a step.
        step: float64 (n,), the last step size.
        virial: float64 (n,), mean of w · ∇U / d, which is 1 in equilibrium: a measured temperature in units of the
            nominal one, where the coordinates are unbounded.
        end: (n, d), the last states.
    """

    states: Tensor
    watched: Tensor
    potentials: Tensor
    acceptance: Tensor
    step: Tensor
    virial: Tensor
    end: Tensor


def langevin(
    potential: Potential, start: Tensor, plan: Plan, draws: torch.Generator,
    progress: Callable[[float], None] = lambda share: None,
) -> Chains:  # fmt: skip
    """Run chains w' = w - (ε/2) ∇U(w) + sqrt(ε) ξ.

    Args:
        potential: differentiable; each row depends on its own state alone.
        start: float (n, d), where the chains begin.
        plan: how they run.
        draws: on the CPU; the numbers do not depend on the device.
        progress: told the share that is done.
    """
    state = start.detach().clone()
    n, size = state.shape
    value, gradient, watched = _evaluate(potential, state)
    scale = torch.ones(n, dtype=torch.float64, device=state.device)
    kept, seen, values = [], [], []
    accepted = torch.zeros(n, dtype=torch.float64, device=state.device)
    virial = torch.zeros_like(accepted)
    for t in range(plan.steps):
        step = (plan.schedule.at(t) * scale).to(state.dtype)[:, None]
        noise = torch.randn(n, size, generator=draws, dtype=state.dtype).to(state.device)
        proposal = state - step / 2 * gradient + step.sqrt() * noise
        new_value, new_gradient, new_watched = _evaluate(potential, proposal)
        back = state - proposal + step / 2 * new_gradient
        forth = (noise.double().square().sum(1) - (back.double().square() / step.double()).sum(1)) / 2
        # Where the potential is not a number, so is the chance: such a place is never entered.
        chance = (value - new_value + forth).nan_to_num(-torch.inf, -torch.inf, -torch.inf).clamp(max=0).exp()
        if plan.method == "mala":
            uniform = torch.rand(n, generator=draws, dtype=torch.float64).to(state.device)
            goes = uniform < chance
            state = torch.where(goes[:, None], proposal, state)
            gradient = torch.where(goes[:, None], new_gradient, gradient)
            watched = torch.where(goes[:, None], new_watched, watched)
            value = torch.where(goes, new_value, value)
            if plan.adapt and t < plan.burn_in:
                scale = scale * torch.exp((chance - ACCEPTANCE) / (1 + t) ** 0.6)
        else:
            state, gradient, watched, value = proposal, new_gradient, new_watched, new_value
        if t >= plan.burn_in:
            accepted += chance
            virial += (state.double() * gradient.double()).sum(1) / size
            seen.append(watched.double().cpu())
            values.append(value.cpu())
            if (t - plan.burn_in) % plan.thin == plan.thin - 1:
                kept.append(state.clone())
        progress((t + 1) / plan.steps)
    count = max(plan.steps - plan.burn_in, 1)
    width = watched.shape[1]
    return Chains(
        torch.stack(kept) if kept else state.new_empty(0, n, size),
        torch.stack(seen) if seen else torch.empty(0, n, width, dtype=torch.float64),
        torch.stack(values) if values else torch.empty(0, n, dtype=torch.float64),
        (accepted / count).cpu(), (plan.schedule.at(max(plan.steps - 1, 0)) * scale).cpu(),
        (virial / count).cpu(), state,
    )  # fmt: skip


def _evaluate(potential: Potential, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Potential float64 (n,), its gradient (n, d), and what is watched (n, k)."""
    with torch.enable_grad():
        here = state.detach().requires_grad_(True)
        value, watched = potential(here)
        (gradient,) = torch.autograd.grad(value.sum(), here)
    return value.detach().double(), gradient.detach(), watched.detach()
