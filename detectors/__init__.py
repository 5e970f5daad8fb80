"""Everything that scores a trace. Start with :class:`Detector`; register your own with :func:`register`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..harness.tracing.extra_passes import Ascent, InputGradient, View
    from ..harness.tracing.traces import LiveTrace, Need, Traces
    from .base.detector import Detector, DetectorInfo, register

__all__ = ["Ascent", "Detector", "DetectorInfo", "InputGradient", "LiveTrace", "Need", "Traces", "View", "register"]

_HOMES = {
    **dict.fromkeys(("LiveTrace", "Need", "Traces"), "..harness.tracing.traces"),
    **dict.fromkeys(("Ascent", "InputGradient", "View"), "..harness.tracing.extra_passes"),
}


def __getattr__(name: str) -> Any:
    # On first use: nothing here may import torch for those who only want to know the names of detectors.
    if name in __all__:
        return getattr(import_module(_HOMES.get(name, ".base.detector"), __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
