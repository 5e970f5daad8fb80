"""Everything that scores a trace. Start with :class:`Detector`; register your own with :func:`register`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..harness.tracing.traces import LiveTrace, Need, Traces
from .base.detector import Detector, DetectorInfo, InputGradient, View, register

if TYPE_CHECKING:
    from ..harness.conformance import check_detector, parametrize_with_detector_checks
    from ..harness.run.guard import Guard

_LATER = {
    "Guard": "guard",
    "check_detector": "conformance",
    "parametrize_with_detector_checks": "conformance",
}

__all__ = [
    "Detector",
    "DetectorInfo",
    "Guard",
    "InputGradient",
    "LiveTrace",
    "Need",
    "Traces",
    "View",
    "check_detector",
    "parametrize_with_detector_checks",
    "register",
]


def __getattr__(name: str) -> Any:
    if name in _LATER:
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
