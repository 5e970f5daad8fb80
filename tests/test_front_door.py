"""The front door: quick to open, and what it lists."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = ("torch", "torchvision", "torchattacks", "foolbox", "pandas", "sklearn", "plotly", "scipy", "pytorch_ood")


def python(code: str, cwd: Path, *arguments: str, status: int = 0) -> str:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment |= {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "AFTERSHOCK_CACHE": str(cwd / "cache")}
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, cwd=cwd, timeout=120
    )
    assert found.returncode == status, found.stderr + found.stdout
    return found.stdout


COMMAND = f"""
import sys
from aftershock.harness.cli.main import main
try:
    main(sys.argv[1:])
finally:
    loaded = [name for name in {HEAVY!r} if name in sys.modules]
    assert not loaded, loaded
"""


COMMANDS = (
    "run", "plan", "report", "show", "compare", "export", "list", "validate", "check", "new", "guard", "cache"
)  # fmt: skip


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["--version"],
        *([c, "--help"] for c in COMMANDS),
        ["guard", "export", "--help"],
        ["cache", "prune", "--help"],
    ],
)
def test_help_imports_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    assert python(COMMAND, tmp_path, *arguments)


def test_the_package_is_a_command(tmp_path: Path) -> None:
    # Where scripts are not on the path: notebooks, clusters, several Pythons.
    command = [sys.executable, "-m", "aftershock"]
    environment = {**os.environ, "COLUMNS": "200"}
    done = [
        subprocess.run([*command, *more], capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
        for more in (["--version"], ["validate"], ["run", "--no-such-option"])
    ]
    assert [d.returncode for d in done] == [0, 2, 2]
    assert done[0].stdout.startswith("aftershock ")
    assert "Usage: python -m aftershock run " in done[2].stderr


def test_a_suite_of_built_in_parts_is_checked_without_anything_heavy(tmp_path: Path) -> None:
    assert "quick is valid" in python(COMMAND, tmp_path, "validate", "quick", "--no-models")


def test_help_names_every_command(tmp_path: Path) -> None:
    said = python(COMMAND, tmp_path, "--help")
    for command in COMMANDS:
        assert command in said


def test_the_package_is_imported_lazily(tmp_path: Path) -> None:
    python(
        f"""
import sys, aftershock
assert not [name for name in {(*HEAVY, "pydantic", "numpy")!r} if name in sys.modules]
assert aftershock.__version__
assert dir(aftershock) == sorted(aftershock.__all__)
try:
    aftershock.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise SystemExit("no AttributeError")
for name in aftershock.__all__:
    getattr(aftershock, name)
# What was imported meanwhile is no public name.
assert dir(aftershock) == sorted(aftershock.__all__)
""",
        tmp_path,
    )


LISTS = (
    f"HEAVY = {HEAVY}"
    + """
import json, sys
from aftershock.harness.cli.main import app
from typer.testing import CliRunner
found = {}
for kind in ("perturbations", "detectors", "models", "datasets", "analyses", "suites"):
    result = CliRunner().invoke(app, ["list", kind, "--json"])
    assert result.exit_code == 0, (kind, result.output, result.exception)
    found[kind] = json.loads(result.stdout)
    plain = CliRunner().invoke(app, ["list", kind])
    assert plain.exit_code == 0, (kind, plain.output, plain.exception)
    assert all(item["name"] in plain.stdout for item in found[kind]), plain.stdout
heavy = sorted({name.partition(".")[0] for name in sys.modules} & set(HEAVY))
assert not heavy, heavy
print(json.dumps(found))
"""
)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, object]]]:
    found: dict[str, list[dict[str, object]]] = json.loads(python(LISTS, tmp_path_factory.mktemp("lists")))
    return found


@pytest.mark.parametrize(
    ("kind", "word", "some"),
    [
        ("perturbations", "perturbation", {"fgsm", "pgd", "gaussian", "file", "torchattacks.CW"}),
        ("detectors", "detector", {"msp", "energy", "mahalanobis", "bitvector", "codeshift", "latent"}),
        ("models", "model", {"mlp", "cnn", "resnet20"}),
        ("datasets", "dataset", {"digits", "mnist", "cifar10", "npz"}),
        ("analyses", "analysis", {"propagation"}),
        ("suites", "suite", {"quick"}),
    ],
)
def test_lists_say_what_can_be_named(
    kind: str, word: str, some: set[str], lists: dict[str, list[dict[str, object]]]
) -> None:
    found = lists[kind]
    names = [item["name"] for item in found]
    assert some <= set(names)
    assert len(names) == len(set(names))
    for item in found:
        assert item["kind"] == word
        assert isinstance(item["available"], bool)
        assert bool(item["reason"]) == (not item["available"])
        assert item["summary"], item["name"]
        package, _, version = str(item["origin"]).partition(" ")
        assert package
        if package == "aftershock":
            assert version


def test_lists_tell_what_matters_of_their_kind(lists: dict[str, list[dict[str, object]]]) -> None:
    pgd = next(item for item in lists["perturbations"] if item["name"] == "pgd")
    assert (pgd["perturbation_kind"], pgd["family"], pgd["norm"], pgd["box"]) == ("attack", "pgd", "linf", "white")
    assert next(i for i in lists["detectors"] if i["name"] == "msp")["surrogate"] == "exact"
