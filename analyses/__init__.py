"""Studies of a model's codes that end in tables and pictures, one module per system.

Write your own: derive it from :class:`Analysis` and register it with :func:`register`.
"""

from .base import Analysis, AnalysisInfo, ImageSet, Material, PerturbedSet, register
from .findings import Findings, HeatMaps, Lines, Panel, Pictures, Points, Series, Table

__all__ = [
    "Analysis",
    "AnalysisInfo",
    "Findings",
    "HeatMaps",
    "ImageSet",
    "Lines",
    "Material",
    "Panel",
    "PerturbedSet",
    "Pictures",
    "Points",
    "Series",
    "Table",
    "register",
]
