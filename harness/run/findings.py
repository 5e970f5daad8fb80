"""Reports of analyses: made from what their cells hold whenever tables and pages are written."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..core.errors import AftershockError

if TYPE_CHECKING:
    from torch import Tensor

    from ...analyses.base import Analysis
    from ...analyses.findings import Findings

DECIDES_NO_NUMBER = True


def reported(analysis: Analysis[Any], tensors: Mapping[str, Tensor], value: Any) -> Findings:
    """Return what an analysis says of the numbers that one of its cells holds.

    Args:
        analysis: made with the cell's parameters.
        tensors: of the cell.
        value: the rest of what it holds (:func:`aftershock.harness.core.state.encode`).

    Raises:
        AftershockError: if it gives anything but findings.
        UsageError: if the cell does not hold what this analysis measures.
    """
    from ...analyses.base import measured_class
    from ...analyses.findings import Findings
    from ..core.process_state import guarded_part
    from ..core.state import decode
    from .workers.standins.analyses import PluginAnalysis

    if isinstance(analysis, PluginAnalysis):
        return analysis.report_stored(tensors, value)
    measured = decode(measured_class(analysis), tensors, value)
    with guarded_part(analysis):
        found = analysis.report(measured)
    if not isinstance(found, Findings):
        raise AftershockError(f"report() returned {type(found).__name__} instead of Findings")
    return found
