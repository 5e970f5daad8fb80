"""Parts of a session that misbehave in the run's own process: each costs its own cells, and no number of another."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import aftershock
import numpy as np
import pytest
import torch
from aftershock.analyses.base import Analysis, AnalysisInfo
from aftershock.analyses.base import register as analysis
from aftershock.analyses.findings import Claim, Findings
from aftershock.attacks import register as perturbation
from aftershock.attacks.base.perturbation import Perturbation, PerturbationInfo
from aftershock.detectors import Detector, DetectorInfo, register
from aftershock.harness.evaluation.collect import Tables
from aftershock.harness.tracing.traces import Traces
from support.suites import Tiny
from support.tables import share_secret, whole_tables
from torch import Tensor

ENTERED: list[AbstractContextManager[object]] = []


def detector(name: str, fit: Callable[[], object] = lambda: 0, score: Callable[[], object] = lambda: 0) -> None:
    """Register a detector that does something to the process when it is fitted and when it scores."""

    class Planted(Detector):
        info = DetectorInfo(title=name, needs=())

        def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
            fit()
            return self

        def score(self, traces: Traces) -> Tensor:
            score()
            return -traces.logits.double().logsumexp(1)

    register(name)(Planted)


def stop(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def autocast() -> None:
    ENTERED.append(torch.autocast("cpu", dtype=torch.bfloat16))
    ENTERED[-1].__enter__()


def close_streams() -> None:
    sys.stdout = None
    os.close(1)


def late_exit() -> None:
    thread = threading.Thread(target=sys.exit)
    thread.start()
    thread.join()


ENDS = {
    "exits": (SystemExit(0), "sys.exit(0)"),
    "interrupts": (KeyboardInterrupt(), "KeyboardInterrupt"),
    "generator": (GeneratorExit(), "GeneratorExit"),
    "own-base": (type("Strange", (BaseException,), {})("no reason"), "Strange: no reason"),
}
for name, (error, _) in ENDS.items():
    detector(f"{name}-in-fit", fit=stop(error))
    detector(f"{name}-in-score", score=stop(error))
LEAVES = {
    "autocast": autocast,
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "function modes": lambda: torch.set_default_device("meta"),
    "gradient mode": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "torch.Tensor.norm": lambda: setattr(torch.Tensor, "norm", lambda self, *more: self),
    "numpy.quantile": lambda: setattr(np, "quantile", lambda *_: 0.0),
    "working directory": lambda: os.chdir("/"),
    "environment": lambda: os.environ.pop("PATH"),
    "standard descriptors": close_streams,
}
for number, act in enumerate(LEAVES.values()):
    detector(f"leaves-{number}", fit=act, score=act)
detector("thread-exits", score=late_exit)


@perturbation("ruins-model")
class RuinsModel(Perturbation):
    """Writes into the weights of the model that it was given, and leaves a hook there."""

    info = PerturbationInfo(title="ruins the model", kind="attack", family="ruins")
    eps = 0.3

    def perturb(self, model: torch.nn.Module, images: Tensor, labels: Tensor, draws: object) -> Tensor:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.data.zero_()
        next(model.children()).register_forward_hook(lambda module, given, made: made * 0)
        torch.set_default_dtype(torch.float64)
        return images.clone()


# Not empty once tables are made: what these parts say of themselves is in order before.
LATE: list[bool] = []


@perturbation("no-effort")
class NoEffort(Perturbation):
    """Cannot say what tables ask it for."""

    info = PerturbationInfo(title="no effort", kind="noise", family="no-effort", gradients=False)

    @property
    def effort(self) -> Any:
        if LATE:
            raise SystemExit(0)
        return None

    def perturb(self, model: torch.nn.Module, images: Tensor, labels: Tensor, draws: object) -> Tensor:
        return images.clone()


@register("no-kind")
class NoKind(Detector):
    """Cannot say what tables ask it for."""

    info = DetectorInfo(title="no kind", needs=())

    @property
    def surrogate_kind(self) -> Any:
        if LATE:
            raise RuntimeError("nobody knows")
        return "none"

    def fit(self, clean: Traces, perturbed: Traces | None = None) -> Self:
        return self

    def score(self, traces: Traces) -> Tensor:
        return traces.logits.amax(1)


class Forgotten:
    def __get__(self, instance: object, owner: type) -> AnalysisInfo:
        if LATE:
            raise ValueError("no title")
        return AnalysisInfo(title="Untitled")


@dataclass(frozen=True)
class Nothing:
    """Measured by an analysis that measures nothing."""


@analysis("untitled")
class Untitled(Analysis[Nothing]):
    info: ClassVar[AnalysisInfo] = Forgotten()  # type: ignore[assignment]
    needs = ()

    def measure(self, given: Any) -> Nothing:
        return Nothing()

    def report(self, measured: Nothing) -> Findings:
        return Findings([Claim("", sentence="One sentence.")])


@analysis("titled")
class Titled(Untitled):
    info: ClassVar[AnalysisInfo] = AnalysisInfo(title="Titled")


ATTACKS = ({"name": "gaussian", "std": 0.5}, {"name": "fgsm", "eps": 0.3})
HONEST = ({"name": "msp"}, {"name": "mahalanobis"})


def rows_without(tables: dict[str, bytes], *names: str) -> dict[str, list[str]]:
    return {t: [r for r in data.decode().splitlines() if not any(n in r for n in names)] for t, data in tables.items()}


def same(one: dict[str, list[str]], other: dict[str, list[str]]) -> bool:
    """Whether tables are equal but for the leaderboard, where another perturbation of the suite makes another row."""
    return all(one[name] == other[name] for name in other if name != "leaderboard.csv")


def facts(run: aftershock.Run) -> dict[str, Any]:
    return json.loads((run.folder / "run.json").read_text())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> aftershock.Run:
    folder = tmp_path_factory.mktemp("undisturbed")
    suite = tiny(folder / "s.toml", ATTACKS, HONEST)
    return aftershock.run(suite, folder / "run", cache=folder / "cache")


def test_what_a_part_does_to_the_process_reaches_no_other_row_and_no_cache(
    undisturbed: aftershock.Run, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    leaving = [{"name": f"leaves-{number}"} for number in range(len(LEAVES))]
    more = [*leaving, {"name": "thread-exits"}]
    tiny(tmp_path / "s.toml", (*ATTACKS, {"name": "ruins-model"}), (HONEST[0], *more, HONEST[1]))
    # A relative run directory: where it lies is settled before any of them changes the working directory.
    found = aftershock.run("s.toml", "run", cache="cache")
    assert found.folder == tmp_path / "run" and not found.failed
    own = rows_without(whole_tables(found.folder), "leaves-", "thread-exits", "ruins-model")
    assert same(own, rows_without(whole_tables(undisturbed.folder)))
    board = found.leaderboard.set_index("detector")
    for number, state in enumerate(LEAVES):
        assert f"changed-state:{state}" in board["flags"][f"leaves-{number}"].split("; ")
        assert any(note.startswith(f"leaves-{number} ") and state in note for note in facts(found)["notes"])
    assert "changed-state" not in f"{board['flags']['msp']} {board['flags']['mahalanobis']}"
    ruins = found.perturbations.set_index("perturbation").loc["ruins-model"]
    assert ruins["success_rate"] == 0 and "changed-state:default dtype" in ruins["flags"]
    # Nothing of it went into the cache.
    tiny(tmp_path / "clean.toml", ATTACKS, HONEST)
    share_secret(found.folder, Path("again"))
    again = aftershock.run("clean.toml", "again", cache="cache")
    assert again.computed == 0 and whole_tables(again.folder) == whole_tables(undisturbed.folder)


def test_what_would_end_the_run_costs_the_cells_of_its_part(
    undisturbed: aftershock.Run, tmp_path: Path, tiny: Tiny
) -> None:
    labels = [f"{name}-in-{where}" for name in ENDS for where in ("fit", "score")]
    suite = tiny(tmp_path / "s.toml", ATTACKS, (HONEST[0], *({"name": label} for label in labels), HONEST[1]))
    found = aftershock.run(suite, tmp_path / "run", cache=tmp_path / "cache")
    for label in labels:
        reasons = [reason for cell, reason in found.failed.items() if f"/{label}" in cell]
        assert reasons and all(ENDS[label.partition("-in-")[0]][1] in reason for reason in reasons)
    assert len({cell.split("/")[4] for cell in found.failed}) == len(labels)
    assert rows_without(whole_tables(found.folder), "-in-") == rows_without(whole_tables(undisturbed.folder))


def test_a_page_that_fails_is_named_and_parts_are_not_asked_again_for_tables(
    undisturbed: aftershock.Run, tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = tiny(tmp_path / "s.toml", (*ATTACKS, {"name": "no-effort"}), (*HONEST, {"name": "no-kind"}))
    text = "".join(f'\n[[analyses]]\nname = "{name}"\n' for name in ("untitled", "titled"))
    suite.write_text(suite.read_text() + text)

    def broken(study: Any, *more: object) -> str:
        raise RuntimeError("no ink")

    write = Tables.write

    def later(self: Tables, folder: Path) -> object:
        LATE.append(True)
        return write(self, folder)

    monkeypatch.setattr(Tables, "write", later)
    with monkeypatch.context() as patch:
        patch.setattr("aftershock.reports.site.build.analysis_page", broken)
        found = aftershock.run(suite, tmp_path / "run", cache=tmp_path / "cache")
    told = dict(found.failed)
    # What tables say of a part was asked when it was made, before any work: later it may say what it likes.
    assert any("titled.html" in reason and "no ink" in reason for reason in told.values())
    assert any("untitled" in name and "no title" in reason for name, reason in told.items()) and len(told) == 2
    own = rows_without(whole_tables(found.folder), "no-effort", "no-kind")
    assert same(own, rows_without(whole_tables(undisturbed.folder)))
    assert {"no-kind", "msp"} <= set(found.leaderboard["detector"])
    assert found.report.is_file()
    assert {p.name for p in (found.folder / "analyses").iterdir()} == {"digits-mlp-0-titled"}
    assert facts(found)["status"] == "failed" and len(facts(found)["failures"]) == 2
    # Nothing that was computed is lost, and the same command makes what is missing.
    LATE.clear()
    again = aftershock.run(suite, tmp_path / "run", cache=tmp_path / "cache")
    assert again.computed == 0 and len(again.failed) == 1
    assert (again.folder / "site" / "analyses" / "digits-mlp-titled.html").is_file()
    LATE.clear()


def test_a_table_that_cannot_be_made_is_named_and_none_of_an_earlier_run_stays(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite = tiny(tmp_path / "s.toml", ATTACKS, HONEST)

    def broken(*_: object) -> Any:
        raise ZeroDivisionError("nobody expected it")

    monkeypatch.setattr("aftershock.harness.evaluation.collect.leaderboard_rows", broken)
    monkeypatch.setattr("aftershock.harness.evaluation.collect.score_rows", broken)
    (tmp_path / "run" / "tables").mkdir(parents=True)
    (tmp_path / "run" / ".lock").write_bytes(b"")
    (tmp_path / "run" / "tables" / "scores.csv.gz").write_bytes(b"old")
    found = aftershock.run(suite, tmp_path / "run", cache=tmp_path / "cache")
    assert set(found.failed) == {"leaderboard of mlp", "tables/scores.csv.gz"}
    assert not (found.folder / "tables" / "scores.csv.gz").exists()
    assert len(found.metrics) and len(found.perturbations) and found.report.is_file()
