"""What a cell is called: the fields, the text that people write after ``--only``, and the entry that keeps both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from aftershock import load_detector, load_model, run
from aftershock.harness.core.cell_names import CellName
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.registry import DATASETS
from aftershock.harness.plan import Plan, make_plan
from aftershock.harness.run.runner import choose
from aftershock.harness.store.run_directory import Store
from aftershock.harness.suite.resolve import load_suite
from support.cells import ledger
from support.suites import Tiny
from support.tables import share_secret

KEY = "a" * 64
ODD = CellName("my/data", "cnn/wide[a/b]", 3, "score", "d[x=1/2]", source="control:pgd[eps=8/255]@d/e")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Plan:
    path = tmp_path_factory.mktemp("names") / "a.toml"
    attacks: list[dict[str, Any]] = [
        {"name": "fgsm", "eps": ["8/255", "64/255"]},
        {"name": "adaptive", "eps": 0.3, "images": 20},
    ]
    tiny(path, attacks, [{"name": "feature-squeezing", "label": "squeezing"}])
    path.write_text(path.read_text() + '\n[[analyses]]\nname = "rdm"\n')
    return make_plan(load_suite(path), DATASETS.get("digits")(None).load(), "data", "cpu", {"mlp": None})


def test_the_text_has_the_fields_that_are_set() -> None:
    assert str(ODD) == "my/data/cnn/wide[a/b]/3/score/d[x=1/2]/control:pgd[eps=8/255]@d/e"
    assert str(CellName("d", "m", 0, "model")) == "d/m/0/model"
    assert str(CellName("d", "m", 0, "trace", "none", source="fit", start=0, code="logits")) == (
        "d/m/0/trace/none/fit/0/logits"
    )


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("model", "digits/mlp/0/model"),
        ("perturb", "digits/mlp/0/perturb/fgsm[eps=8/255]/evaluate/0"),
        ("perturb", "digits/mlp/0/perturb/adaptive@squeezing/evaluate/0"),
        ("check", "digits/mlp/0/check/adaptive@squeezing/evaluate/0"),
        ("rounded", "digits/mlp/0/rounded/fgsm[eps=8/255]/8-bit/0"),
        ("control", "digits/mlp/0/control/fgsm[eps=8/255]/0"),
        ("trace", "digits/mlp/0/trace/none/fit/0/logits"),
        ("trace", "digits/mlp/0/trace/control:fgsm[eps=8/255]/evaluate/0/logits"),
        ("trace", "digits/mlp/0/trace/8-bit:fgsm[eps=8/255]/0/logits"),
        ("fit", "digits/mlp/0/fit/squeezing"),
        ("score", "digits/mlp/0/score/squeezing/calibrate"),
        ("score", "digits/mlp/0/score/squeezing/control:fgsm[eps=8/255]"),
        ("view", "digits/mlp/0/view/squeezing/median/none/fit/0"),
        ("encoders", "digits/mlp/0/encoders"),
        ("propagation", "digits/mlp/0/propagation/fgsm[eps=8/255]"),
        ("analysis", "digits/mlp/0/analysis/rdm"),
    ],
)
def test_planned_cells_have_the_texts_that_only_matches(kind: str, text: str, plan: Plan) -> None:
    found = [cell for cell in plan.cells.values() if str(cell.name) == text]
    assert [cell.kind for cell in found] == [kind]
    chosen = choose(plan.cells, text)
    assert found[0].key in chosen
    # In a pattern, brackets name a set of characters.
    assert choose(plan.cells, text.replace("[", "?").replace("]", "?")) == chosen


def test_a_part_is_known_whatever_is_in_its_label(plan: Plan) -> None:
    parts = {cell.name.part for cell in plan.cells.values() if cell.kind == "perturb"}
    assert parts == {"fgsm[eps=8/255]", "fgsm[eps=64/255]", "adaptive@squeezing"}
    with pytest.raises(UsageError, match="matches no cell"):
        choose(plan.cells, "perturb/fgsm[eps=9/255]")


@pytest.mark.parametrize("name", [ODD, CellName("d", "m", 0, "model"), CellName("d", "m", 0, "perturb", "p", start=0)])
def test_an_entry_keeps_all_fields(name: CellName, tmp_path: Path) -> None:
    with Store(tmp_path / "run") as store:
        store.put_failure(KEY, name, "failed", "why")
    assert ledger(tmp_path / "run")[KEY].name == name


@pytest.mark.parametrize("wrong", [{"seed": "0"}, {"seed": True}, {"start": 0.5}, {"part": None}, {"more": 1}])
def test_fields_of_another_type_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(TypeError):
        CellName.from_json({**ODD.as_json(), **wrong})


def test_what_another_run_called_otherwise_is_found_by_own_labels(tmp_path: Path, tiny: Tiny) -> None:
    attacks: list[dict[str, Any]] = [{"name": "fgsm", "eps": 0.3, "label": "f"}]
    tiny(tmp_path / "a.toml", attacks, [{"name": "mahalanobis", "label": "first"}], model={"label": "one"})
    # Two rows of the same content are one cell, and so is a model whose seed decides nothing.
    twice = [{"name": "mahalanobis", "label": label} for label in ("second", "third")]
    tiny(tmp_path / "b.toml", [{**attacks[0], "label": "g"}], twice, model={"label": "other"})
    made = [run(tmp_path / "a.toml", tmp_path / "a", cache=tmp_path / "cache", device="cpu")]
    share_secret(tmp_path / "a", tmp_path / "b")
    made.append(run(tmp_path / "b.toml", tmp_path / "b", cache=tmp_path / "cache", device="cpu"))
    assert made[0].computed and not made[1].computed and not made[1].failed
    for place, labels in (("a", ["first"]), ("b", ["second", "third"])):
        for label in labels:
            assert load_detector(tmp_path / place, label).state().keys()
        load_model(tmp_path / place, {"a": "one", "b": "other"}[place])
    with pytest.raises(UsageError, match="no detector 'first'"):
        load_detector(tmp_path / "b", "first")
    named = ledger(tmp_path / "b").values()
    assert {r.name.model for r in named} == {"other"}
    assert {r.name.part for r in named if r.kind == "fit"} == {"second"}
    costs = json.loads((tmp_path / "b" / "run.json").read_text())["costs"]
    assert [c["detector"] for c in costs] == ["second", "third"]
    assert costs[0]["score_ms_per_image"] == costs[1]["score_ms_per_image"] > 0
    # The same directory under new labels, without a cell to compute.
    tiny(tmp_path / "c.toml", attacks, [{"name": "mahalanobis", "label": "last"}], model={"label": "one"})
    renamed = run(tmp_path / "c.toml", tmp_path / "a", cache=tmp_path / "empty", device="cpu")
    assert not renamed.computed and load_detector(tmp_path / "a", "last").state().keys()


def test_a_model_of_every_seed_is_found(tmp_path: Path, tiny: Tiny) -> None:
    from aftershock.harness.suite.builtin import builtin_suites

    weights = builtin_suites()["quick"].parent / "weights" / "digits-mlp.safetensors"
    model = {"weights": str(weights), "width": 128}
    tiny(tmp_path / "a.toml", [{"name": "gaussian", "std": 0.1}], [{"name": "msp"}], model=model, seeds=[0, 1])
    run(tmp_path / "a.toml", tmp_path / "run", cache=tmp_path / "cache", device="cpu", only="/msp/calibrate")
    for seed in (0, 1):
        load_model(tmp_path / "run", seed=seed)
        load_detector(tmp_path / "run", "msp", seed=seed)


def test_failures_have_their_fields(tmp_path: Path, tiny: Tiny) -> None:
    (tmp_path / "bad.py").write_text(
        "from aftershock.detectors import Detector, DetectorInfo, register\n"
        "@register('bad')\n"
        "class Bad(Detector):\n"
        "    info = DetectorInfo(title='bad', needs=())\n"
        "    def fit(self, clean, perturbed=None): raise ValueError('no')\n"
        "    def score(self, traces): return traces.logits[:, 0].double()\n"
    )
    tiny(tmp_path / "a.toml", [{"name": "fgsm", "eps": 0.3}], [{"name": "bad"}], plugins=["bad.py"])
    made = run(tmp_path / "a.toml", tmp_path / "run", cache=tmp_path / "cache", device="cpu")
    failures = json.loads((tmp_path / "run" / "run.json").read_text())["failures"]
    assert {f["cell"] for f in failures} == {*made.failed, *made.skipped}
    [fit] = [f for f in failures if f["status"] == "failed"]
    assert fit["cell"] == "digits/mlp/0/fit/bad" and "no" in fit["reason"]
    assert (fit["dataset"], fit["model"], fit["seed"], fit["kind"], fit["part"]) == ("digits", "mlp", 0, "fit", "bad")
