"""What ``run.json`` records of a run."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ..core.content_keys import PROTOCOL_VERSION, versions
from ..core.formats import RUN_SCHEMA
from ..evaluation.costs import detector_costs
from ..evaluation.rankability import floor
from ..plan import ModelPlan
from .computing import Computed
from .opening import Opened
from .options import Options

PACKAGES = (
    "aftershock", "torch", "torchvision", "torchattacks", "foolbox", "numpy", "scipy", "scikit-learn",
    "pandas", "safetensors", "plotly",
)  # fmt: skip


# The status of a run whose tables were written while it was going on.
RUNNING = "running"


def run_facts(
    opened: Opened, computed: Computed, options: Options, notes: Sequence[str], started: datetime, seconds: float
) -> dict[str, Any]:
    """Return what is known of a run before its tables are made.

    Args:
        opened: the run as it was planned.
        computed: what became of its cells.
        options: of the call.
        notes: what a person was told of the plan and the parts.
        started: when the call began.
        seconds: how long it took.
    """
    finished = computed.finished
    plan, summary = finished.plan, finished.summary
    models: list[dict[str, Any]] = []
    texts = {"notes": dict[str, None](), "warnings": dict[str, None]()}
    for model_plan in plan.models:
        if model_plan.key in summary.done:
            values = finished.store.values(model_plan.key)
            for kind, found in texts.items():
                found.update(dict.fromkeys(f"{model_plan.part.label}: {text}" for text in values.get(kind, ())))
            models.append(
                {
                    "dataset": opened.suite.data.name,
                    "model": model_plan.part.label,
                    "seed": model_plan.seed,
                    "clean_accuracy": values["clean_accuracy"],
                    "n_test": values["test_images"],
                    "source": values["source"],
                }
            )
    return {
        "schema": RUN_SCHEMA,
        "name": opened.suite.name,
        "suite": dict(opened.suite.raw),
        "resolved": opened.suite.resolved(),
        "limit": options.limit,
        "only": options.only,
        "protocol": PROTOCOL_VERSION,
        "floor": floor(),
        "protocol_digest": " ".join(dict.fromkeys(p.digest for p in plan.protocols.values())),
        # In full: whoever has it can make the digests again.
        "protocols": {label: p.as_json() for label, p in plan.protocols.items()},
        "digests": {"data": opened.data_digest, "weights": opened.weights_digests},
        "seeds": list(opened.suite.seeds),
        "sets": {"evaluate": plan.sets.evaluate.tolist()},
        # Whoever has it can make the shadow images again; no part is told before.
        "secret": opened.secret,
        "versions": {"python": platform.python_version(), **versions(*PACKAGES)},
        "hardware": _hardware(opened.device),
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
        "status": "failed" if summary.failed else ("incomplete" if options.only else "done"),
        "cells": {"done": len(summary.done), "failed": len(summary.failed), "skipped": len(summary.skipped)},
        "failures": [
            {"cell": str(name), "status": status, "reason": reason, **name.as_json()}
            for status, found in (("failed", summary.failed), ("skipped", summary.skipped))
            for name, reason in sorted(((plan.cells[k].name, r) for k, r in found.items()), key=lambda f: str(f[0]))
        ],
        "results": [_result(model_plan) for model_plan in plan.models],
        "models": models,
        "warnings": [*opened.warnings, *texts["warnings"]],
        "notes": [*notes, *texts["notes"]],
        "classes": list(opened.dataset.classes),
        "costs": detector_costs(finished),
    }


def _result(model_plan: ModelPlan) -> dict[str, Any]:
    """Which cells hold a model, its detectors and the perturbed images.

    Cells with one content are one cell, with the name of the first: so a name does not find it.
    """
    return {
        "model": model_plan.part.label,
        "seed": model_plan.seed,
        "key": model_plan.key,
        "detectors": {
            label: {"fit": key, "calibrate": model_plan.scores[label, "calibrate"]}
            for label, key in model_plan.fits.items()
        },
        "perturbations": {
            label: {"images": list(keys), "controls": list(model_plan.controls.get(label, ()))}
            for (label, chosen), keys in model_plan.perturbs.items()
            if chosen == "evaluate"
        },
    }


def _hardware(device: torch.device) -> dict[str, Any]:
    try:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):
        memory = None
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gb": None if memory is None else round(memory, 1),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda" and torch.cuda.is_available()
        else device.type,
        "platform": platform.platform(),
    }


def _processor() -> str:
    """Return the processor's name where the system tells it, else its architecture."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
