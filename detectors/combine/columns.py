"""Several scores of an image (one per layer, or per detector) made into one.

``mean`` and ``max`` take the scores in standard deviations of clean images; ``logistic`` is a logistic regression that
tells clean from perturbed images, both sides weighing one half (Lee et al. 2018 and Ma et al. 2018 fit one per attack).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from ..base.classes import scale_of

Combination = Literal["mean", "max", "logistic"]


def fit_columns(how: Combination, clean: Tensor, perturbed: Tensor | None = None) -> dict[str, Any]:
    """Learn how to combine columns.

    Args:
        how: the kind of combination.
        clean: scores of clean images, (n, columns); the scales are theirs alone.
        perturbed: scores of perturbed images, (m, columns), for ``logistic``.

    Returns:
        what :func:`join_columns` takes: tensors and JSON values.
    """
    scales = torch.tensor([scale_of(column) for column in clean.T], dtype=torch.float64)
    fitted: dict[str, Any] = {"how": how, "centre": scales[:, 0].contiguous(), "scale": scales[:, 1].contiguous()}
    if how == "logistic":
        if perturbed is None:
            raise ValueError("a logistic regression needs perturbed images")
        fitted |= _logistic(*((x.double() - fitted["centre"]) / fitted["scale"] for x in (clean, perturbed)))
    return fitted


def join_columns(fitted: Mapping[str, Any], columns: Tensor) -> Tensor:
    """(n, columns) to (n,), float64, differentiable; for ``logistic`` the log-odds of being perturbed."""
    device = columns.device
    scaled: Tensor = (columns.double() - fitted["centre"].to(device)) / fitted["scale"].to(device)
    if fitted["how"] == "mean":
        return scaled.mean(1)
    if fitted["how"] == "max":
        return scaled.amax(1)
    # Not a matrix product, whose rounding depends on the number of rows.
    odds: Tensor = (scaled * fitted["weights"].to(device)).sum(1) + fitted["bias"]
    return odds


def _logistic(clean: Tensor, perturbed: Tensor) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression

    rows = torch.cat([clean, perturbed]).numpy()
    truth = [0] * len(clean) + [1] * len(perturbed)
    model = LogisticRegression(class_weight="balanced", max_iter=2000).fit(rows, truth)
    weights = torch.from_numpy(model.coef_[0]).double().contiguous()
    return {"weights": weights, "bias": float(model.intercept_[0])}
