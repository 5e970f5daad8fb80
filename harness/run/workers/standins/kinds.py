"""What stands in for the parts of plugins, by the name of their registry."""

from __future__ import annotations

from .....analyses.base import AnalysisInfo
from .....attacks.base.perturbation import PerturbationInfo
from .....detectors.base.detector import DetectorInfo
from .analyses import PluginAnalysis
from .datasets import plugin_source
from .detectors import PluginDetector
from .part import Kind
from .perturbations import PluginPerturbation

KINDS = {
    "detectors": Kind(PluginDetector, DetectorInfo),
    "perturbations": Kind(PluginPerturbation, PerturbationInfo),
    "datasets": Kind(plugin_source, None),
    "analyses": Kind(PluginAnalysis, AnalysisInfo),
}
