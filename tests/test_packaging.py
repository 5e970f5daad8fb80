"""What is built from the repository, whose root is the package: all of it, nothing else, and it works elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import aftershock
import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("analyses", "attacks", "detectors", "harness", "reports")
BESIDE = (
    "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "README.md", "SECURITY.md",
    "pyproject.toml", "tox.ini",
)  # fmt: skip
# What a working checkout has lying about; planted before building.
JUNK = (
    "build/lib/aftershock/detectors/ghost.py",
    "build/lib/aftershock/reports/templates/ghost.html",
    "dist/aftershock-0.0.1.tar.gz",
    "runs/quick/run.json",
    ".tox/tests/pyvenv.cfg",
    ".ci/venv/pyvenv.cfg",
    "notes/idea.py",
    "harness/__pycache__/cli.cpython-311.pyc",
    "tests/__pycache__/conftest.cpython-311.pyc",
    "tests/plugin_example/build/lib/aftershock_example/__init__.py",
    "tests/plugin_example/src/aftershock_example.egg-info/PKG-INFO",
)


def files_below(folder: Path) -> set[str]:
    """The paths of the files that belong to the repository, relative to its root."""
    found = (p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
    return {p.relative_to(folder.parent).as_posix() for p in found}


def package_files(root: Path) -> set[str]:
    """What the package is made of, as paths below ``aftershock/``."""
    return {"__init__.py", "py.typed"}.union(*(files_below(root / room) for room in ROOMS))


def run(command: Sequence[object], cwd: Path, **environment: str) -> str:
    """What a command that must succeed prints."""
    whole = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=cwd, env=whole, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Built:
    """A copy of the repository and what was built from it."""

    source: Path
    sdist: set[str]
    wheel: Path


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("packaging")
    source = folder / "checkout"
    source.mkdir()
    leave = shutil.ignore_patterns("__pycache__", "build", "*.egg-info")
    for name in (*ROOMS, "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=leave)
    for name in ("__init__.py", "py.typed", *BESIDE):
        shutil.copy2(ROOT / name, source / name)
    for name in JUNK:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("# junk\n")
    # Without --sdist or --wheel the wheel is built from the sdist, as installers from an index would do.
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", source], folder)
    (archive,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    with tarfile.open(archive) as opened:
        members = {m.name.partition("/")[2] for m in opened.getmembers() if m.isfile()}
    return Built(source, members, wheel)


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel, as pip installs it."""
    target = tmp_path_factory.mktemp("installed") / "target"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run([*command, "--no-index", "--target", target, built.wheel], target.parent)
    return target


def settings() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return found


def test_the_list_of_packages_is_the_tree() -> None:
    folders = {Path(name).parent for name in package_files(ROOT)}
    expected = {".".join(("aftershock", *folder.parts)) for folder in folders}
    listed = settings()["tool"]["setuptools"]["packages"]  # type: ignore[index]
    assert len(listed) == len(set(listed))
    assert set(listed) == expected


def test_every_package_has_an_init_so_that_it_is_no_namespace() -> None:
    folders = {Path(name).parent for name in package_files(ROOT)}
    assert not [folder for folder in folders if not (ROOT / folder / "__init__.py").is_file()]


def test_no_module_strays_into_the_root() -> None:
    # Each would become a module of the package.
    assert {p.name for p in ROOT.glob("*.py")} == {"__init__.py", "__main__.py"}


def test_the_version_is_said_once() -> None:
    assert settings()["project"]["version"] == aftershock.__version__
    assert f"\nversion: {aftershock.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_wheel_is_the_package_and_nothing_else(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as opened:
        names = set(opened.namelist())
    about = {name for name in names if name.startswith(f"aftershock-{aftershock.__version__}.dist-info/")}
    junk = set(JUNK)
    expected = {f"aftershock/{name}" for name in package_files(built.source) - junk}
    assert names - about == expected
    assert {
        "aftershock/py.typed",
        "aftershock/harness/suite/builtin/quick.toml",
        "aftershock/harness/suite/builtin/weights/digits-cnn.safetensors",
        "aftershock/reports/templates/index.html",
    } <= (names)
    assert any(name.endswith("/licenses/LICENSE") for name in about)


def test_the_sdist_has_the_package_its_tests_and_no_junk(built: Built) -> None:
    made = {name for name in built.sdist if name.startswith("aftershock.egg-info/")} | {"PKG-INFO", "setup.cfg"}
    expected = package_files(built.source) | files_below(built.source / "tests") | set(BESIDE)
    assert built.sdist - made == expected - set(JUNK)


def test_the_wheel_works_outside_the_repository(installed: Path, tmp_path: Path) -> None:
    seen = {"PYTHONPATH": str(installed), "AFTERSHOCK_CACHE": str(tmp_path / "cache")}
    where = run([sys.executable, "-c", "import aftershock; print(aftershock.__file__)"], tmp_path, **seen)
    assert Path(where.strip()) == installed / "aftershock" / "__init__.py"

    script = installed / "bin" / "aftershock"
    assert run([sys.executable, script, "--version"], tmp_path, **seen).split() == [
        "aftershock",
        aftershock.__version__,
    ]
    detectors = json.loads(run([sys.executable, script, "list", "detectors", "--json"], tmp_path, **seen))
    assert {"bitvector", "codeshift", "latent"} <= {d["name"] for d in detectors if d["available"]}
    assert {d["origin"] for d in detectors if d["name"] == "bitvector"} == {f"aftershock {aftershock.__version__}"}

    suites = {p.stem for p in (ROOT / "harness" / "suite" / "builtin").glob("*.toml")}
    listed = json.loads(run([sys.executable, script, "list", "suites", "--json"], tmp_path, **seen))
    assert {s["name"] for s in listed} == suites
    assert "is valid" in run([sys.executable, script, "validate", "quick"], tmp_path, **seen)

    code = (
        "from pathlib import Path\n"
        "from aftershock.harness.plan.models import find_weights\n"
        "from aftershock.harness.suite.resolve import load_suite\n"
        "print(*find_weights(load_suite('quick'), Path('/nowhere')).values(), sep='\\n')"
    )
    weights = run([sys.executable, "-c", code], tmp_path, **seen).splitlines()
    assert [Path(path).relative_to(installed.resolve()).as_posix() for path in weights] == [
        f"aftershock/harness/suite/builtin/weights/digits-{name}.safetensors" for name in ("cnn", "mlp")
    ]


def test_the_templates_of_the_installed_package_are_found(installed: Path, tmp_path: Path) -> None:
    code = (
        "from importlib.resources import files\n"
        "found = files('aftershock.reports.templates')\n"
        "print(*sorted(p.name for p in found.iterdir() if not p.name.startswith('__')))"
    )
    names = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed)).split()
    expected = {p.name for p in (ROOT / "reports" / "templates").iterdir() if not p.name.startswith("__")}
    assert set(names) == expected
