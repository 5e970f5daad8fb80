"""Everything that scores a trace. Start with :class:`Detector`; register your own with :func:`register`."""

from ..harness.trace import LiveTrace, Need, Traces
from .base import Detector, DetectorInfo, InputGradient, View, register

__all__ = ["Detector", "DetectorInfo", "InputGradient", "LiveTrace", "Need", "Traces", "View", "register"]
