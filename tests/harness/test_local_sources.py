"""A user's file is known by everything behind it: modules that it imports, files that it names, packages, state."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from aftershock.harness.core.content_keys import FileDigests, sources_digest
from aftershock.harness.core.local_sources import local_sources
from aftershock.harness.models.weights import network_digest
from aftershock.harness.run.up_to_date import fingerprint
from support.commands import Forks
from support.suites import Tiny
from torch import nn

# What the root file says, and which of the files below decide what it does.
FILES = (
    "helper.py", "other.py", "far/away.py", "pack/__init__.py", "pack/inner.py", "pack/deep/__init__.py",
    "pack/deep/leaf.py", "pack/star.py", "bare/mod.py", "w.pt", "notes.txt", "far/table.npz",
)  # fmt: skip
SEEN: dict[str, set[str]] = {
    "import helper": {"helper.py", "other.py"},
    "import helper as h, os": {"helper.py", "other.py"},
    "from helper import x": {"helper.py", "other.py"},
    "def f():\n    from other import y": {"other.py"},
    "try:\n    import other\nexcept ImportError:\n    pass": {"other.py"},
    "import pack": {"pack/__init__.py", "other.py"},
    "import pack.inner": {
        "pack/__init__.py",
        "pack/inner.py",
        "pack/deep/__init__.py",
        "pack/deep/leaf.py",
        "other.py",
    },
    "from pack.deep.leaf import z": {"pack/__init__.py", "pack/deep/__init__.py", "pack/deep/leaf.py", "other.py"},
    "from pack.deep import leaf": {"pack/__init__.py", "pack/deep/__init__.py", "pack/deep/leaf.py", "other.py"},
    "from pack import star": {"pack/__init__.py", "pack/star.py", "other.py"},
    "from . import other": {"other.py"},
    "from .other import y": {"other.py"},
    "from bare import mod": {"bare/mod.py"},
    "import bare.mod": {"bare/mod.py"},
    "import importlib\nm = importlib.import_module('other')": {"other.py"},
    "m = __import__('other')": {"other.py"},
    "import torch\ntorch.load(HERE / 'w.pt')": {"w.pt"},
    "open('notes.txt')": set(),
    "import sys\nsys.path.insert(0, 'far')\nimport away": {"far/away.py", "far/table.npz"},
    "exec(open('other.py').read())": {"other.py"},
    "import os, json, numpy": set(),
    "def broken(:": set(),
}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x = 1\n")
    (tmp_path / "helper.py").write_text("import other\nx = 1\n")
    (tmp_path / "pack/__init__.py").write_text("import other\n")
    (tmp_path / "pack/inner.py").write_text("from .deep.leaf import x\n")
    (tmp_path / "far/away.py").write_text("import numpy\nt = numpy.load('table.npz')\n")
    return tmp_path


@pytest.mark.parametrize("text", SEEN)
def test_what_is_behind_a_file(text: str, place: Path) -> None:
    root = place / "root.py"
    root.write_text(text)
    found = local_sources(root)
    assert found.files[0] == root
    assert {f.relative_to(place).as_posix() for f in found.files[1:]} == SEEN[text]
    before = sources_digest(root)
    for name in FILES:
        held = (place / name).read_text()
        (place / name).write_text(held + "# changed\n")
        assert (sources_digest(root) != before) == (name in SEEN[text]), name
        (place / name).write_text(held)
    assert sources_digest(root) == before


def test_files_that_import_each_other_end(place: Path) -> None:
    (place / "other.py").write_text("import helper\n")
    assert len(local_sources(place / "helper.py").files) == 2


def test_packages_count_by_version_and_unknown_names_are_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = place / "root.py"
    root.write_text(
        "import numpy.linalg, os.path\nfrom torch import nn\nimport no_such_module_at_all\nfrom .gone import x\n"
    )
    found = local_sources(root)
    assert found.packages == ("numpy", "torch")
    assert found.unknown == (".gone", "no_such_module_at_all")
    before = sources_digest(root)
    keys = importlib.import_module("aftershock.harness.core.content_keys")
    monkeypatch.setattr(keys, "_package_versions", lambda names: {"numpy": "0.1", "torch": "0.1"})
    assert sources_digest(root) != before


def test_the_place_of_a_file_does_not_matter(place: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    for folder in (place, elsewhere):
        (folder / "root.py").write_text("import helper\n")
        (folder / "helper.py").write_text("x = 1\n")
    assert sources_digest(place / "root.py") == sources_digest(elsewhere / "root.py")


def test_an_edit_counts_once_the_module_is_loaded_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process goes on with what it imported: numbers of old code may not get the new code's key."""
    name = "helper_of_a_session"
    (place / "root.py").write_text(f"import {name}\n")
    (place / f"{name}.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(str(place))
    module = importlib.import_module(name)
    before = sources_digest(place / "root.py")
    (place / f"{name}.py").write_text("x = 22\n")
    assert sources_digest(place / "root.py") == before
    importlib.reload(module)
    assert sources_digest(place / "root.py") != before
    del sys.modules[name]


class Scaled(nn.Module):
    def __init__(self, scale: float, kept: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.layer = nn.Linear(2, 2)
        nn.init.constant_(self.layer.weight, 1.0)
        nn.init.constant_(self.layer.bias, 0.0)
        self.register_buffer("kept", torch.tensor(kept), persistent=False)


def test_the_digest_of_a_network_sees_all_that_it_holds() -> None:
    plain = network_digest(Scaled(1.0))
    assert network_digest(Scaled(1.0)) == plain
    assert network_digest(Scaled(1.0).train()) == plain
    changed = Scaled(1.0)
    with torch.no_grad():
        changed.layer.bias[0] = 1e-6
    found = {plain, network_digest(changed), network_digest(Scaled(2.0)), network_digest(Scaled(1.0, 2.0))}
    assert len(found) == 4


MODEL = """
import pathlib
import sys
HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE))
import torch
from layers import first

def ready():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), first(), torch.nn.ReLU(), torch.nn.Linear(8, 10))
    stored = torch.load("-".join(["the", "state"]))
    net[1].bias.data += stored
    return net
"""


def test_a_factory_that_reads_other_files_is_another_model_when_they_change(
    tmp_path: Path, tiny: Tiny, forks: Forks
) -> None:
    def run() -> tuple[float, bool]:
        done = forks("run", "suite.toml", "--out", "run", cwd=tmp_path, AFTERSHOCK_CACHE=str(tmp_path / "cache"))
        assert done.status == 0, done.output
        energy = (tmp_path / "run" / "tables" / "metrics.csv").read_text()
        return float(hash(energy)), "No cell was missing" in done.output

    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "layers.py").write_text("import torch\ndef first():\n    return torch.nn.Linear(64, 8)\n")
    torch.save(torch.zeros(8), tmp_path / "the-state")
    tiny(
        tmp_path / "suite.toml", [{"name": "gaussian", "std": 0.5}], [{"name": "energy"}], model=None,
        data={"evaluate": 20},
    )  # fmt: skip
    text = (tmp_path / "suite.toml").read_text()
    start, end = text.index("[[models]]"), text.index("[[perturbations]]")
    (tmp_path / "suite.toml").write_text(text[:start] + '[[models]]\nfactory = "net.py:ready"\n' + text[end:])
    first, nothing = run()
    assert not nothing
    assert run() == (first, True)
    # A file whose name no source tells: only the state of what was built does.
    torch.save(torch.full((8,), 3.0), tmp_path / "the-state")
    second, nothing = run()
    assert (second == first, nothing) == (False, False)
    (tmp_path / "layers.py").write_text(
        "import torch\ndef first():\n    return torch.nn.Sequential(torch.nn.Linear(64, 8), torch.nn.Tanh())[0]\n"
    )
    assert run()[1] is False


SUITE = {
    "name": "a", "data": {"name": "digits", "fit": 9, "calibrate": 9, "evaluate": 9},
    "threat": {"norm": "linf", "eps": 0.1}, "models": [{"name": "mlp"}], "perturbations": [{"name": "fgsm"}],
    "detectors": [{"name": "msp"}],
}  # fmt: skip


def stamp(place: Path, **changes: object) -> str | None:
    return fingerprint({**SUITE, **changes}, place, (), {}, place, FileDigests(None))


def test_what_decides_without_being_read_has_no_fingerprint(place: Path) -> None:
    (place / "root.py").write_text("import helper\n")
    plain = stamp(place)
    assert plain is not None
    assert stamp(place, models=[{"factory": "root.py:make"}]) is None
    assert stamp(place, models=[{"name": "mlp"}, {"factory": "json:loads"}]) is None
    assert stamp(place, models=[{"name": "of-a-plugin"}], plugins=["root.py"]) is None
    weighted = stamp(place, models=[{"factory": "root.py:make", "weights": "w.pt"}])
    trained = stamp(place, models=[{"factory": "root.py:make", "train_if_missing": True}])
    own = stamp(place, plugins=["root.py"])
    assert len({plain, weighted, trained, own} - {None}) == 4
    # What its plugins import decides too.
    for changed in ("helper.py", "other.py"):
        (place / changed).write_text((place / changed).read_text() + "# changed\n")
        assert stamp(place, plugins=["root.py"]) not in (None, own)
        assert stamp(place) == plain
        own = stamp(place, plugins=["root.py"])
    (place / "helper.py").write_text("import decided_elsewhere\n")
    assert stamp(place, plugins=["root.py"]) is None


def test_sources_are_read_and_not_run(place: Path) -> None:
    (place / "root.py").write_text("import helper\nopen('ran', 'w')\n")
    (place / "helper.py").write_text("open('ran', 'w')\n")
    code = (
        "import sys; from aftershock.harness.core.local_sources import local_sources as f; from pathlib import Path; "
    )
    code += "f(Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(place / "root.py")], check=True, cwd=place, timeout=60)
    assert not (place / "ran").exists()
    assert json.dumps([f.name for f in local_sources(place / "root.py").files]) == '["root.py", "helper.py"]'
