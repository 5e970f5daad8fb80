"""What `aftershock list` says of built-in parts without importing them, beside what the parts say of themselves."""

from __future__ import annotations

import importlib.util
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import ModuleType

import pytest
from aftershock.harness.cli import catalogue
from aftershock.harness.core.registry import PACKAGE, REGISTRIES, Registry

ROOT = Path(__file__).parents[2]
DETECTOR = "aftershock.detectors.logits.baselines:Energy"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_catalogue", ROOT / "docs" / "tools" / "catalogue.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_is_written_of_built_in_parts_is_current(tool: ModuleType) -> None:
    assert tool.FILE.read_text(encoding="utf-8") == tool.text(), "run: python docs/tools/catalogue.py"


@pytest.mark.parametrize("kind", REGISTRIES)
def test_a_list_is_the_same_whether_or_not_parts_are_imported(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    imported = REGISTRIES[kind]
    mine = {e.name for e in imported.entries() if e.origin.package == PACKAGE}
    expected = [item for item in catalogue.describe(kind) if item["name"] in mine]
    monkeypatch.setitem(REGISTRIES, kind, Registry(kind, imported.manifest))
    found = [item for item in catalogue.describe(kind) if item["name"] in mine]
    assert found == expected
    assert all(isinstance(e.target, str) for e in REGISTRIES[kind].entries(later=mine) if e.name in mine)


def test_a_part_without_its_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(package: str) -> str:
        raise PackageNotFoundError(package)

    monkeypatch.setitem(REGISTRIES, "perturbations", Registry("perturbations", REGISTRIES["perturbations"].manifest))
    monkeypatch.setattr(catalogue, "version", version)
    found = {item["name"]: item for item in catalogue.describe("perturbations")}
    assert (
        not found["torchattacks.CW"]["available"] and "pip install torchattacks" in found["torchattacks.CW"]["reason"]
    )
    assert found["pgd"]["available"] and found["pgd"]["reason"] == ""


def test_a_built_in_part_of_which_nothing_is_written_describes_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REGISTRIES, "detectors", Registry("detectors", {"newest": DETECTOR}))
    (found,) = catalogue.describe("detectors")
    assert (found["name"], found["surrogate"]) == ("newest", "exact")
