"""What an analysis is: it measures what a model's codes are like, and reports what it measured.

An analysis answers a question about a model's codes and says how sure it is: controls (an untrained network, noise of
the same size, a permutation null) belong to it. What it measures is a cell, which is computed once and stored; what it
reports is made from that whenever tables and pages are written.
"""

from __future__ import annotations

import typing
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar, Generic, TypeVar

from ..harness.core.errors import UsageError
from ..harness.core.ranges import Ranged
from ..harness.core.registry import ANALYSES
from ..harness.tracing.traces import Need
from .common.inputs import AnalysisInput, ImageSet, PerturbedSet, Untrained
from .findings import Findings

__all__ = [
    "Analysis",
    "AnalysisInfo",
    "AnalysisInput",
    "ImageSet",
    "PerturbedSet",
    "Untrained",
    "measured_class",
    "register",
    "returned_class",
]

Measured = TypeVar("Measured")


@dataclass(frozen=True)
class AnalysisInfo:
    """What people should know about an analysis.

    Attributes:
        title: a short human name.
        paper: authors, year, title and an identifier.
        summary: one sentence for ``aftershock list``.
    """

    title: str
    paper: str = ""
    summary: str = ""


class Analysis(Ranged, ABC, Generic[Measured]):
    """Base of every analysis; the constructor's parameters are what a suite may set, in their annotations' ranges.

    Parameters that bound the work (images, taps, steps) have defaults for real data; small ones make it run in
    seconds.
    """

    info: ClassVar[AnalysisInfo]
    reads_perturbed: ClassVar[bool] = False

    @property
    def needs(self) -> tuple[Need, ...]:
        """The codes that the traces shall hold; logits are always there."""
        return ()

    @abstractmethod
    def measure(self, given: AnalysisInput) -> Measured:
        """Do the work.

        Returns:
            A frozen dataclass of the analysis' own, named in the annotation of this method: tensors, numbers, texts,
            tuples and mappings of these, and frozen dataclasses again
            (:func:`aftershock.harness.core.state.encode`). It is stored without a pickle.

        Raises:
            UsageError: where the question makes no sense for this model or these images, with the reason.
        """

    @abstractmethod
    def report(self, measured: Measured) -> Findings:
        """Put what was measured into claims, figures and tables: cheap, for it is never stored."""


def measured_class(analysis: Analysis[Any]) -> type[Any]:
    """The class of what an analysis measures, by the annotation of its ``measure``; see :func:`returned_class`."""
    return returned_class(type(analysis).measure)


def returned_class(method: Callable[..., Any]) -> type[Any]:
    """The class of what a method gives to be stored, by its annotation.

    Raises:
        UsageError: where it names no dataclass.
    """
    try:
        found = typing.get_type_hints(method).get("return")
    except NameError as error:
        raise UsageError(f"The annotation of {method.__qualname__} cannot be read: {error}.") from error
    if not (isinstance(found, type) and is_dataclass(found)):
        raise UsageError(f"{method.__qualname__} does not say what it returns: annotate it with a frozen dataclass.")
    return found


register = ANALYSES.register
