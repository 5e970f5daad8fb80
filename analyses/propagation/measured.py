"""What :mod:`~aftershock.analyses.propagation` measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moved:
    """How far the images of one population moved.

    Attributes:
        values: float32 (metrics, n, taps), from :func:`~.measures.measure`.
        cka: float64 (taps,), from :func:`~.measures.cka`.
    """

    values: Tensor
    cka: Tensor

    def __post_init__(self) -> None:
        if self.values.shape[2] != len(self.cka):
            raise ValueError(f"values of shape {tuple(self.values.shape)} do not fit {len(self.cka)} taps")


@dataclass(frozen=True, eq=False)
class Propagated:
    """How far images moved, tap by tap.

    Attributes:
        taps: names in execution order.
        moved: by perturbation and population (``success``, ``failed``, ``control``, ``target-class``).
    """

    taps: Sequence[str]
    moved: Mapping[str, Mapping[str, Moved]]
