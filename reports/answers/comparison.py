"""A comparison: figures side by side, with the test that each was put to, and what follows in sentences."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ...harness.statistics.intervals import mean_interval, paired_difference
from ...harness.statistics.multiple_testing import holm
from ...harness.statistics.paired import Difference
from ...harness.statistics.sign_flip import sign_flip_p

if TYPE_CHECKING:
    import pandas

LEVEL = 0.05
DELONG, MCNEMAR = "DeLong", "McNemar, exact"
_SEED = 0


@dataclass(frozen=True)
class Figure:
    """One figure of two sides.

    Attributes:
        model: the label of the model.
        what: which figure, by its name in the tables.
        about: the detector or perturbation that it is about.
        first, second: the figure of either side.
        difference: with its p-value; ``p`` is NaN where nothing could be tested.
        test: which test.
        n: number of images; 0 where it is not known.
    """

    model: str
    what: str
    about: str
    first: float
    second: float
    difference: Difference
    test: str
    n: int = 0


@dataclass(frozen=True, eq=False)
class Comparison:
    """What was compared.

    Attributes:
        first, second: what the two sides are called.
        figures: one for each figure, in the order of the tables.
        changes: facts that differ: what, on the first side, on the second.
        notes: sentences on what a test is about, and on what could not be compared.
    """

    first: str
    second: str
    figures: tuple[Figure, ...]
    changes: tuple[tuple[str, str, str], ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def corrected(self) -> list[float | None]:
        """The p-values after Holm's correction for all figures; ``None`` where nothing was tested."""
        return holm([None if np.isnan(f.difference.p) else f.difference.p for f in self.figures])

    @property
    def beyond_chance(self) -> list[Figure]:
        """The figures whose difference is significant at 5 % after Holm's correction."""
        return [f for f, p in zip(self.figures, self.corrected, strict=True) if p is not None and p <= LEVEL]

    @property
    def frame(self) -> pandas.DataFrame:
        """One row per figure: ``model``, ``figure``, ``about``, ``n``, ``first``, ``second``, ``difference``, ``low``,
        ``high`` (95 % interval of the difference), ``p``, ``p_holm``, ``test``."""
        import pandas as pd

        rows = [
            (f.model, f.what, f.about, f.n, f.first, f.second, f.difference.value, f.difference.low, f.difference.high,
             f.difference.p, float("nan") if p is None else p, f.test)
            for f, p in zip(self.figures, self.corrected, strict=True)
        ]  # fmt: skip
        names = ["model", "figure", "about", "n", "first", "second", "difference", "low", "high", "p", "p_holm", "test"]
        return pd.DataFrame(rows, columns=names)

    @property
    def sentences(self) -> list[str]:
        """What follows, in words."""
        tested = sum(p is not None for p in self.corrected)
        beyond = self.beyond_chance
        if not self.figures:
            said = "There is no figure that both have."
        elif not tested:
            said = "No difference could be tested."
        elif all(f.first == f.second for f in self.figures):
            said = f"All {len(self.figures)} figures are equal."
        else:
            few = f"{len(beyond)} of {tested} differences {'is' if len(beyond) == 1 else 'are'}"
            none = "The one difference is not" if tested == 1 else f"None of the {tested} differences is"
            said = f"{few if beyond else none} significant (5 % level, Holm's correction for all figures)."
        return [said, *self.notes]

    def _repr_html_(self) -> str:
        from html import escape

        said = "".join(f"<p>{escape(text)}</p>" for text in self.sentences)
        return (
            f"<p>First: {escape(self.first)}. Second: {escape(self.second)}.</p>{said}{self.frame.to_html(index=False)}"
        )


def paired_share(first: pandas.Series[int], second: pandas.Series[int]) -> tuple[float, float, Difference, int]:
    """Return two shares of the same images and their difference, by McNemar's exact test (a sign-flip over seeds).

    Args:
        first: 0 or 1 by seed and image.
        second: the same; only what both have counts.
    """
    both = first.to_frame("first").join(second.to_frame("second"), how="inner")
    if both.empty:
        nothing = float("nan")
        return nothing, nothing, Difference(nothing, nothing, nothing, nothing), 0
    per_image = (both["first"] - both["second"]).groupby(level="index")
    apart = per_image.sum().to_numpy(np.int64)
    a, b, images = float(both["first"].mean()), float(both["second"].mean()), len(apart)
    if len(both) == images:
        found = paired_difference(int((apart > 0).sum()), int((apart < 0).sum()), images)
    else:
        # Several seeds of one image are one observation.
        found = mean_interval(per_image.mean().to_numpy(np.float64), _SEED)
    return a, b, Difference(a - b, found.low, found.high, sign_flip_p(apart)), images
