"""The kinds of parts that a plugin's process answers for, by the name of their registry."""

from __future__ import annotations

from . import analyses, datasets, detectors, perturbations

KINDS = {
    "detectors": detectors.KIND,
    "perturbations": perturbations.KIND,
    "datasets": datasets.KIND,
    "analyses": analyses.KIND,
}
