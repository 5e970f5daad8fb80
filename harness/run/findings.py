"""Reports of analyses: made from what their cells hold whenever tables and pages are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import AftershockError

if TYPE_CHECKING:
    from torch import Tensor

    from ...analyses.base import Analysis
    from ...analyses.findings import Findings
    from ..evaluation.problems import Problems
    from ..plan import Plan
    from ..plan.summary import Summary
    from ..store.run_directory import Store
    from ..suite.resolved import Suite

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


def write_all_findings(
    suite: Suite, plan: Plan, store: Store, summary: Summary, lost: Mapping[str, Sequence[str]], problems: Problems,
    out: Path,
) -> list[Path]:  # fmt: skip
    """Write what the analyses found as files that people open.

    Args:
        suite: whose analyses they are.
        plan: where their cells are.
        store: holds them.
        summary: which of them are done.
        lost: perturbations that failed, by key of the model.
        problems: collects what cannot be reported.
        out: the run directory.

    Returns:
        The folders of all results.
    """
    from ...reports.findings.files import findings_folder, write_findings
    from ..core.registry import ANALYSES

    kept = []
    for subject in plan.subjects:
        for part in suite.analyses:
            key = subject.analyses[part.label]
            if key not in summary.done:
                continue
            with problems.of(f"findings of {plan.cells[key].name}", writes=True):
                factory = ANALYSES.get(part.name)
                info, analysis = factory.info, factory(**part.params)
                head = {
                    "dataset": suite.data.name, "model": subject.part.label, "seed": subject.seed,
                    "label": part.label, "name": part.name, "title": str(info.title), "paper": str(info.paper),
                    "parameters": dict(part.params),
                }  # fmt: skip
                if analysis.reads_perturbed and lost.get(subject.key):
                    head["without"] = list(lost[subject.key])
                folder = findings_folder(out, head)
                write_findings(folder, head, reported(analysis, store.load(key), store.values(key)["measured"]))
                kept.append(folder)
    return kept
