"""Why a detector's numbers are missing: from the fields of what failed, never from its text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from aftershock.reports.read.run_directory import Row, Run
from aftershock.reports.site.reasons import missing_reasons


def failure(kind: str, part: str, reason: str = "why", model: str = "cnn", **more: Any) -> dict[str, Any]:
    return {"cell": f"digits/{model}/0/{kind}/{part}", "status": "failed", "reason": reason, "model": model,
            "kind": kind, "part": part, **more}  # fmt: skip


def reasons(*failures: Any, metrics: tuple[Row, ...] = (), **facts: Any) -> dict[str, str]:
    return missing_reasons([Run(Path("run"), {"failures": list(failures), **facts})], "cnn", metrics)


def metric(detector: str, auroc: float | None, reason: str = "") -> Row:
    return Row({"detector": detector, "reason": reason}, {"auroc": auroc})


@pytest.mark.parametrize("kind", ["fit", "score", "view", "gradient"])
def test_a_failed_cell_is_about_its_own_detector_alone(kind: str) -> None:
    """One label holds another, and a source, a view or a model may be called like a detector."""
    found = reasons(failure(kind, "bits on pgd[eps=8/255]", source="none/bits", extra="pgd", dataset="fit"))
    assert found == {"bits on pgd[eps=8/255]": "failed: why"}


def test_other_models_and_other_parts_of_that_name_give_no_reason() -> None:
    other = failure("fit", "cnn", model="mlp")
    assert reasons(other, failure("perturb", "pgd"), failure("analysis", "bits"), failure("trace", "none")) == {}


def test_an_attack_on_a_detector_is_a_reason_for_this_one() -> None:
    resolved = {"perturbations": [{"label": "adaptive@bits-2", "against": "bits-2"}, {"label": "pgd", "against": ""}]}
    found = reasons(failure("perturb", "adaptive@bits-2"), failure("perturb", "pgd"), resolved=resolved)
    assert found == {"bits-2": "failed: why"}


def test_the_first_failure_is_the_reason_and_tables_give_those_that_no_cell_gives() -> None:
    metrics = (metric("a", None, "too few"), metric("b", None, "too few"), metric("c", 0.5), metric("c", None, "no"))
    found = reasons(failure("fit", "a", "first"), failure("score", "a", "second"), metrics=metrics)
    assert found == {"a": "failed: first", "b": "too few"}


@pytest.mark.parametrize("odd", [None, "text", {}, {"cell": "digits/cnn/0/fit/bits", "reason": "x"}, {"model": "cnn"}])
def test_failures_without_fields_say_nothing(odd: Any) -> None:
    """Older runs and damaged ones: their failures are listed on the page, as they stand."""
    assert reasons(odd, resolved=odd) == {}
