"""Studies of a model's codes that end in tables and pictures, one package per system.

Write your own: derive it from :class:`Analysis` and register it with :func:`register`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base import Analysis, AnalysisInfo, AnalysisInput, ImageSet, PerturbedSet, register
    from .findings import Claim, Findings, HeatMaps, Lines, Panel, Pictures, Points, Series, Table

_CONTRACT = ("Analysis", "AnalysisInfo", "AnalysisInput", "ImageSet", "PerturbedSet", "register")
__all__ = [
    "Analysis",
    "AnalysisInfo",
    "AnalysisInput",
    "Claim",
    "Findings",
    "HeatMaps",
    "ImageSet",
    "Lines",
    "Panel",
    "PerturbedSet",
    "Pictures",
    "Points",
    "Series",
    "Table",
    "register",
]


def __getattr__(name: str) -> Any:
    # On first use: nothing here may import torch for those who only want to know the names of analyses.
    if name in __all__:
        return getattr(import_module(".base" if name in _CONTRACT else ".findings", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
