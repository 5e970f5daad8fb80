"""What a code misses by layer, and whether that tells an attack from clean images or only from noise."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from ...harness.statistics.intervals import auroc_estimate, median_interval
from ...harness.tracing.traces import Traces
from ..common.inputs import PerturbedSet
from ..common.recording import BATCH
from .fringe import reconstruction
from .latent_map import Code, activations
from .measured import Missed, Told

RIGHT, WRONG = "clean, right", "clean, wrong"


def noise_of(label: str) -> str:
    """What the noise of a perturbation's size is called."""
    return f"noise as large as {label}"


def compare_reconstructions(
    perturbed: Mapping[str, PerturbedSet], traces: Traces, raw: Tensor, codes: Mapping[str, Code]
) -> tuple[list[Missed], list[Told]]:
    """What each code misses of each set of images, and how well that tells successes from others.

    Args:
        perturbed: by label.
        traces: of the evaluate images.
        raw: their activations, float32 (n, d).
        codes: by name.
    """
    units = [traces.units(tap, "full") for tap in traces.tap_names()]
    wrong = traces.predictions != traces.labels
    sets = {RIGHT: raw[~wrong], WRONG: raw[wrong]}
    told: list[Told] = []
    # Activations (n, d) to one number per image.
    scores: dict[str, Callable[[Tensor], Tensor]] = {
        f"reconstruction, {name}": partial(reconstruction, code) for name, code in codes.items()
    }
    scores["activation norm"] = partial(activation_norm, next(iter(codes.values())))
    for each in perturbed.values():
        attack, rows, noise, noise_rows = gather_success(each, len(traces))
        if not len(attack):
            continue
        sets |= {each.label: attack, noise_of(each.label): noise}
        for name, score in scores.items():
            high = score(attack)
            for against, other, sources in (("clean", raw[rows], rows), ("noise", noise, noise_rows)):
                if len(other):
                    area = auroc_estimate(high.numpy(), score(other).numpy(), rows.numpy(), sources.numpy())
                    told.append(Told(each.label, name, against, len(attack), len(other), area))
    missed = []
    for name, code in codes.items():
        for label, values in sets.items():
            if len(values):
                found = unexplained(code, values, units)
                medians = [median_interval(layer) for layer in found.T]
                missed.append(Missed(name, label, len(values), medians, found.mean(0).tolist()))
    return missed, told


def gather_success(each: PerturbedSet, below: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Activations and evaluate rows of a perturbation's successes, then of its controls."""
    parts = []
    wanted = each.success & (each.rows < below)
    for start, part in zip(range(0, len(each.rows), BATCH), each.images.traces.batches(BATCH), strict=True):
        mask = wanted[start : start + BATCH]
        if bool(mask.any()):
            parts.append(activations(part)[mask])
    raw = torch.cat(parts) if parts else activations(each.images.traces[:0])
    inside = each.control_rows < below
    return raw, each.rows[wanted], activations(each.control.traces)[inside], each.control_rows[inside]


def unexplained(code: Code, raw: Tensor, units: Sequence[int]) -> Tensor:
    """Squared reconstruction error of each layer over the layer's variance on fit images, float64 (n, layers).

    The detector weights layers so that each has the same variance there: the number of varying units over the number
    of layers that have any. A layer without a varying unit gives 0.

    Args:
        code: reconstructs.
        raw: activations (n, d) to reconstruct.
        units: how many of the d belong to each layer.
    """
    varying = [int((part > 0).sum()) for part in code.detector.inputs["scale"].split(list(units))]
    each = sum(varying) / max(1, sum(count > 0 for count in varying))
    missed = [sum_by_layer(code.residual(x).double().square(), units) for x in raw.split(BATCH)]
    return torch.cat(missed) / each if missed else torch.empty(0, len(units), dtype=torch.float64)


def sum_by_layer(values: Tensor, units: Sequence[int]) -> Tensor:
    """Sums (n, layers) over the units of each layer of (n, d)."""
    return torch.stack([part.sum(1) for part in values.split(list(units), 1)], 1)


def activation_norm(code: Code, raw: Tensor) -> Tensor:
    """Euclidean norm of the standardised activations, float64 (n,): what a reconstruction error must beat."""
    return torch.cat([code.standardise(x).double().norm(dim=1) for x in raw.split(BATCH)])
