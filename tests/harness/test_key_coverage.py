"""A change of code makes the cells anew that it can change, and no others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from aftershock.harness.core import code_digests
from aftershock.harness.core.cell_names import CellName
from aftershock.harness.core.registry import DATASETS
from aftershock.harness.plan import make_plan
from aftershock.harness.plan.cells import PerturbJob
from aftershock.harness.suite.resolve import load_suite
from support.suites import Tiny

MADE = {"perturb", "control", "trace", "propagation", "rounded"}
LEARNED = MADE | {"check", "score", "rehearsal", "false-alarm"}
ALL = {"model", "encoders", "fit", "score", "analysis", *MADE}


@pytest.fixture(scope="module")
def plan_of(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny) -> Callable[[], dict[CellName, str]]:
    path = tmp_path_factory.mktemp("keys") / "a.toml"
    tiny(
        path,
        [{"name": "fgsm", "eps": 0.3}, {"name": "adaptive", "eps": 0.3, "images": 20}],
        [{"name": "lid", "fit_on": ["fgsm"]}],
    )
    path.write_text(path.read_text() + '\n[[analyses]]\nname = "rdm"\n')
    suite = load_suite(path)
    dataset = DATASETS.get("digits")(None).load()

    def plan() -> dict[CellName, str]:
        """The key of every cell by its name."""
        return {cell.name: key for key, cell in make_plan(suite, dataset, "data", "cpu", {"mlp": None}).cells.items()}

    return plan


@pytest.mark.parametrize(
    ("module", "kinds", "adaptive"),
    [
        ("analyses.propagation.measures", {"encoders", "propagation"}, {"propagation"}),
        ("analyses.rdm.graph", {"analysis"}, set()),
        ("analyses.rdm.report.text", set(), set()),
        ("analyses.findings", set(), set()),
        ("detectors.activations.lid", {"fit", "score"}, LEARNED),
        ("harness.run.tasks.adaptive", set(), LEARNED - {"rehearsal"}),
        ("harness.run.tasks.rehearsal", set(), LEARNED),
        ("attacks.native.pgd", MADE | {"fit", "score", "analysis"}, LEARNED),
        ("harness.run.tasks.detectors", {"fit", "score"}, LEARNED),
        ("harness.models.training", ALL, LEARNED),
        ("harness.tracing.taps", ALL, LEARNED),
        ("harness.core.errors", set(), set()),
    ],
)
def test_a_change_of_code_reaches_what_it_makes(
    module: str,
    kinds: set[str],
    adaptive: set[str],
    plan_of: Callable[[], dict[CellName, str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path, real = code_digests._path(module), code_digests._source
    assert path is not None
    before = plan_of()

    def forget() -> None:
        code_digests._read.cache_clear()
        code_digests._digest.cache_clear()

    try:
        with monkeypatch.context() as patch:
            patch.setattr(code_digests, "_source", lambda p: real(p) + (b"\nMORE = 1\n" if p == path else b""))
            forget()
            after = plan_of()
    finally:
        forget()
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    by_attack = {name for name in changed if "adaptive" in str(name)}
    assert {name.kind for name in changed - by_attack} == kinds
    assert {name.kind for name in by_attack} == adaptive


def test_the_check_at_the_large_budget_covers_enough_images_for_a_flag(tmp_path: Path, tiny: Tiny) -> None:
    """The model gets some of them wrong, and nothing is flagged from fewer than 30."""
    dataset = DATASETS.get("digits")(None).load()
    for evaluate, images in ((60, 48), (40, 40)):
        attack = {"name": "adaptive", "eps": 0.3, "images": 20}
        suite = load_suite(tiny(tmp_path / f"{evaluate}.toml", [attack], data={"evaluate": evaluate}))
        plan = make_plan(suite, dataset, "data", "cpu", {"mlp": None})
        checks = [cell.job for cell in plan.cells.values() if cell.kind == "check" and isinstance(cell.job, PerturbJob)]
        assert len(checks) == 2 and {(job.start, job.stop) for job in checks} == {(0, images)}
        assert {job.part.params["eps"] for job in checks} == {0.5}
        # The ranking is about the images that every adaptive attack covers.
        assert plan.ranked == 20


def test_another_perturbation_measures_nothing_again(tmp_path: Path, tiny: Tiny) -> None:
    dataset = DATASETS.get("digits")(None).load()

    def keys(*names: str) -> set[str]:
        suite = load_suite(tiny(tmp_path / "a.toml", [{"name": name, "eps": 0.3} for name in names]))
        cells = make_plan(suite, dataset, "data", "cpu", {"mlp": None}).cells.values()
        return {cell.key for cell in cells if cell.kind in ("encoders", "propagation")}

    one, both = keys("fgsm"), keys("fgsm", "pgd")
    assert one < both
    assert (len(one), len(both)) == (2, 3)
