"""Linear classifiers on packed bits: logistic regression and the linear support vector machine.

With ``m`` the decision function, ``y`` = ±1 (perturbed / clean), and both classes weighing one half however many images
they have, the objective is ::

    1/2 mean_clean loss(-m) + 1/2 mean_perturbed loss(m) + regularisation / 2 * |w|²,    m = x·w + b,

on bits written as x = ±1 / sqrt(units), so that every image has length 1 and one ``regularisation`` means the same for
every network. The intercept b is not regularised. In scikit-learn's terms: C = 1 / (regularisation * images) with
``class_weight="balanced"``.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .blocks import BitBlocks

Loss = Literal["logistic", "squared-hinge"]


@dataclass(frozen=True)
class LinearBits:
    """A linear function of bits.

    Attributes:
        weights: float32 (units,), for bits written as 0 and 1.
        bias: the intercept.
    """

    weights: Tensor
    bias: float

    def decision(self, bits: Tensor) -> Tensor:
        """(n,): positive where the classifier says perturbed; in the dtype of ``bits`` (n, units)."""
        return bits @ self.weights.to(bits) + self.bias


def fit_linear(
    clean: BitBlocks, perturbed: BitBlocks, loss: Loss, regularisation: float, iterations: int = 300
) -> LinearBits:
    """Minimise the module's objective with L-BFGS; the bits are unpacked block by block, once per evaluation.

    Warns:
        RuntimeWarning: when ``iterations`` did not suffice.
    """
    from scipy.optimize import minimize

    width = clean.width
    scale = 2 / width**0.5
    # The intercept is free, so centred bits have the same solution; they condition the problem far better.
    centre = sum((half * _mean(blocks) for half, blocks in ((0.5, clean), (0.5, perturbed))), torch.zeros(width))

    def objective(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        weights = torch.from_numpy(parameters[:-1])
        slope = (scale * weights).float()
        offset = float(parameters[-1]) - float(centre.double() @ slope.double())
        value, residual_sum, pull = 0.0, 0.0, torch.zeros(width)
        for sign, blocks in ((-1.0, clean), (1.0, perturbed)):
            for bits in blocks:
                margins = sign * ((bits @ slope).double() + offset)
                losses, slopes = _loss(margins, loss)
                residuals = slopes * (sign / (2 * len(blocks)))
                value += float(losses.sum()) / (2 * len(blocks))
                residual_sum += float(residuals.sum())
                pull += residuals.float() @ bits
        gradient = scale * (pull.double() - residual_sum * centre.double()) + regularisation * weights
        value += regularisation / 2 * float(weights @ weights)
        return value, np.append(gradient.numpy(), residual_sum)

    found = minimize(
        objective,
        np.zeros(width + 1),
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": iterations, "maxcor": 20, "ftol": 1e-9, "gtol": 1e-6},
    )
    if found.nit >= iterations:
        warnings.warn(
            f"the linear classifier on bits did not converge in {iterations} iterations", RuntimeWarning, stacklevel=2
        )
    weights = scale * torch.from_numpy(found.x[:-1])
    bias = float(found.x[-1]) - float(centre.double() @ weights)
    return LinearBits(weights.float(), bias)


def _mean(blocks: BitBlocks) -> Tensor:
    total = torch.zeros(blocks.width)
    for bits in blocks:
        total += bits.sum(0)
    return total / len(blocks)


def _loss(margins: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """Return the loss of each signed margin, and its derivative."""
    if loss == "logistic":
        return torch.nn.functional.softplus(-margins), -torch.sigmoid(-margins)
    short = (1 - margins).clamp(min=0)
    return short.square(), -2 * short
