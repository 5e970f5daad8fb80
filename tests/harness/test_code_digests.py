"""What of the code is in a key: what it computes, of a part and of what it imports; not how it is written down."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aftershock.harness.core import code_digests
from aftershock.harness.core.code_digests import code_behind, code_digest, part_digest
from aftershock.harness.core.registry import ANALYSES, DETECTORS, PERTURBATIONS, Entry, Origin

Edit = Callable[[str, Callable[[str], str]], None]


def forget() -> None:
    code_digests._read.cache_clear()
    code_digests.code_behind.cache_clear()
    code_digests._digest.cache_clear()


@pytest.fixture
def edit(monkeypatch: pytest.MonkeyPatch) -> Iterator[Edit]:
    """Edits modules of the package, for those who digest them: ``edit(module, change of its text)``."""
    changes: dict[Path, Callable[[str], str]] = {}

    def source(path: Path) -> bytes:
        return changes.get(path, str)(path.read_text(encoding="utf-8")).encode()

    def make(module: str, change: Callable[[str], str]) -> None:
        path = code_digests._path(module)
        assert path is not None
        text = path.read_text(encoding="utf-8")
        assert change(text) != text, "nothing was edited"
        changes[path] = change
        forget()

    monkeypatch.setattr(code_digests, "_source", source)
    yield make
    forget()


def digests() -> dict[str, str]:
    """The digest of every built-in part, by kind and name."""
    kinds = (
        (DETECTORS, "detectors.base.detector"),
        (PERTURBATIONS, "attacks.base.perturbation"),
        (ANALYSES, "analyses.base"),
    )
    return {
        f"{registry.kind}/{name}": part_digest(registry._entries[name], contract)
        for registry, contract in kinds
        for name in registry.builtins
    }


def changed(before: dict[str, str]) -> set[str]:
    after = digests()
    return {name for name in before if before[name] != after[name]}


def without_comments(text: str) -> str:
    """Another way to write the same: no comments, no layout, no docstrings."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree)


def all_modules() -> list[str]:
    """Every module behind a built-in part or a kind of cell."""
    entries = [e for r in (DETECTORS, PERTURBATIONS, ANALYSES) for e in r._entries.values() if e.module]
    return sorted(code_behind(*{e.module for e in entries}, "harness.run.tasks.dispatch"))


def test_a_docstring_a_comment_or_the_layout_changes_no_digest(edit: Edit) -> None:
    before = digests()
    modules = all_modules()
    assert len(modules) > 80
    for module in modules:
        path = code_digests._path(module)
        assert path is not None
        text = path.read_text(encoding="utf-8")
        if without_comments(text) != text:
            edit(module, without_comments)
    assert changed(before) == set()


def test_the_text_of_an_error_changes_no_digest(edit: Edit) -> None:
    before = digests()
    edit("detectors.base.detector", lambda text: text.replace("offers no surrogate", "has no surrogate"))
    edit("attacks.benign.corruptions", lambda text: text.replace('UsageError(f"', 'UsageError(f"Oh: '))
    assert changed(before) == set()


def test_the_arithmetic_of_a_helper_changes_the_parts_that_import_it(edit: Edit) -> None:
    before = digests()
    edit("detectors.base.classes", lambda text: f"{text}\nMORE = 1 + 1\n")
    found = changed(before)
    behind = {
        f"{registry.kind}/{name}"
        for registry in (DETECTORS, PERTURBATIONS, ANALYSES)
        for name in registry.builtins
        if "detectors.base.classes" in code_behind(registry._entries[name].module)
    }
    assert found == behind
    assert "detectors/mahalanobis" in found and "detectors/odin" not in found
    assert not any(name.startswith("perturbations/") for name in found)


def test_one_detector_leaves_the_others_alone(edit: Edit) -> None:
    before = digests()
    edit("detectors.activations.lid", lambda text: text.replace("def ", "def a(): pass\ndef ", 1))
    assert changed(before) == {"detectors/lid"}


def test_what_puts_numbers_into_words_and_figures_changes_no_digest(edit: Edit) -> None:
    before = digests()
    edit("analyses.departure.report.figures", lambda text: f"{text}\nMORE = 1\n")
    edit("analyses.findings", lambda text: f"{text}\nMORE = 1\n")
    assert changed(before) == set()
    assert not {m for m in all_modules() if ".report" in m or m.startswith("reports.")}


def test_one_science_module_changes_its_analysis_alone(edit: Edit) -> None:
    before = digests()
    edit("analyses.departure.events", lambda text: f"{text}\nMORE = 1\n")
    assert changed(before) == {"analyses/departure"}


def test_one_attack_leaves_the_rest_alone(edit: Edit) -> None:
    before = digests()
    edit("attacks.benign.weather", lambda text: f"{text}\nMORE = 2\n")
    found = changed(before)
    assert found and all(name.startswith("perturbations/corruption.") for name in found)


def test_a_module_that_decides_no_number_is_in_no_digest(edit: Edit) -> None:
    before = digests()
    for module in ("harness.core.errors", "harness.core.registry", "harness.core.files", "harness.plan.planner"):
        edit(module, lambda text: f"{text}\nMORE = 3\n")
    assert changed(before) == set()
    assert not {"harness.cli.main", "harness.cli.console", "harness.store.run_directory"} & set(all_modules())


def test_what_only_type_checkers_import_is_not_followed() -> None:
    assert "harness.run.context" not in code_behind("harness.run.workers.standins.analyses")


def test_what_stands_in_for_a_type_when_the_program_runs_is_followed(edit: Edit) -> None:
    branch = "\nif TYPE_CHECKING:\n    from ..harness.core import memory\nelse:\n    from ..base import classes\n"
    before = code_behind("detectors.logits.odin")
    assert "detectors.base.classes" not in before
    edit("detectors.logits.odin", lambda text: f"{text}{branch}")
    assert code_behind("detectors.logits.odin") == before | code_behind("detectors.base.classes")


def test_imports_of_every_form_are_followed() -> None:
    assert {"harness.core.seeds", "detectors.base.detector", "harness.run.fitted_target"} <= code_behind(
        "harness.run.tasks.adaptive"
    )
    with pytest.raises(FileNotFoundError):
        code_digest("harness.no_such_module")


def test_a_plugin_stands_on_what_it_imports_of_ours(tmp_path: Path, edit: Edit) -> None:
    plain, leaning = tmp_path / "plain.py", tmp_path / "leaning.py"
    plain.write_text("from aftershock.detectors import Detector, register\n")
    leaning.write_text("from aftershock.detectors import Detector\nfrom aftershock.detectors.base.classes import *\n")
    entries = [Entry("x", object, Origin("file", "", str(path))) for path in (plain, leaning)]
    before = [part_digest(entry, "detectors.base.detector") for entry in entries]
    edit("detectors.base.classes", lambda text: f"{text}\nMORE = 1\n")
    after = [part_digest(entry, "detectors.base.detector") for entry in entries]
    assert after[0] == before[0] and after[1] != before[1]
    edit("detectors.base.detector", lambda text: f"{text}\nMORE = 1\n")
    assert part_digest(entries[0], "detectors.base.detector") != after[0]


def test_a_combination_stands_on_its_members() -> None:
    made = DETECTORS.get("combination")(of=["msp", {"name": "combination", "of": ["lid", "energy"]}])
    assert made.made_of == ("msp", "combination", "lid", "energy")
