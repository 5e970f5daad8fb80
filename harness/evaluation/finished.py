"""The finished cells of a run, as tables read them: which there are, and why the others are not."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..data.types import Dataset
from ..plan import ModelPlan, Plan
from ..plan.cells import SetName
from ..plan.summary import Summary
from ..store.run_directory import Store


@dataclass(frozen=True, eq=False)
class Finished:
    """What was planned and what became of it.

    Attributes:
        plan: what was planned.
        store: what was computed.
        summary: what failed, with reasons.
        dataset: for the true classes.
    """

    plan: Plan
    store: Store
    summary: Summary
    dataset: Dataset

    def reason(self, *keys: str) -> str:
        """Return why the first of these cells that has no result has none; empty where all have one."""
        for key in keys:
            reason = self.summary.failed.get(key) or self.summary.skipped.get(key)
            if reason:
                return reason
            if key not in self.summary.done:
                return "not computed in this run"
        return ""

    def without_clean(self, model_plan: ModelPlan) -> str:
        """Return why the clean passes of the measured images are missing; empty where they are there."""
        measured: tuple[SetName, ...] = ("calibrate", "evaluate")
        return self.reason(*(t.logits for name in measured for t in model_plan.clean[name]))

    def labels(self, name: SetName) -> torch.Tensor:
        """Return the true classes of a set, int64 (n,)."""
        return self.dataset.test.labels(self.plan.sets.of(name).tolist())

    def predictions(self, model_plan: ModelPlan, name: SetName) -> torch.Tensor:
        """Return the model's classes of a set's clean images, int64 (n,)."""
        keys = [t.logits for t in model_plan.clean[name]]
        return torch.cat([self.store.tensor(key, "logits").argmax(1) for key in keys])
