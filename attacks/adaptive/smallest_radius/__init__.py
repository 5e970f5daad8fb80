"""How far an image has to be moved so that it fools the model and passes a detector."""

from .attack import Known, SmallestRadius
from .no_detector import NoDetector

__all__ = ["Known", "NoDetector", "SmallestRadius"]
