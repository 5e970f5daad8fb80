"""The stand-in for a plugin's analysis: its whole cell is computed in its process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from .....analyses.base import Analysis, AnalysisInfo, AnalysisInput
from .....analyses.findings import Findings
from ....core.errors import AftershockError
from ....tracing.traces import Need
from ...work import Output
from ..channel import Message
from ..packing import unpack_needs
from .part import Instance, PluginPart

if TYPE_CHECKING:
    from ....plan.cells import AnalysisJob
    from ...context import Context


class PluginAnalysis(Analysis[Any]):
    """Asks a plugin's process for an analysis.

    Args:
        part: the plugin's class.
        params: of its constructor.
    """

    info: ClassVar[AnalysisInfo] = AnalysisInfo(title="a plugin's analysis")

    def __init__(self, part: PluginPart, **params: Any) -> None:
        self._part = part
        self._instance = Instance(part, "analyses", params)
        self.reads_perturbed = part.reads_perturbed  # type: ignore[misc]  # a stand-in is one class for all parts

    def __getattribute__(self, name: str) -> Any:
        # The class has an `info` of its own, since every analysis has one.
        if name == "info":
            return object.__getattribute__(self, "_part").info
        return object.__getattribute__(self, name)

    @property
    def needs(self) -> tuple[Need, ...]:
        return unpack_needs(self._instance.facts["needs"])

    def measure(self, given: AnalysisInput) -> Any:
        """Never called: what an analysis is given cannot be sent, so :meth:`compute` does the whole cell."""
        raise AftershockError("a plugin's analysis is computed in its own process")

    def report(self, measured: Any) -> Findings:
        """Never called: only the plugin's process knows the class; see :meth:`report_stored`."""
        raise AftershockError("a plugin's analysis is reported in its own process")

    def report_stored(self, tensors: Mapping[str, torch.Tensor], value: Any) -> Findings:
        """Return what the plugin says of what a cell holds."""
        found = self._instance.ask("report", {"value": value}, dict(tensors))
        return Findings.read({name: found.tensor(name) for name in found.tensors}, found.values["findings"])

    def compute(
        self, context: Context | None, key: str, job: AnalysisJob, on_progress: Callable[[float], None]
    ) -> Output:
        """Return the output of its cell."""
        if context is None:
            raise AftershockError("a plugin's analysis needs a run directory")

        def told(values: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Message:
            on_progress(float(values["share"]))
            return Message({})

        # From the owner to the process only: what comes back is read, never unpickled.
        limit = context.suite.limits.analysis_seconds
        task = torch.from_numpy(np.frombuffer(pickle.dumps((context, job)), dtype=np.uint8).copy())
        found = self._instance.ask(
            "measure", {"key": key}, {"task": task}, cpu=limit, limit="analysis_seconds", calls={"progress": told}
        )
        return Output(key, {name: found.tensor(name) for name in found.tensors}, found.values["output"])
