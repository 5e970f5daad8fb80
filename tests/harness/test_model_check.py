"""What `aftershock validate` says of models: their weights, one batch through them, and nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from aftershock.harness.models import classifier as models
from aftershock.harness.run.model_check import ModelCheck, check_models
from aftershock.harness.suite.resolve import load_suite
from support.commands import Forks
from torch import nn

MODELS = """
import sys
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, shape, classes):
        super().__init__(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 12), nn.ReLU(), nn.Linear(12, classes))

class Soft(Net):
    def forward(self, x):
        return super().forward(x).softmax(1)

class Dict(Net):
    def forward(self, x):
        return {"out": super().forward(x)}

class Large(Net):
    def __init__(self, classes):
        super().__init__((3, 64, 64), classes)

class Linear(nn.Sequential):
    def __init__(self, shape, classes):
        super().__init__(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))

class Fragile(Net):
    def forward(self, x):
        if len(x) == 3:
            raise KeyError("three images")
        return super().forward(x)

def leaves():
    sys.exit(0)
"""
HEAD = """name = "mine"

[data]
{data}
fit = 100
calibrate = 200
evaluate = 50

[threat]
norm = "linf"
eps = 0.1

[[perturbations]]
name = "gaussian"
std = 0.1

[[detectors]]
name = "msp"
"""

Check = Callable[..., tuple[ModelCheck, list[str]]]


@pytest.fixture
def checked(tmp_path: Path) -> Check:
    """Checks model entries of a suite; also returns the lines of its file, from 1."""
    (tmp_path / "mine.py").write_text(MODELS)

    def check(*entries: str, data: str = 'name = "digits"', root: Path | None = None) -> tuple[ModelCheck, list[str]]:
        text = HEAD.format(data=data) + "".join(f"\n[[models]]\n{entry}\n" for entry in entries)
        (tmp_path / "suite.toml").write_text(text)
        suite = load_suite(tmp_path / "suite.toml")
        return check_models(suite, root or tmp_path / "data"), ["", *text.splitlines()]

    return check


def net(shape: tuple[int, ...] = (1, 8, 8), classes: int = 10) -> nn.Module:
    scope: dict[str, Any] = {}
    exec(MODELS, scope)
    made: nn.Module = scope["Net"](shape, classes)
    return made


def test_every_mistake_is_said_at_once_with_the_line_of_its_key(checked: Check, tmp_path: Path) -> None:
    torch.save({"0.weight": torch.zeros(3)}, tmp_path / "other.pt")
    found, lines = checked(
        'factory = "mine.py:Net"\nlabel = "a"\nweights = "nowhere.pt"',
        'factory = "mine.py:Net"\nlabel = "b"\nweights = "other.pt"',
        'label = "c"\nfactory = "mine.py:Dict"',
        'label = "d"\nfactory = "mine.py:Large"',
        'label = "e"\nfactory = "mine.py:Linear"',
        'label = "f"\nfactory = "mine.py:Net"\ntap_modules = ["5"]',
        'label = "g"\nfactory = "mine.py:leaves"',
        'label = "h"\nfactory = "mine.py:Fragile"',
        'label = "i"\nfactory = "mine.py:Net"',
    )
    expected = [
        ("weights", "nowhere.pt"),
        ("weights", "misses 1.weight"),
        ("factory", "'out'"),
        ("factory", "1 x 8 x 8"),
        ("factory", "tap"),
        ("tap_modules", "'5'"),
        ("factory", "sys.exit(0)"),
        ("factory", "three images"),
    ]
    assert len(found.problems) == len(expected)
    for problem, label, (key, word) in zip(found.problems, "abcdefgh", expected, strict=True):
        assert lines[problem.line].startswith(key), problem
        assert word in problem.text
        assert repr(label) in problem.text
        assert "\n" not in problem.text


def test_the_probe_speaks_for_models_that_can_be_used(checked: Check, tmp_path: Path) -> None:
    state = {f"net.{k}": v for k, v in net().state_dict().items()}
    torch.save({"state_dict": state | {"loss.weight": torch.ones(2)}}, tmp_path / "last.ckpt")
    found, _ = checked(
        'label = "soft"\nfactory = "mine.py:Soft"',
        'label = "untrained"\nfactory = "mine.py:Net"',
        'label = "wrong"\nfactory = "mine.py:Net"\nweights = "last.ckpt"',
        'name = "mlp"',
        'label = "later"\nname = "cnn"\nweights = "cnn.pt"\ntrain_if_missing = true',
    )
    assert found.problems == ()
    said = {label: [s for s in found.sentences if s.startswith(f"{label}: ")] for label in
            ("soft", "untrained", "wrong", "mlp", "later")}  # fmt: skip
    assert any("probabilities" in s for s in said["soft"])
    assert any("no weights were given" in s for s in said["untrained"])
    assert any("'net.'" in s and "loss.weight" in s for s in said["wrong"])
    assert any("mean, std and normalise" in s for s in said["wrong"])
    assert [len(said[label]) for label in ("mlp", "later")] == [1, 1]
    assert all("trained" in s for label in ("mlp", "later") for s in said[label])


def test_nothing_is_trained_or_downloaded(checked: Check, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*given: object, **more: object) -> None:
        raise AssertionError("this may not happen")

    monkeypatch.setattr(models, "train", fail)
    monkeypatch.setattr("torchvision.datasets.MNIST.download", fail)
    found, _ = checked('name = "cnn"', data='name = "mnist"')
    assert found.problems == ()
    assert any("mnist" in s and "cannot be read here" in s for s in found.sentences)
    assert list(tmp_path.glob("data/**/*")) == []


def test_without_images_random_ones_of_their_shape_serve(checked: Check) -> None:
    found, lines = checked(
        'label = "a"\nfactory = "mine.py:Large"', 'label = "b"\nfactory = "mine.py:Soft"', data='name = "cifar10"'
    )
    assert [lines[p.line] for p in found.problems] == ['factory = "mine.py:Large"']
    assert any(s.startswith("b: ") and "probabilities" in s for s in found.sentences)
    assert not any("accuracy" in s for s in found.sentences)


def test_without_a_shape_only_weights_are_looked_for(checked: Check) -> None:
    data = 'name = "npz"\npath = "nowhere.npz"'
    found, lines = checked(
        'label = "a"\nfactory = "mine.py:Large"', 'label = "b"\nfactory = "mine.py:Net"\nweights = "b.pt"', data=data
    )
    assert [lines[p.line] for p in found.problems] == ['weights = "b.pt"']
    assert any("No model is built" in s for s in found.sentences)


def test_weights_lie_under_the_data_root_too(checked: Check, tmp_path: Path) -> None:
    root = tmp_path / "elsewhere"
    root.mkdir()
    torch.save(net().state_dict(), root / "net.pt")
    assert checked('factory = "mine.py:Net"\nweights = "net.pt"', root=root)[0].problems == ()


def test_validate_builds_models_unless_told_otherwise(checked: Check, forks: Forks, tmp_path: Path) -> None:
    checked('label = "a"\nfactory = "mine.py:Dict"')
    done = forks("validate", "suite.toml", cwd=tmp_path)
    line = HEAD.format(data='name = "digits"').count("\n") + 4
    assert done.status == 2
    assert f"suite.toml:{line}: " in done.output
    assert "is valid" not in done.output
    assert "Traceback" not in done.output
    done = forks("validate", "suite.toml", "--no-models", cwd=tmp_path)
    assert done.status == 0
    assert "mine is valid" in done.output


def test_a_users_own_images_that_cannot_be_read_are_a_mistake(checked: Check, tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", train_images=np.zeros((4, 8, 8), np.complex64), train_labels=np.zeros(4, np.int64))
    data = f'name = "npz"\npath = "{tmp_path / "own.npz"}"'
    found, lines = checked('name = "mlp"', data=data)
    (problem,) = found.problems
    assert lines[problem.line].startswith("path =")
    # What is not on this machine may be elsewhere: random images serve.
    found, _ = checked('name = "mlp"', data=data.replace("own.npz", "elsewhere.npz"))
    assert not found.problems
