"""A run's own facts for the page: what was run, when, on which machine, with which versions."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import datetime

from ..read.run_directory import Run, listed, mapping, objects, quantity, words
from ..threats import budget
from .leaderboard import percent

STATUS = {
    "done": ("Complete", "good"),
    "incomplete": ("Incomplete", "warn"),
    "running": ("Not over yet", "warn"),
    "failed": ("Cells failed", "bad"),
}

SETS = ("fit", "calibrate", "evaluate")
MACHINE = {
    "cpu": "CPU",
    "cores": "Cores",
    "threads": "Threads",
    "memory_gb": "Memory (GB)",
    "device": "Device",
    "platform": "Platform",
}


def labels(run: Run, part: str) -> list[str]:
    """Return the labels of a kind of parts (``detectors``), in the suite's order."""
    return [t for entry in objects(run.suite.get(part)) if (t := words(entry.get("label")) or words(entry.get("name")))]


def run_page(run: Run) -> dict[str, object]:
    """Return what the template shows of one run."""
    facts, suite = run.facts, run.suite
    data, threat, hardware = mapping(suite.get("data")), mapping(suite.get("threat")), mapping(facts.get("hardware"))
    cells = mapping(facts.get("cells"))
    status, tone = STATUS.get(words(facts.get("status")), (words(facts.get("status")) or "Unknown", "warn"))
    seeds = listed(facts.get("seeds")) or listed(suite.get("seeds"))
    counted = [f"{words(cells[k])} {k}" for k in ("done", "failed", "skipped") if words(cells.get(k)) not in ("", "0")]
    parts = [("Limited to", f"{words(facts.get('limit'))} images" if words(facts.get("limit")) else ""),
             ("Only cells", words(facts.get("only"))),
             ("Images", ", ".join(f"{_size(data[k], facts)} {k}" for k in SETS if k in data)),
             ("Seeds", ", ".join(words(s) for s in seeds if words(s))),
             ("Cells", ", ".join(counted)),
             ("Last call took", _duration(quantity(facts.get("seconds"))))]  # fmt: skip
    machine = [(MACHINE.get(k, words(k)), words(v)) for k, v in hardware.items() if words(v)]
    models = [(" / ".join(t for t in (words(m.get("dataset")), words(m.get("model"))) if t), words(m.get("seed")),
               percent(quantity(m.get("clean_accuracy"))), words(m.get("n_test")), words(m.get("source")))
              for m in objects(facts.get("models"))]  # fmt: skip
    return {
        "name": run.name,
        "title": run_title(run),
        "data": words(data.get("name")) or ", ".join(dict.fromkeys(r.text("dataset") for r in run.rows("leaderboard"))),
        "threat": budget(words(threat.get("norm")), words(threat.get("eps"))) if threat else "",
        "date": _date(words(facts.get("finished")) or words(facts.get("started"))),
        "status": status,
        "tone": tone,
        "parts": [(k, v) for k, v in parts if v],
        "models": models,
        "counts": {kind: len(labels(run, kind)) for kind in ("models", "perturbations", "detectors")},
        "machine": machine,
        "versions": [(words(k), words(v)) for k, v in mapping(facts.get("versions")).items() if words(v)],
        "digest": run.digest,
        "schema": words(facts.get("schema")),
        "command": f"aftershock run {shlex.quote(run.name)}",
        "again": "aftershock report RUN --out DIR",
    }


def run_title(run: Run) -> str:
    """Return a run's name and when it ended, which tell it from others: ``quick, 27 Nov 2026 20:31``."""
    text = words(run.facts.get("finished")) or words(run.facts.get("started"))
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return run.name
    return f"{run.name}, {moment.day} {moment:%b %Y %H:%M}"


def _size(size: object, facts: Mapping[str, object]) -> str:
    """Return how many images a set has, given the limit of the run."""
    most, given = quantity(facts.get("limit")), quantity(size)
    return words(size) if most is None or given is None else f"{min(most, given):g}"


def _date(text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment.day} {moment:%B %Y, %H:%M}" + (
        " UTC" if moment.utcoffset() is not None and not moment.utcoffset() else ""
    )


def _duration(seconds: float | None) -> str:
    if seconds is None or seconds < 0:
        return ""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
