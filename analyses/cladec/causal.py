"""Whether what a decoder reads is what the network uses: units are mixed up between images, one at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...harness.statistics.intervals import Estimate, rank_correlation_interval
from ...harness.tracing.traced_model import TracedModel
from .networks import Decoder, changed_logits, encode


@dataclass(frozen=True, eq=False)
class Causes:
    """What the units of one tap do.

    Attributes:
        units: which ones were mixed up (maps, or features of a flat tap), int64 (u,).
        on_image: mean squared change of the reconstruction, float64 (u,).
        on_output: mean total variation distance between the class probabilities before and after, float64 (u,).
    """

    units: Tensor
    on_image: Tensor
    on_output: Tensor

    def correlation(self) -> Estimate | None:
        """Spearman's between both effects, with its interval; ``None`` where it is not defined."""
        from scipy.stats import spearmanr

        if len(self.units) < 5 or min(float(self.on_image.std()), float(self.on_output.std())) == 0:
            return None
        rho = float(spearmanr(self.on_image.numpy(), self.on_output.numpy()).statistic)
        return rank_correlation_interval(rho, len(self.units))


def causes(
    traced_model: TracedModel, decoder: Decoder, images: Tensor, tap: str, units: int, draws: torch.Generator
) -> Causes:
    """Give single units the values that they have on other images, and see what moves: the picture or the prediction.

    Mixing keeps every unit's own distribution, which setting it to 0 does not.

    Args:
        traced_model: the network.
        decoder: of its activations at ``tap``.
        images: on the network's device.
        tap: whose units are mixed.
        units: at most so many, a random sample of those that vary.
        draws: for the sample and the order of the images.
    """
    with torch.no_grad():
        code = encode(traced_model, images, (tap,))[tap]
        before = traced_model.model(images).softmax(1)
        picture = decoder(code)
        # A unit is a map or a feature: of tokens (n, positions, features) the last axis.
        axis = 2 if code.ndim == 3 else 1
        by_unit = code.movedim(axis, 1).reshape(len(code), code.shape[axis], -1)
        varying = torch.nonzero(by_unit.var(0).sum(1)).flatten().cpu()
        chosen = varying[torch.randperm(len(varying), generator=draws)[:units]].sort().values
        order = torch.randperm(len(images), generator=draws).to(images.device)
        on_image, on_output = [], []
        for unit in chosen.tolist():

            def mixed(activation: Tensor, unit: int = unit) -> Tensor:
                of_unit = activation.movedim(axis, 0)[unit]
                of_unit.copy_(of_unit[order])
                return activation

            on_image.append((decoder(mixed(code.clone())) - picture).square().mean())
            after = changed_logits(traced_model, images, tap, mixed).softmax(1)
            on_output.append((after - before).abs().sum(1).mean() / 2)
    return Causes(chosen, _numbers(on_image), _numbers(on_output))


def _numbers(values: list[Tensor]) -> Tensor:
    return torch.stack(values).double().cpu() if values else torch.empty(0, dtype=torch.float64)
