"""Detectors that answer by who asks, in a real run: each is flagged and not ranked, the honest one beside them is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import ClassVar

import pytest
from aftershock.detectors import Detector, DetectorInfo
from aftershock.harness.tracing.traces import Traces
from support.commands import Forks
from support.suites import Tiny
from support.tables import read_table, whole_tables
from torch import Tensor

# All have the same score (how small the logits are), to which each adds what it knows of the question.
PARTS = """
import os
import sys

import torch
from aftershock.attacks import register as perturbation
from aftershock.attacks.adaptive.feature_matching import FeatureMatching
from aftershock.attacks.adaptive.surrogate import MarginAttack
from aftershock.detectors import Detector, DetectorInfo, register
from aftershock.harness.evaluation.results import Effort

fitted = False


@perturbation("short-margin")
class ShortMargin(MarginAttack):
    # Detectors this weak need no long attack, and the floor shall not decide which of them is ranked.
    @property
    def effort(self):
        return Effort(50, 2, 100)

    # Some detectors act up once they were asked for a surrogate.
    def observe(self, model, target, images, step):
        return target.observe(model, images)
    # What the margin alone does not get past, such as the canary.
    def improve(self, best, rows, model, clean, labels, draws):
        super().improve(best, rows, model, clean, labels, draws)
        left = rows[best.not_evaded[rows]]
        if len(left):
            FeatureMatching(self.eps, self.steps).improve(best, left, model, clean, labels, draws)


class Base(Detector):
    def fit(self, clean, perturbed=None):
        global fitted
        fitted = True
        self.process = os.getpid()
        os.environ["AFTERSHOCK_TEST_FITTED"] = "1"
        return self

    def score(self, traces):
        return -traces.logits.double().logsumexp(1) + self.more(len(traces))


def planted(name, **about):
    info = DetectorInfo(title=name, needs=(), **about)
    return lambda more: register(name)(type("Planted", (Base,), {"info": info, "more": more, "__module__": __name__}))


def attacked():
    frame = sys._getframe()
    while frame and "adaptive" not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame is not None


def constant(name, value, **about):
    planted(name, **about)(lambda self, n: torch.full((n,), float(value(self, n))))


constant("honest", lambda self, n: 0)
constant("by-gradients", lambda self, n: 9 * torch.is_grad_enabled())
constant("by-batch", lambda self, n: 9 * (n < 5))
constant("by-process", lambda self, n: 9 * (os.getpid() != self.process))
constant("by-environment", lambda self, n: 9 * ("AFTERSHOCK_TEST_FITTED" not in os.environ))
constant("by-caller", lambda self, n: 9 * attacked())
constant("infinite-to-attacks", lambda self, n: float("inf") if attacked() else 0)
constant("no-number-to-attacks", lambda self, n: float("nan") if attacked() else 0)


@planted("by-order")
def _(self, n):
    return torch.arange(n)


@planted("by-calls")
def _(self, n):
    self._calls = getattr(self, "_calls", 0) + 1
    return torch.full((n,), float(self._calls))


@planted("dice")
def _(self, n):
    return torch.rand(n) * 9


@planted("declared-dice", randomised=True)
def _(self, n):
    return torch.randn(n) / 4


@register("lies-about-the-low")
class LiesAboutTheLow(Base):
    # Attacks hear that images which would pass are flagged; those that they keep then are flagged indeed.

    info = DetectorInfo(title="lies", needs=())

    def fit(self, clean, perturbed=None):
        super().fit(clean, perturbed)
        self.cut = float(self.more(clean).quantile(0.9))
        return self

    def more(self, traces):
        return -traces.logits.double().logsumexp(1)

    def score(self, traces):
        found = self.more(traces)
        return torch.where(found < self.cut, found + 99, found) if attacked() else found


class BySurrogate(Base):
    # Whoever asks for a surrogate is an attack.

    asked = 0

    def surrogate(self, live):
        self.know()
        return -live.logits.logsumexp(1)

    def know(self):
        self._asked = True

    def more(self, n):
        return torch.full((n,), 9.0 * getattr(self, "_asked", False))


@register("by-surrogate")
class ByItsOwn(BySurrogate):
    info = DetectorInfo(title="by surrogate", needs=(), surrogate="exact")


@register("by-surrogate-in-its-module")
class ByItsModule(BySurrogate):
    info = DetectorInfo(title="by surrogate in its module", needs=(), surrogate="exact")

    def know(self):
        ByItsModule.asked = 1

    def more(self, n):
        return torch.full((n,), 9.0 * ByItsModule.asked)


@planted("prints")
def _(self, n):
    print('{"scores": [[0]]}', flush=True)
    os.write(1, b"noise\\n")
    return torch.zeros(n)


@planted("dies-elsewhere")
def _(self, n):
    if not fitted:
        os._exit(3)
    return torch.zeros(n)
"""
# What they would answer by is not to be seen in the process in which they are asked.
BLINDFOLDED = ("by-caller", "lies-about-the-low", "infinite-to-attacks", "no-number-to-attacks")
HONEST = ("honest", "prints", "declared-dice", *BLINDFOLDED)
CALLER, ORDER, BATCH, PROCESS = (f"score-depends-on-{what}" for what in ("caller", "order", "batch", "process"))
CHEATS = {
    "by-gradients": {CALLER},
    "by-batch": {BATCH},
    # A score that depends on the place in the batch depends on its size, and an attack has other batches.
    # Another process is asked in another order.
    "by-order": {ORDER, BATCH, CALLER, PROCESS},
    # What an attack asked on its way is asked again in another process.
    "by-process": {PROCESS, CALLER},
    "by-environment": {PROCESS, CALLER},
    "by-surrogate": {CALLER},
    "by-surrogate-in-its-module": {PROCESS, CALLER},
    "by-calls": {"randomised"},
    "dice": {"randomised"},
    "dies-elsewhere": {f"{PROCESS}: it ended its process (status 3)"},
}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory, forks: Forks, tiny: Tiny) -> dict[str, dict[str, str]]:
    """The rows of all of them in one run, by detector."""
    folder = tmp_path_factory.mktemp("rescoring")
    (folder / "parts.py").write_text(PARTS)
    attacks = [{"name": "pgd", "eps": 0.3}, {"name": "short-margin", "eps": 0.3, "steps": 8, "images": 60}]
    tiny(folder / "a.toml", attacks, [{"name": n} for n in (*HONEST, *CHEATS)], plugins=["parts.py"])
    # Scores and the checks at the large budget, with what they need.
    only = ("--only", "digits/mlp/0/[cs][hc]")
    done = forks("run", "a.toml", "--out", "run", *only, cwd=folder, AFTERSHOCK_CACHE=str(folder / "cache"))
    assert done.status == 0, done.output
    return {row["detector"]: row for row in read_table(folder / "run", "leaderboard.csv")}


@pytest.mark.parametrize("name", HONEST)
def test_an_honest_score_has_no_flag_and_a_rank(rows: dict[str, dict[str, str]], name: str) -> None:
    assert (rows[name]["flags"], rows[name]["not_ranked_reason"]) == ("", "")
    assert rows[name]["rank"] == "1"


@pytest.mark.parametrize("name", CHEATS)
def test_a_score_that_depends_on_the_question_is_flagged_and_not_ranked(
    rows: dict[str, dict[str, str]], name: str
) -> None:
    row = rows[name]
    found = {f for f in row["flags"].split("; ") if f.startswith(("score-depends-on", "randomised"))}
    assert found == CHEATS[name]
    assert row["rank"] == "" and found <= set(row["not_ranked_reason"].split("; "))
    # The number stays where it is.
    assert row["robust_accuracy_at_fpr_5"] != ""


@pytest.mark.skipif(not os.environ.get("AFTERSHOCK_HOSTILE"), reason="set AFTERSHOCK_HOSTILE to try this")
def test_drawn_scores_are_the_same_in_every_run(tmp_path: Path, forks: Forks, tiny: Tiny) -> None:
    """Whatever was computed before, and in whatever order."""
    (tmp_path / "parts.py").write_text(PARTS)
    attacks = [{"name": "fgsm", "eps": 0.3}, {"name": "short-margin", "eps": 0.3, "steps": 3, "images": 20}]
    tiny(tmp_path / "a.toml", attacks, [{"name": "declared-dice"}], plugins=["parts.py"])
    found = []
    for out, orders in (("whole", ["[cs][hc]"]), ("parts", ["score/declared-dice/8-bit:fgsm", "[cs][hc]"])):
        for cells in orders:
            command = ("run", "a.toml", "--out", out, "--only", f"digits/mlp/0/{cells}")
            done = forks(*command, cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / f"{out}-cache"))
            assert done.status == 0, done.output
        tables = whole_tables(tmp_path / out)
        found.append([tables[f"{name}.csv"] for name in ("leaderboard", "metrics", "attacks")])
    assert found[0] == found[1]


def test_what_only_one_detector_does_is_in_no_other_row(rows: dict[str, dict[str, str]]) -> None:
    assert set(rows) == {*HONEST, *CHEATS, "by-environment", "none"}
    assert rows["none"]["rank"] == "1" and rows["none"]["flags"] == ""


def test_a_detector_of_this_session_is_not_asked_elsewhere(
    tmp_path: Path, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other process has it: that is said, and the row cannot be ranked."""
    import aftershock
    from aftershock.harness.core.registry import DETECTORS

    class Session(Detector):
        info: ClassVar[DetectorInfo] = DetectorInfo(title="of this session", needs=())

        def fit(self, clean: Traces, perturbed: Traces | None = None) -> Session:
            return self

        def score(self, traces: Traces) -> Tensor:
            return -traces.logits.double().logsumexp(1)

    monkeypatch.setattr(DETECTORS, "_entries", dict(DETECTORS._entries))
    DETECTORS.register("of-this-session")(Session)
    tiny(tmp_path / "a.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": "of-this-session"}])
    found = aftershock.run(tmp_path / "a.toml", tmp_path / "run", cache=tmp_path / "cache", only="digits/mlp/0/score/*")
    row = found.leaderboard.set_index("detector").loc["of-this-session"]
    assert set(row["flags"].split("; ")) == {"no-adaptive-attack", "unchecked-in-another-process"}
    assert row["not_ranked_reason"] == "no-adaptive-attack; unchecked-in-another-process"
