"""Aftershock: what happens inside a network when its input is perturbed, and which detector notices.

The front door: the version and the public API. Everything is imported on first use, so that
``import aftershock`` stays fast and pytest may execute this file twice without harm.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .harness.conformance import check_detector, parametrize_with_detector_checks
    from .harness.run.api import Run, run
    from .harness.run.guard import Guard
    from .harness.run.load import load_detector, load_model
    from .harness.suite.resolve import load_suite
    from .harness.suite.resolved import Suite

__version__ = "0.1.0"

_PUBLIC = {
    "run": "aftershock.harness.run.api",
    "Run": "aftershock.harness.run.api",
    "Suite": "aftershock.harness.suite.resolved",
    "load_detector": "aftershock.harness.run.load",
    "load_model": "aftershock.harness.run.load",
    "load_suite": "aftershock.harness.suite.resolve",
    "Guard": "aftershock.harness.run.guard",
    "check_detector": "aftershock.harness.conformance",
    "parametrize_with_detector_checks": "aftershock.harness.conformance",
}

__all__ = [
    "Guard",
    "Run",
    "Suite",
    "__version__",
    "check_detector",
    "load_detector",
    "load_model",
    "load_suite",
    "parametrize_with_detector_checks",
    "run",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        # Whoever looks up a part may have to open plugins.
        import_module("aftershock.harness.run")
        return getattr(import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'aftershock' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
