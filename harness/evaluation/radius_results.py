"""The searches for the smallest perturbations of one model and seed, read from their cells."""

from __future__ import annotations

import numpy as np

from ..plan import ModelPlan
from .finished import Finished
from .radii import Radii, distances
from .rankability import ABLATION
from .results import Cell, SeedResult


def radii_of(found: Finished, model_plan: ModelPlan, detector: str = "") -> Radii:
    """Return what the search against a detector found; without one, what the search that knows none did."""
    key = model_plan.radii.get(detector)
    if key is None:
        return Radii()
    reason = found.reason(key)
    if reason:
        return Radii(reason=reason)
    tensors, values = found.store.load(key), found.store.values(key)
    # What a limit ended may have been found nearer. The search that knows no detector has the help of all others.
    if detector and "limit" in values["flags"]:
        return Radii(reason="a limit under [limits] ended it")
    radius, alone = (tensors[name].double().numpy() for name in ("radius", "alone"))
    return Radii(tensors["row"].long().numpy(), radius, alone, float(values["reach"]))


def radius_rows(result: SeedResult) -> list[dict[str, Cell]]:
    """Return the rows of ``radii.csv`` of one model and seed: of every detector and ``none``, image by image.

    ``index`` is the image's position in its split, ``r0`` the distance of the nearest image found that fools the model,
    as this row knows it, ``rd`` that of the nearest that also passes the detector, both empty beyond ``reach``.
    """
    rows: list[dict[str, Cell]] = []
    sources = result.sources
    for label, own in [*((d.label, d.radii) for d in result.detectors), (ABLATION, result.alone)]:
        found = distances([result.alone], [own])
        if found is None:
            continue
        index = sources.evaluate_index[np.unique(result.alone.index)]
        for position, r0, rd in zip(index.tolist(), found.r0[:, 0].tolist(), found.rd[:, 0].tolist(), strict=True):
            rows.append({
                "dataset": sources.dataset, "model": sources.model, "seed": sources.seed, "detector": label,
                "index": position, "r0": r0 if np.isfinite(r0) else None, "rd": rd if np.isfinite(rd) else None,
                "reach": found.reach,
            })  # fmt: skip
    return rows
