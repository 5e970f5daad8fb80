"""Aftershock: what happens inside a network when its input is perturbed, and which detector notices.

The front door: the version and the public API. Everything is imported on first use, so that
``import aftershock`` stays fast and pytest may execute this file twice without harm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .analyses.base import Analysis, AnalysisInfo
    from .analyses.common.inputs import AnalysisInput, ImageSet, PerturbedSet
    from .analyses.findings import Claim, Findings, HeatMaps, Lines, Panel, Pictures, Points, Series, Table
    from .attacks.base.from_function import register_perturbation
    from .attacks.base.perturbation import CountingModel, Perturbation, PerturbationInfo
    from .detectors.base.detector import Detector, DetectorInfo
    from .harness.conformance import (
        check_detector,
        check_part,
        parametrize_with_checks,
        parametrize_with_detector_checks,
    )
    from .harness.core.errors import AftershockError, UsageError
    from .harness.core.registry import register_analysis, register_dataset, register_detector, register_model
    from .harness.core.seeds import Draws
    from .harness.data.types import Dataset, DataSource, ImageSplit, channel_statistics
    from .harness.run.api import run
    from .harness.run.evaluate import evaluate
    from .harness.run.guard import Guard
    from .harness.run.hooks.base import Hook
    from .harness.run.images import PerturbedImages
    from .harness.run.load import load_detector, load_model
    from .harness.run.result import Run, load
    from .harness.suite.resolve import load_suite
    from .harness.suite.resolved import Suite
    from .harness.tracing.extra_passes import Ascent, InputGradient, View
    from .harness.tracing.traces import LiveTrace, Need, Traces

__version__ = "0.1.0"

# Where each public name is defined.
_HOMES = {
    "analyses.base": (
        "Analysis",
        "AnalysisInfo",
    ),
    "analyses.common.inputs": (
        "AnalysisInput",
        "ImageSet",
        "PerturbedSet",
    ),
    "analyses.findings": (
        "Claim",
        "Findings",
        "HeatMaps",
        "Lines",
        "Panel",
        "Pictures",
        "Points",
        "Series",
        "Table",
    ),
    "attacks.base.from_function": ("register_perturbation",),
    "attacks.base.perturbation": (
        "CountingModel",
        "Perturbation",
        "PerturbationInfo",
    ),
    "detectors.base.detector": (
        "Detector",
        "DetectorInfo",
    ),
    "harness.conformance": (
        "check_detector",
        "check_part",
        "parametrize_with_checks",
        "parametrize_with_detector_checks",
    ),
    "harness.core.errors": (
        "AftershockError",
        "UsageError",
    ),
    "harness.core.registry": (
        "register_analysis",
        "register_dataset",
        "register_detector",
        "register_model",
    ),
    "harness.core.seeds": ("Draws",),
    "harness.data.types": (
        "Dataset",
        "DataSource",
        "ImageSplit",
        "channel_statistics",
    ),
    "harness.run.api": ("run",),
    "harness.run.evaluate": ("evaluate",),
    "harness.run.guard": ("Guard",),
    "harness.run.hooks.base": ("Hook",),
    "harness.run.load": (
        "load_detector",
        "load_model",
    ),
    "harness.run.images": ("PerturbedImages",),
    "harness.run.result": (
        "Run",
        "load",
    ),
    "harness.suite.resolve": ("load_suite",),
    "harness.suite.resolved": ("Suite",),
    "harness.tracing.extra_passes": (
        "Ascent",
        "InputGradient",
        "View",
    ),
    "harness.tracing.traces": (
        "LiveTrace",
        "Need",
        "Traces",
    ),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "AftershockError",
    "Analysis",
    "AnalysisInfo",
    "AnalysisInput",
    "Ascent",
    "Claim",
    "CountingModel",
    "DataSource",
    "Dataset",
    "Detector",
    "DetectorInfo",
    "Draws",
    "Findings",
    "Guard",
    "HeatMaps",
    "Hook",
    "ImageSet",
    "ImageSplit",
    "InputGradient",
    "Lines",
    "LiveTrace",
    "Need",
    "Panel",
    "Perturbation",
    "PerturbationInfo",
    "PerturbedImages",
    "PerturbedSet",
    "Pictures",
    "Points",
    "Run",
    "Series",
    "Suite",
    "Table",
    "Traces",
    "UsageError",
    "View",
    "__version__",
    "channel_statistics",
    "check_detector",
    "check_part",
    "evaluate",
    "load",
    "load_detector",
    "load_model",
    "load_suite",
    "parametrize_with_checks",
    "parametrize_with_detector_checks",
    "register_analysis",
    "register_dataset",
    "register_detector",
    "register_model",
    "register_perturbation",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        if _HOME_OF[name].startswith("harness.suite"):
            # A suite may name parts of plugins, and runs open them.
            import_module("aftershock.harness.run")
        return getattr(import_module(f"aftershock.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'aftershock' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
