"""Every way from x to x'. Start with :class:`Perturbation`; register your own with :func:`register`."""

from .base.perturbation import CountingModel, Perturbation, PerturbationInfo, register

__all__ = ["CountingModel", "Perturbation", "PerturbationInfo", "register"]
