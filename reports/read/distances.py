"""Published distances: what ``radii.csv`` says of each row, as comparisons of rows need it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...harness.evaluation.radii import Distances
from .run_directory import Row

# Distances of all rows that are compared: images, times seeds, times detectors.
_MOST_DISTANCES = 10**7


def published_distances(radii: Sequence[Row], detectors: Sequence[str]) -> list[Distances | None]:
    """Return the published distances of each detector, of the same images and seeds in the same order.

    None where a file holds more than a run can have measured.
    """
    own: dict[str, list[Row]] = {}
    for row in radii:
        own.setdefault(row.text("detector"), []).append(row)
    wanted = [r for label in dict.fromkeys(detectors) for r in own.get(label, ()) if r.number("index") is not None]
    images = {image: i for i, image in enumerate(dict.fromkeys(r.number("index") for r in wanted))}
    seeds = {seed: i for i, seed in enumerate(dict.fromkeys(r.text("seed") for r in wanted))}
    if len(detectors) * len(images) * len(seeds) > _MOST_DISTANCES:
        return [None] * len(detectors)
    found: list[Distances | None] = []
    for detector in detectors:
        r0, rd = (np.full((len(images), len(seeds)), np.nan) for _ in range(2))
        for row in own.get(detector, ()):
            if row.number("index") is None:
                continue
            at = images[row.number("index")], seeds[row.text("seed")]
            for values, name in ((r0, "r0"), (rd, "rd")):
                distance = row.number(name)
                values[at] = np.inf if distance is None else distance
        reach = next((value for r in own.get(detector, ()) if (value := r.number("reach")) is not None), None)
        found.append(None if reach is None else Distances(r0, rd, reach))
    return found
