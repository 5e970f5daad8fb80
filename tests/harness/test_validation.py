"""A suite is checked without torch where it names built-in parts alone, and the answer is the same."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from aftershock.harness.cli import validation
from aftershock.harness.cli.main import main
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.parameters import parameters
from aftershock.harness.core.registry import ANALYSES, DETECTORS, MODELS, PERTURBATIONS, Registry
from aftershock.harness.suite.instances import is_standing

# What a part has no default for.
NEEDED: Mapping[str, Any] = {"eps": 0.1, "of": ["msp", "energy"], "std": 0.1}
# It reads images as soon as it is made.
READS = ("file",)


def toml(value: object) -> str:
    """Return a value as TOML."""
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{name} = {toml(held)}" for name, held in value.items()) + " }"
    return json.dumps(value)


def written(folder: Path, **parts: list[dict[str, Any]]) -> Path:
    """Write a suite on digits."""
    lines = ['name = "all"', "seeds = [0]", "[threat]", 'norm = "linf"', "eps = 0.1", "[data]", 'name = "digits"']
    lines += ["fit = 100", "calibrate = 40", "evaluate = 40"]
    for kind in ("models", "perturbations", "detectors", "analyses"):
        for part in parts.get(kind, []):
            lines += [f"[[{kind}]]", *(f"{name} = {toml(value)}" for name, value in part.items())]
    path = folder / "suite.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def needed(part: Any) -> dict[str, Any]:
    return {name: NEEDED[name] for name, p in parameters(part).items() if p.default is p.empty and name in NEEDED}


def every(registry: Registry) -> list[dict[str, Any]]:
    return [
        {"name": name, **needed(registry.get(name))} for name in registry.builtins
        if name not in READS and not (registry is ANALYSES and is_standing(registry.get(name)))
    ]  # fmt: skip


def with_torch(suite: Path | str) -> dict[str, Any]:
    """Return what is found out in this process."""
    try:
        return {"sentences": list(validation._checked(str(suite), (), None, True))}
    except UsageError as error:
        return {"mistakes": str(error)}


def test_without_torch_every_part_is_as_with_it(tmp_path: Path) -> None:
    detectors = [
        part
        | (
            {"fit_on": ["fgsm"]}
            if DETECTORS.get(part["name"])(**needed(DETECTORS.get(part["name"]))).supervised
            else {}
        )
        for part in every(DETECTORS)
    ]
    path = written(
        tmp_path, models=every(MODELS), perturbations=every(PERTURBATIONS), detectors=detectors,
        analyses=every(ANALYSES),
    )  # fmt: skip
    found = validation._without_torch(str(path))
    assert found == with_torch(path)
    assert "sentences" in found, found


MISTAKES: list[tuple[str, dict[str, Any]]] = [
    ("models", {"name": "cnnn"}),
    ("models", {"name": "mlp", "width": "wide"}),
    ("models", {"name": "mlp", "widht": 3}),
    ("perturbations", {"name": "fgsmm"}),
    ("perturbations", {"name": "pgd", "eps": 3.0}),
    ("perturbations", {"name": "pgd", "eps": 0.1, "restarts": 2, "random_start": False}),
    ("perturbations", {"name": "pgd", "eps": [0.1, "x"], "steps": 0}),
    ("perturbations", {"name": "autoattack", "eps": 0.1, "norm": "l1"}),
    ("perturbations", {"name": "adaptive", "eps": 0.2, "large_eps": 0.1}),
    ("perturbations", {"name": "corruption.fog", "severity": 9}),
    ("perturbations", {"name": "torchattacks.Pixle", "smallest_patch": 5, "largest_patch": 2}),
    ("perturbations", {"name": "foolbox.LinfDeepFoolAttack", "steps": -1}),
    ("detectors", {"name": "bitvector"}),
    ("detectors", {"name": "msp", "fit_on": ["nothing"]}),
    ("detectors", {"name": "feature-squeezing", "window": 4, "search": 4}),
    ("detectors", {"name": "kde", "bandwidth": -1}),
    ("detectors", {"name": "combination", "of": ["mssp"]}),
    ("detectors", {"name": "mahalanobis", "layers": "last:x"}),
    ("analyses", {"name": "ldam", "sampler": {"chains": 0}}),
    ("analyses", {"name": "propagation"}),
]


def test_without_torch_mistakes_are_as_with_it(tmp_path: Path) -> None:
    wrong: dict[str, list[dict[str, Any]]] = {}
    for number, (kind, part) in enumerate(MISTAKES):
        wrong.setdefault(kind, []).append({**part, "label": f"p{number}"})
    path = written(tmp_path, **wrong)
    found = validation._without_torch(str(path))
    # A model that is neither built in nor of torchvision is known to be neither by torchvision alone.
    assert found == {}
    wrong["models"] = wrong["models"][1:]
    path = written(tmp_path, **wrong)
    found = validation._without_torch(str(path))
    assert found == with_torch(path)
    assert len(found["mistakes"].splitlines()) >= len(MISTAKES) - 1


@pytest.mark.parametrize("suite", ["no-such-suite", "broken.toml"])
def test_without_torch_what_cannot_be_read_is_said(suite: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text("name = [", "utf-8")
    assert validation._without_torch(suite) == with_torch(suite)


def test_what_reads_images_needs_torch(tmp_path: Path) -> None:
    import numpy as np

    images = tmp_path / "images.npz"
    np.savez(images, x_adv=np.zeros((3, 1, 8, 8), np.float32), index=np.arange(3))
    path = written(
        tmp_path, models=[{"name": "mlp"}], perturbations=[{"name": "file", "path": str(images)}],
        detectors=[{"name": "msp"}],
    )  # fmt: skip
    assert validation._without_torch(str(path)) == {}


def test_code_of_others_is_not_run_with_mocks() -> None:
    assert validation._names_no_code(None)
    assert validation._names_no_code({"models": [{"name": "mlp"}]})
    assert validation._names_no_code({"models": 3, "plugins": []})
    assert not validation._names_no_code({"models": [{"factory": "net.py:net"}]})
    assert not validation._names_no_code({"plugins": ["mine.py"]})


def test_a_mistake_is_a_sentence_and_a_status(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, models=[{"name": "mlp"}], detectors=[{"name": "mspp"}])
    saved = sys.modules.pop("torch")
    try:
        with pytest.raises(SystemExit) as ended:
            main(["validate", str(path)])
    finally:
        sys.modules["torch"] = saved
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "did you mean 'msp'" in said and f"{path}:" in said
