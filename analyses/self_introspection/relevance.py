"""Relevance of hidden units to an output in two orders: correlation with a logit, and gradient times activation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...harness.core.model_state import untouched
from ...harness.statistics.intervals import Estimate, fisher_interval, image_weights
from ...harness.tracing.taps import TapCall, Taps
from ...harness.tracing.traced_model import TracedModel
from ...harness.tracing.traces import TapInfo, sampled_units

_BATCH = 64
# The spread of a rank correlation needs far fewer resamples than a percentile.
_RESAMPLES = 100


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the two orders are made of.

    Attributes:
        activations: float32 (n, d), the sampled units of all layers.
        logits: float32 (n, classes).
        attributions: float32 (n, d), the gradient of the predicted class's logit times the activation, its size.
        units: how many of the d belong to each layer.
        totals: how many units each layer has, sampled or not.
    """

    activations: Tensor
    logits: Tensor
    attributions: Tensor
    units: Sequence[int]
    totals: Sequence[int]

    def take(self, rows: Tensor) -> Evidence:
        """Some of the images."""
        return Evidence(
            self.activations[rows], self.logits[rows], self.attributions[rows], self.units, self.totals
        )  # fmt: skip

    @property
    def varying(self) -> Tensor:
        """Units that vary over the images, bool (d,): a dead one has no place in an order."""
        return self.activations.amax(0) > self.activations.amin(0)


def attribute(traced_model: TracedModel, taps: Sequence[TapInfo], units: int, images: Tensor) -> Tensor:
    """|∂ logit of the predicted class / ∂ activation · activation| of the sampled units, float32 (n, d), on the CPU.

    The gradients are caught where an activation leaves its call, so a model that goes on in place changes nothing.
    """
    model = traced_model.model
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    kept = {tap.name: sampled_units(tap, units) for tap in taps}
    known = {tap.name: tap for tap in taps}
    widths = [min(units, tap.units) for tap in taps]
    found: list[Tensor] = []

    for part in images.split(_BATCH):
        values: dict[str, Tensor] = {}
        gradients: dict[str, Tensor] = {}

        def chosen(name: str, tensor: Tensor) -> Tensor:
            flat, rows = known[name].arranged(tensor.detach()).flatten(1), kept[name]
            return (flat if rows is None else flat[:, rows.to(flat.device)]).float().cpu()

        def visit(call: TapCall, values: dict[str, Tensor] = values, gradients: dict[str, Tensor] = gradients) -> None:
            if call.name not in kept:
                return
            values[call.name] = chosen(call.name, call.activation).clone()

            def keep(gradient: Tensor, name: str = call.name) -> None:
                gradients[name] = chosen(name, gradient)

            if call.activation.requires_grad:
                call.activation.register_hook(keep)

        with untouched(model), torch.inference_mode(False), torch.enable_grad():
            x = part.to(device).clone().requires_grad_(True)
            with Taps(traced_model.root or model, visit, traced_model.modules):
                logits = model(x)
            top = logits.gather(1, logits.argmax(1, keepdim=True)).sum()
            torch.autograd.grad(top, x, allow_unused=True)
        blank = [torch.zeros(len(part), width) for width in widths]
        found.append(
            torch.cat(
                [
                    (values[t.name] * gradients[t.name]).abs() if t.name in gradients else none
                    for t, none in zip(taps, blank, strict=True)
                ],
                1,
            )
        )
    return torch.cat(found) if found else torch.empty(0, sum(widths))


def by_correlation(activations: Tensor, logits: Tensor, weights: Tensor | None = None) -> Tensor:
    """Pearson correlation of each unit with each logit over images, float64 (classes, d); 0 for constant ones.

    Args:
        activations: (n, d).
        logits: (n, classes).
        weights: of the images, float64 (n,), summing to 1; by default all alike.
    """
    share = torch.full((len(logits),), 1 / len(logits), dtype=torch.float64) if weights is None else weights
    return (_standard(logits.double(), share) * share.unsqueeze(1)).T @ _standard(activations.double(), share)


def _standard(values: Tensor, share: Tensor) -> Tensor:
    mean = share @ values
    centred = values - mean
    deviation = (share @ centred.square()).sqrt()
    varies = deviation > (1e-7 * mean.abs()).clamp(min=1e-12)
    return centred * torch.where(varies, 1 / deviation, 0.0)


def relevance(evidence: Evidence, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Both relevances of each unit to the predicted class, float64 (d,): correlation, gradient times activation.

    The first is the size of the correlation with a logit over all images, averaged over the outputs by how often each
    is predicted; the second the mean attribution of the predicted class's logit.
    """
    n = len(evidence.logits)
    share = torch.full((n,), 1 / n, dtype=torch.float64) if weights is None else weights
    classes = evidence.logits.shape[1]
    predicted = torch.zeros(classes, dtype=torch.float64).index_add(0, evidence.logits.argmax(1), share)
    return (
        predicted @ by_correlation(evidence.activations, evidence.logits, share).abs(),
        share @ evidence.attributions.double(),
    )


def relevance_to(evidence: Evidence, output: int) -> tuple[Tensor, Tensor]:
    """Both relevances to one output, float64 (d,); the attribution over images that are predicted as it (or all)."""
    rows = evidence.logits.argmax(1) == output
    chosen = evidence.attributions[rows] if bool(rows.any()) else evidence.attributions
    return by_correlation(evidence.activations, evidence.logits[:, [output]])[0].abs(), chosen.double().mean(0)


def layer_shares(values: Tensor, units: Sequence[int], totals: Sequence[int]) -> Tensor:
    """The share of relevance (d,) that each layer has, float64 (layers,): mean of its units times all its units."""
    means = torch.stack([part.mean() for part in values.split(list(units))])
    whole = means * torch.tensor(totals, dtype=torch.float64)
    return whole / whole.sum().clamp(min=1e-300)


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's rank correlation; NaN where one of them is constant or has fewer than 3 units."""
    from scipy.stats import rankdata

    if len(a) < 3:
        return math.nan
    # A hundred resamples of every layer ask for this: scipy's spearmanr takes many times as long, for its p value.
    x, y = (rankdata(v.numpy()) - (len(a) + 1) / 2 for v in (a, b))
    spread = math.sqrt(float(x @ x) * float(y @ y))
    return float(x @ y) / spread if spread > 0 else math.nan


@dataclass(frozen=True, eq=False)
class Orders:
    """Both orders of the units of one network.

    Attributes:
        correlation, attribution: relevances to the predicted class, float64 (d,).
        shares: of the layers, by correlation and by attribution.
        agreement: Spearman's correlation of the two orders over all units, with its interval over images.
        within: the same inside each layer, with intervals; NaN where a layer has too few varying units.
        halves: the correlation of each order with itself on the other half of the images: what agreement could reach.
        permuted: mean size of the correlation where logits belong to other images: what chance makes.
    """

    correlation: Tensor
    attribution: Tensor
    shares: tuple[Sequence[Estimate], Sequence[Estimate]]
    agreement: Estimate
    within: list[Estimate]
    halves: tuple[float, float]
    permuted: float


def compare_orders(evidence: Evidence, draws: torch.Generator) -> Orders:
    """Order the units in both ways and say how far the ways agree."""
    n, varying = len(evidence.logits), evidence.varying
    units, totals = evidence.units, evidence.totals

    def agreements(a: Tensor, b: Tensor) -> list[float]:
        parts = zip(a.split(list(units)), b.split(list(units)), varying.split(list(units)), strict=True)
        inside = [rank_correlation(x[mask], y[mask]) for x, y, mask in parts]
        return [rank_correlation(a[varying], b[varying]), *inside]

    correlation, attribution = relevance(evidence)
    estimates = agreements(correlation, attribution)
    resampled, shares = [], []
    seed = int(torch.randint(2**31, (1,), generator=draws))
    for weights in torch.from_numpy(image_weights(n, _RESAMPLES, seed)):
        a, b = relevance(evidence, weights)
        resampled.append(agreements(a, b))
        shares.append(torch.stack([layer_shares(x, units, totals) for x in (a, b)]))
    spread = np.array(resampled)
    found = [fisher_interval(value, spread[:, i]) for i, value in enumerate(estimates)]
    order = torch.randperm(n, generator=draws)
    first, second = (relevance(evidence.take(rows)) for rows in (order[: n // 2], order[n // 2 :]))
    halves = [rank_correlation(x[varying], y[varying]) for x, y in zip(first, second, strict=True)]
    shuffled = by_correlation(evidence.activations, evidence.logits[torch.randperm(n, generator=draws)])
    all_shares = torch.stack(shares)
    own = [
        _bootstrapped(layer_shares(x, units, totals), all_shares[:, k])
        for k, x in enumerate((correlation, attribution))
    ]
    return Orders(
        correlation, attribution, (own[0], own[1]), found[0], found[1:], (halves[0], halves[1]),
        float(shuffled[:, varying].abs().mean()),
    )  # fmt: skip


def _bootstrapped(values: Tensor, resampled: Tensor) -> list[Estimate]:
    """Numbers (k,) with the middle 95 % of their resampled values (resamples, k), widened where needed to hold them."""
    low, high = resampled.quantile(0.025, 0).minimum(values), resampled.quantile(0.975, 0).maximum(values)
    return [
        Estimate(*each, "Bayesian bootstrap") for each in zip(values.tolist(), low.tolist(), high.tolist(), strict=True)
    ]
