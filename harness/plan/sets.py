"""The three disjoint sets of source images: which positions of which split they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..core.errors import UsageError
from ..core.seeds import derive_seed
from ..data.types import Dataset
from ..suite.resolved import Suite
from .cells import SetName

DECIDES_NO_NUMBER = True


@dataclass(frozen=True, eq=False)
class Sets:
    """The three disjoint sets of source images: positions in the train split (fit) and in the test split."""

    fit: torch.Tensor
    calibrate: torch.Tensor
    evaluate: torch.Tensor

    def of(self, name: SetName) -> torch.Tensor:
        """Return the positions of a set, int64."""
        found: torch.Tensor = getattr(self, name)
        return found


def make_sets(suite: Suite, dataset: Dataset, limit: int | None) -> Sets:
    """Choose the sets: a fixed permutation per split; evaluate from its start, calibrate from its end.

    A data set may say itself which of its test images are for calibration (``Dataset.calibrate_from``).

    A smaller set is a prefix of a larger one, so results of the same images are reused.

    Raises:
        UsageError: if a split is too small.
    """
    data = suite.data
    sizes = {n: min(getattr(data, n), limit or getattr(data, n)) for n in ("fit", "calibrate", "evaluate")}
    for wrong in data.excess(len(dataset.train), len(dataset.test)).values():
        raise UsageError(f"{wrong}.")

    def order(split: str, count: int) -> torch.Tensor:
        chosen = torch.Generator().manual_seed(derive_seed(0, "split", data.name, split))
        return torch.randperm(count, generator=chosen)

    evaluate = order("test", len(dataset.test))
    calibrate = evaluate.flip(0)
    if dataset.calibrate_from is not None:
        evaluate = evaluate[evaluate < dataset.calibrate_from]
        calibrate = calibrate[calibrate >= dataset.calibrate_from]
        for name, there in (("evaluate", len(evaluate)), ("calibrate", len(calibrate))):
            if sizes[name] > there:
                raise UsageError(f"{name} = {sizes[name]}, but {data.name} sets {there} test images aside for that.")
    return Sets(
        fit=order("train", len(dataset.train))[: sizes["fit"]],
        calibrate=calibrate[: sizes["calibrate"]],
        evaluate=evaluate[: sizes["evaluate"]],
    )
