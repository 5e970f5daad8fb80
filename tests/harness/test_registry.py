"""Names to parts: looked up only when named, and a broken plugin takes nothing else down."""

from __future__ import annotations

import itertools
import subprocess
import sys
import textwrap
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.plugin_files import load_plugin_file
from aftershock.harness.core.registry import DETECTORS, REGISTRIES, Entry, Origin, Registry, did_you_mean

numbers = itertools.count()


@pytest.fixture
def registry() -> Registry:
    # Plugins are imported here: what goes to other processes is in test_workers.py.
    return Registry("detectors", {"json-decoder": "json:JSONDecoder", "no-such": "no_such_module_at_all:X"}, here=True)


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., str]]:
    """Puts distributions with entry points on the path, as pip would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    modules: list[str] = []

    def make(distribution: str, points: dict[str, str], code: str, group: str = "aftershock.detectors") -> str:
        module = f"plugin_module_{next(numbers)}"
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(code), encoding="utf-8")
        info = tmp_path / f"{distribution.replace('-', '_')}-1.2.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.2\n")
        lines = "\n".join(f"{name} = {target.format(module=module)}" for name, target in points.items())
        (info / "entry_points.txt").write_text(f"[{group}]\n{lines}\n")
        return module

    yield make
    for module in modules:
        sys.modules.pop(module, None)


def test_built_ins_are_imported_when_named(registry: Registry) -> None:
    assert isinstance(registry._entries["json-decoder"].target, str)
    import json

    assert registry.get("json-decoder") is json.JSONDecoder
    assert registry.entry("json-decoder").origin.package == "aftershock"


def test_names_load_nothing(registry: Registry) -> None:
    assert {"json-decoder", "no-such"} <= set(registry.names())
    assert isinstance(registry._entries["json-decoder"].target, str)


def test_nothing_heavy_is_imported_by_the_registries() -> None:
    code = "import sys, aftershock.harness.core.registry as r; assert r.REGISTRIES; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_every_built_in_can_be_loaded() -> None:
    for registry in REGISTRIES.values():
        for name in registry.builtins:
            assert registry.get(name) is not None


def test_an_unknown_name_has_the_nearest_known(registry: Registry) -> None:
    with pytest.raises(UsageError, match=r"no detector 'json-decodr'.*did you mean 'json-decoder'"):
        registry.get("json-decodr")


def test_a_plugin_is_found_by_name_and_in_lists(registry: Registry, install: Callable[..., str]) -> None:
    module = install("my-plugin", {"mine": "{module}:Mine"}, "class Mine: pass")
    assert module not in sys.modules
    entry = registry.entry("mine")
    assert entry.target.__module__ == module
    assert (entry.origin.package, entry.origin.version) == ("my-plugin", "1.2")
    with pytest.warns(UserWarning, match="'no-such' of aftershock"):
        assert "mine" in [e.name for e in registry.entries()]


def test_looking_up_another_name_loads_no_plugin(registry: Registry, install: Callable[..., str]) -> None:
    module = install("my-plugin", {"mine": "{module}:Mine"}, "class Mine: pass")
    registry.get("json-decoder")
    assert module not in sys.modules
    install("other-plugin", {"other": "{module}:Mine"}, "class Mine: pass")
    registry.get("other")
    assert module not in sys.modules


BROKEN = {
    "import": "import no_such_module_either",
    "syntax": "def (",
    "attribute": "x = 1",
    "exit": "raise SystemExit(3)",
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_plugin_is_one_warning_and_the_rest_goes_on(
    how: str, registry: Registry, install: Callable[..., str]
) -> None:
    install("broken-plugin", {"bad": "{module}:Bad", "worse": "{module}:Bad"}, BROKEN[how])
    install("good-plugin", {"good": "{module}:Good"}, "class Good: pass")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            assert "good" in registry.names()
            assert "bad" not in registry.names()
        assert registry.get("good").__name__ == "Good"
        with pytest.raises(UsageError, match=r"broken-plugin 1\.2 could not be loaded"):
            registry.get("bad")
        with pytest.raises(UsageError, match="no detector 'nothing-like-it'"):
            registry.get("nothing-like-it")
    said = [str(w.message) for w in caught if "broken-plugin" in str(w.message)]
    assert len(said) == 1, said
    assert "broken-plugin 1.2 could not be loaded" in said[0]


def test_a_broken_part_is_left_out_of_lists_with_a_warning(registry: Registry) -> None:
    with pytest.warns(UserWarning, match="'no-such' of aftershock .* is broken"):
        assert [e.name for e in registry.entries() if e.origin.package == "aftershock"] == ["json-decoder"]


def test_a_plugin_cannot_take_a_name(registry: Registry, install: Callable[..., str]) -> None:
    install("thief", {"json-decoder": "{module}:Mine"}, "class Mine: pass")
    with pytest.warns(
        UserWarning, match="aftershock .* has the detector 'json-decoder'; that of thief 1.2 is not used"
    ):
        registry.names()
    import json

    assert registry.get("json-decoder") is json.JSONDecoder


def test_two_plugins_with_one_name(registry: Registry, install: Callable[..., str]) -> None:
    install("first", {"mine": "{module}:Mine"}, "class Mine: pass")
    install("second", {"mine": "{module}:Mine"}, "class Mine: pass")
    with pytest.warns(UserWarning, match="has the detector 'mine'; that of .* is not used"):
        registry.names()
    assert registry.entry("mine").origin.package in ("first", "second")


def test_a_plugin_that_registers_by_itself_belongs_to_its_distribution(install: Callable[..., str]) -> None:
    name = f"by-decorator-{next(numbers)}"
    install(
        "decorated", {name: "{module}"},
        f"""
        from aftershock.harness.core.registry import DETECTORS
        @DETECTORS.register({name!r})
        class Mine: pass
        """,
    )  # fmt: skip
    assert DETECTORS.entry(name).origin == Origin("decorated", "1.2")


# Local files


def plugin(path: Path, *names: str, before: str = "") -> Path:
    lines = ["from aftershock.harness.core.registry import DETECTORS", before]
    lines += [f"@DETECTORS.register({name!r})\nclass Part{i}: value = 1" for i, name in enumerate(names)]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_local_file_is_loaded_once_and_again_when_it_changed(tmp_path: Path) -> None:
    name = f"local-{next(numbers)}"
    path = plugin(tmp_path / "a.py", name)
    origin = load_plugin_file(path)
    first = DETECTORS.get(name)
    assert DETECTORS.entry(name).origin == origin
    assert origin.path == str(path)
    load_plugin_file(tmp_path / "." / "a.py")
    assert DETECTORS.get(name) is first
    path.write_text(path.read_text().replace("value = 1", "value = 2"))
    load_plugin_file(path)
    assert DETECTORS.get(name).value == 2


def test_a_file_may_add_to_the_search_path_but_takes_nothing_from_it(tmp_path: Path) -> None:
    before, path = list(sys.path), tmp_path / "clears.py"
    path.write_text("import sys\nsys.path[:] = ['added']\n")
    try:
        load_plugin_file(path)
        assert sys.path == ["added", *dict.fromkeys(before)]
    finally:
        sys.path[:] = before


def test_two_files_cannot_share_a_name(tmp_path: Path) -> None:
    name = f"shared-{next(numbers)}"
    load_plugin_file(plugin(tmp_path / "a.py", name))
    with pytest.raises(UsageError, match=r"b\.py registers detector .* but .*a\.py has that name: choose another"):
        load_plugin_file(plugin(tmp_path / "b.py", name))
    with pytest.raises(UsageError, match=r"aftershock .* has that name: choose another"):
        load_plugin_file(plugin(tmp_path / "c.py", "msp"))


def test_a_file_with_an_error_can_be_mended(tmp_path: Path) -> None:
    name = f"mended-{next(numbers)}"
    path = plugin(tmp_path / "a.py", name, before="1 / 0")
    for _ in range(2):
        with pytest.raises(UsageError, match=r"a\.py could not be loaded: ZeroDivisionError"):
            load_plugin_file(path)
    load_plugin_file(plugin(path, name))
    assert DETECTORS.get(name)


def test_a_file_may_use_a_plugin_while_it_is_loaded(tmp_path: Path, install: Callable[..., str]) -> None:
    inner, outer = f"inner-{next(numbers)}", f"outer-{next(numbers)}"
    install("inner-plugin", {inner: "{module}:Inner"}, "class Inner: pass")
    path = plugin(tmp_path / "a.py", outer, before=f"DETECTORS.get({inner!r})")
    load_plugin_file(path)
    # What the file registers after the look-up is still the file's.
    assert DETECTORS.entry(outer).origin.path == str(path)
    assert DETECTORS.entry(inner).origin.package == "inner-plugin"


def test_a_session_may_run_a_cell_twice() -> None:
    name = f"cell-{next(numbers)}"
    made = [type("Mine", (), {"__module__": "__main__"}) for _ in range(2)]
    for cls in made:
        DETECTORS.register(name)(cls)
    assert DETECTORS.get(name) is made[1]
    assert DETECTORS.entry(name).origin.package == "session"


def test_an_entry_loads_a_module_or_its_attribute() -> None:
    import json

    assert Entry("a", "json", Origin("x")).load() is json
    assert Entry("a", "json:loads", Origin("x")).load() is json.loads


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("pdg", ["pgd", "fgsm"], " (did you mean 'pgd'?)"),
        ("PGD", ["pgd"], " (did you mean 'pgd'?)"),
        ("cw", ["torchattacks.CW"], " (did you mean 'torchattacks.CW'?)"),
        ("zzz", ["pgd"], ""),
        ("", ["pgd"], ""),
        ("x", [], ""),
    ],
)
def test_did_you_mean(name: str, known: list[str], found: str) -> None:
    assert did_you_mean(name, known) == found
