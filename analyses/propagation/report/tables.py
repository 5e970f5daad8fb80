"""Every number of :mod:`~aftershock.analyses.propagation`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from ...findings import Table, Value
from ..measured import Moved, Propagated
from ..measures import METRICS


def tables(measured: Propagated) -> list[Table]:
    """The one table; a population without images has no rows."""
    found = (
        (label, population, *row)
        for label, populations in measured.moved.items()
        for population, moved in populations.items()
        for row in _rows(measured.taps, moved)
    )
    return [
        Table(
            "propagation",
            "How far the images of a population moved at a tap, by one measure: mean and quantiles over images (of "
            "cka, which compares whole sets, its value).",
            ("perturbation", "population", "depth", "tap", "metric", "n", "mean", "q05", "q50", "q95"),
            list(found),
        )
    ]


@dataclass(frozen=True)
class Summary:
    """The distribution of a measure over n images: mean and 5 %, 50 % and 95 % quantiles (``None`` without images)."""

    n: int
    mean: float | None = None
    q05: float | None = None
    q50: float | None = None
    q95: float | None = None


def summarise(values: Tensor) -> Summary:
    """Summarise values (n,); quantiles interpolate linearly."""
    n = len(values)
    if not n:
        return Summary(0)
    values = values.double()
    low, middle, high = torch.quantile(values, torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)).tolist()
    return Summary(n, values.mean().item(), low, middle, high)


def _rows(taps: Sequence[str], moved: Moved) -> Iterator[tuple[Value, ...]]:
    n = moved.values.shape[1]
    for depth, tap in enumerate(taps) if n else ():
        for i, metric in enumerate(METRICS):
            yield depth, tap, metric, *astuple(summarise(moved.values[i, :, depth]))
        whole = float(moved.cka[depth])
        yield depth, tap, "cka", *astuple(Summary(n, None if math.isnan(whole) else whole))
