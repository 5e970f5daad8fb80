"""Every way from x to x'. Start with :class:`Perturbation`; register your own with :func:`register`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .base.from_function import register_perturbation as register
    from .base.perturbation import CountingModel, Perturbation, PerturbationInfo

__all__ = ["CountingModel", "Perturbation", "PerturbationInfo", "register"]


def __getattr__(name: str) -> Any:
    # On first use: nothing here may import torch for those who only want to know the names of attacks.
    if name == "register":
        return import_module(".base.from_function", __name__).register_perturbation
    if name in __all__:
        return getattr(import_module(".base.perturbation", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
