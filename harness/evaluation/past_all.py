"""One image past all detectors: how many images of a model there are that pass every one of them."""

from __future__ import annotations

from typing import Any

from ..plan import ModelPlan
from ..plan.cells import PastAllJob
from ..statistics.intervals import proportion
from .finished import Finished

Row = dict[str, Any]
PASSES, FLAGS = "passes-all", "flagged"


def past_all_rows(found: Finished, model_plan: ModelPlan) -> list[Row]:
    """Return the rows of ``past_all.csv`` for one model and seed; none where no search was planned.

    - ``measure`` ``passes-all``: of the images that the model gets right and each of ``detectors`` detectors lets pass,
      the share for which one image within the budget was found that fools the model and passes all of them.
    - ``flagged``: of the images found, the share that ``detector``, which combines others, flags.

    ``low`` and ``high`` are Wilson's interval at the thresholds as they are.
    """
    key, threat = model_plan.past_all, found.plan.suite.threat
    if not key:
        return []
    job = found.plan.cells[key].job
    assert isinstance(job, PastAllJob)  # noqa: S101 - for the type
    head = {
        "dataset": found.plan.suite.data.name, "model": model_plan.part.label, "seed": model_plan.seed,
        "norm": threat.norm, "eps": threat.eps, "detectors": len(job.opponents),
    }  # fmt: skip
    nothing: Row = dict.fromkeys(("n", "share", "low", "high"))
    if reason := found.reason(key):
        return [{**head, "measure": PASSES, "detector": "", **nothing, "reason": reason}]
    made = found.store.load(key)
    past = made["success"] & made["passed"].all(0)
    rows = [{**head, "measure": PASSES, "detector": "", **_share(int(past.sum()), len(past)), "reason": ""}]
    for judge, passed in zip(job.judges, made["judged"], strict=True):
        flagged = int((past & ~passed).sum())
        about = _share(flagged, int(past.sum()))
        rows.append({**head, "measure": FLAGS, "detector": judge.part.label, **about, "reason": ""})
    return rows


def _share(count: int, n: int) -> Row:
    found = proportion(count, n)
    return {"n": n, "share": found.value, "low": found.low, "high": found.high}
