"""Models: architectures, factories, normalisation, weights from files, and clean accuracy."""

from __future__ import annotations

import argparse
import inspect
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.parameters import bind
from aftershock.harness.data import sets as datasets
from aftershock.harness.data.types import ImageSplit
from aftershock.harness.models.architectures import BasicBlock, resnet4b, resnet20, smallcnn, torchvision_names
from aftershock.harness.models.classifier import (
    Classifier,
    ModelSpec,
    Normalise,
    Source,
    accuracy,
    accuracy_warning,
    build,
    is_near_chance,
    load_weights,
    obtain,
)
from aftershock.harness.models.factories import model_factory
from aftershock.harness.models.weights import save_weights
from aftershock.harness.plan.models import find_weights, model_spec
from aftershock.harness.suite.resolve import load_suite
from aftershock.harness.tracing.recorder import discover
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

REAL = os.environ.get("AFTERSHOCK_DATA")
IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
RGB = ((3, 32, 32), 10, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3))


def sentence(error: pytest.ExceptionInfo[UsageError]) -> str:
    text = str(error.value)
    assert "\n" not in text, text
    assert len(text) < 500, text
    return text


# --- architectures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet20", "resnet4b"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 40, 64), (1, 4, 5)])
def test_built_in_models_take_images_of_any_usual_shape(name: str, shape: tuple[int, int, int]) -> None:
    channels = shape[0]
    model = build(ModelSpec(name), shape, 7, (0.5,) * channels, (0.3,) * channels)
    assert not model.training
    assert model(torch.rand(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "millions"), [("resnet20", 0.27), ("resnet32", 0.46), ("resnet44", 0.66), ("resnet56", 0.85)]
)
def test_resnets_have_the_depth_and_size_of_the_paper(name: str, millions: float) -> None:
    network = build(ModelSpec(name), *RGB).network
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == int(name.removeprefix("resnet"))
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 2) == pytest.approx(millions, abs=0.011)


def test_smallcnn_takes_images_of_sixteen_pixels_and_more() -> None:
    for shape in ((1, 16, 16), (1, 17, 30), (3, 32, 32)):
        model = build(ModelSpec("smallcnn"), shape, 7, (0.5,) * shape[0], (0.3,) * shape[0])
        assert model(torch.rand(3, *shape)).shape == (3, 7)
    with pytest.raises(UsageError, match="at least 16 x 16"):
        build(ModelSpec("smallcnn"), (1, 15, 28), 7, (0.5,), (0.3,))


@pytest.mark.parametrize(
    ("make", "shape", "taps", "units", "parameters"),
    [
        # Convolutions of 26, 24, 10 and 8 pixels, and two hidden layers.
        (smallcnn, (1, 28, 28), 6, 32 * (26**2 + 24**2) + 64 * (10**2 + 8**2) + 400, 312_202),
        # The 14,436 ReLUs that the authors count.
        (resnet4b, (3, 32, 32), 10, 14_436, 123_734),
    ],
)
def test_the_networks_of_the_robust_suites_have_the_sizes_that_were_published(
    make: Callable[..., nn.Module], shape: tuple[int, int, int], taps: int, units: int, parameters: int
) -> None:
    network = make(shape, 10).eval()
    seen = discover(network, torch.rand(1, *shape))
    assert (len(seen), sum(tap.units for tap in seen)) == (taps, units)
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_the_shortcut_subsamples_and_pads_with_zero_maps() -> None:
    block = BasicBlock(4, 8, 2).eval()
    nn.init.zeros_(block.bn2.weight)  # silences the convolutions: what is left is the shortcut
    x = torch.rand(2, 4, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()


def test_resnet_names_are_those_of_the_common_checkpoints() -> None:
    names = set(resnet20((3, 32, 32), 10).state_dict())
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer3.2.bn2.bias", "linear.bias"} <= names
    assert not any("shortcut" in n or "downsample" in n for n in names)


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec("cnn", params={"width": 0}),
        ModelSpec("mlp", params={"dropout": 1.0}),
        ModelSpec("mlp", params={"depth": 0}),
        ModelSpec("resnet20", params={"width": -1}),
    ],
    ids=lambda s: f"{s.name}-{next(iter(s.params))}",
)
def test_impossible_sizes_are_one_sentence(spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match=next(iter(spec.params))) as error:
        build(spec, *RGB)
    sentence(error)


def test_dropout_changes_nothing_in_eval_mode() -> None:
    x = torch.rand(2, 3, 32, 32)
    for name in ("mlp", "cnn"):
        plain, dropped = (build(ModelSpec(name, params={"dropout": p}), *RGB, seed=3) for p in (0.0, 0.5))
        assert torch.equal(plain(x), dropped(x))
        assert not torch.equal(dropped.train()(x), dropped(x)), "in train mode it draws"


# --- building ---------------------------------------------------------------------------------------------------


def test_weights_depend_on_the_seed_alone() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = build(ModelSpec("cnn"), *RGB, seed=5)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is untouched"
    torch.manual_seed(99)
    again, other = build(ModelSpec("cnn"), *RGB, seed=5), build(ModelSpec("cnn"), *RGB, seed=6)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.get_parameter("network.conv1.weight"), other.get_parameter("network.conv1.weight"))


def test_normalisation_is_a_layer_before_the_network() -> None:
    mean, std = RGB[2], RGB[3]
    x = torch.rand(4, 3, 32, 32)
    model = build(ModelSpec("mlp"), *RGB)
    expected = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    torch.testing.assert_close(model(x), model.network(expected))
    own = build(ModelSpec("mlp", **IMAGENET), *RGB)
    assert own.get_buffer("normalise.mean").flatten().tolist() == pytest.approx(IMAGENET["mean"])
    bare = build(ModelSpec("mlp", normalise=False), *RGB)
    assert torch.equal(bare(x), bare.network(x))
    assert not any(k.startswith("normalise") for k in model.network.state_dict())


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5, 0.5), (0.2, 0.2)), ((0.5,), (0.2,) * 3), ((0.5,) * 3, (0.2, 0.0, 0.2)), ((np.nan,), (1.0,))],
)
def test_wrong_normalisation_is_one_sentence(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    with pytest.raises(UsageError) as error:
        build(ModelSpec("mlp", mean=mean, std=std), *RGB)
    sentence(error)


def test_torchvision_classifiers_by_name() -> None:
    for name in ("resnet18", "torchvision.resnet18"):
        model = build(ModelSpec(name), (3, 64, 64), 10, *IMAGENET.values())
        assert model(torch.rand(2, 3, 64, 64)).shape == (2, 10)
        assert model.get_parameter("network.fc.weight").shape[0] == 10
    assert "resnet18" in torchvision_names()
    assert not any("quantized" in n or "rcnn" in n or "fcn_" in n for n in torchvision_names())
    factory = model_factory("resnet18", None)
    assert factory.trains
    assert factory.origin.package == "torchvision"
    with pytest.raises(UsageError, match="no_such_thing") as error:
        build(ModelSpec("resnet18", params={"no_such_thing": 1}), *RGB)
    sentence(error)


@pytest.mark.parametrize(("name", "near"), [("resnet2O", "resnet20"), ("ResNet18", "resnet18"), ("cn", "cnn")])
def test_an_unknown_model_names_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"did you mean .*'{near}'"):
        model_factory(name, None)


# --- what a suite may set ---------------------------------------------------------------------------------------


def test_a_suite_entry_is_sorted_into_factory_normalisation_and_recipe() -> None:
    entry = {"width": 8, "mean": [0.5], "std": [0.25], "epochs": 3, "learning_rate": "1/100"}
    spec = ModelSpec.from_entry("cnn", None, entry)
    assert spec.params == {"width": 8}
    assert (spec.mean, spec.std, spec.normalise) == ((0.5,), (0.25,), True)
    assert (spec.recipe("digits").epochs, spec.recipe("digits").learning_rate) == (3, 0.01)
    assert build(spec, *RGB).get_parameter("network.conv1.weight").shape[0] == 8


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"widht": 8}, "did you mean 'width'"),
        ({"normalize": False}, "did you mean 'normalise'"),
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"width": "wide"}, "width"),
        ({"optimiser": "lion"}, "optimiser"),
        ({"shape": [1, 2, 3]}, "shape"),
    ],
)
def test_a_wrong_entry_is_one_sentence(entry: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        ModelSpec.from_entry("cnn", None, entry)
    sentence(error)
    factory = model_factory("cnn", None)
    _, problems = bind(factory.signature, entry, factory.given)
    assert list(problems) == list(entry), "the suite's own check finds the same"


def test_the_spec_as_json_sees_what_decides_the_network() -> None:
    import json

    base = ModelSpec("cnn", params={"width": 8})
    assert json.loads(json.dumps(base.as_json())) == base.as_json()
    for other in (
        ModelSpec("cnn"),
        ModelSpec("cnn", params={"width": 8}, mean=(0.5,)),
        ModelSpec("mlp", params={"width": 8}),
    ):
        assert other.as_json() != base.as_json()


# --- a user's own factory ---------------------------------------------------------------------------------------


FACTORIES = """
import torch
from torch import nn

def both(shape, classes, hidden: int = 3):
    inputs = shape[0] * shape[1] * shape[2]
    return nn.Sequential(nn.Flatten(), nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, classes))

def neither():
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))

def only_classes(classes, epochs: int = 2):
    made = nn.Sequential(nn.Flatten(), nn.Linear(3072, classes))
    made.epochs = epochs
    return made

def own_mean(mean: str = "zero"):
    made = neither()
    made.mean = mean
    return made

class Net(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.linear = nn.Linear(3072, classes)
    def forward(self, x):
        return self.linear(x.flatten(1))

class Tuple(Net):
    def forward(self, x):
        return super().forward(x), x

class Named(Net):
    def forward(self, x):
        return {"out": super().forward(x)}

class NoEval(Net):
    def train(self, mode=True):
        if not mode:
            raise NotImplementedError("Calling eval() is not supported yet.")
        return self

ready = Net(10)
number = 3
def no_module(): return "model"
def raises(): raise KeyError("weights of mine")
def wrong_classes(): return Net(9)
def tuple_of_logits(): return Tuple(10)
def named(): return Named(10)
def doubles(): return Net(10).double()
def wrong_input(): return nn.Linear(7, 10)
def one_row(): return nn.Sequential(Net(10), nn.Flatten(0))
"""


@pytest.fixture
def user_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(FACTORIES)
    return file


@pytest.mark.parametrize("name", ["both", "neither", "only_classes", "Net", "tuple_of_logits"])
def test_a_users_factory_takes_what_it_asks_for(user_file: Path, name: str) -> None:
    spec = ModelSpec(factory=f"mine.py:{name}", folder=user_file.parent)
    model = build(spec, *RGB)
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    factory = spec.find()
    assert (factory.origin.package, factory.origin.path) == ("file", str(user_file.resolve()))
    assert not spec.needs_training, "a user's model comes ready unless weights are asked for"
    absolute = build(ModelSpec(factory=f"{user_file}:{name}"), *RGB)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), absolute.parameters(), strict=True))


def test_a_parameter_of_the_factory_wins_over_the_harness(user_file: Path) -> None:
    spec = ModelSpec.from_entry(None, "mine.py:only_classes", {"epochs": 7, "batch_size": 16}, folder=user_file.parent)
    assert spec.params == {"epochs": 7}
    assert spec.training == {"batch_size": 16}
    assert build(spec, *RGB).network.epochs == 7
    spec = ModelSpec.from_entry(None, "mine.py:own_mean", {"mean": "grey"}, folder=user_file.parent)
    assert (spec.params, spec.mean) == ({"mean": "grey"}, None)
    assert build(spec, *RGB).network.mean == "grey"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("ready", "function or class"),
        ("number", "function or class"),
        ("no_module", r"torch\.nn\.Module"),
        ("raises", "weights of mine"),
        ("wrong_classes", r"\(2, 9\)"),
        ("named", "'out'"),
        ("NoEval", "eval"),
        ("doubles", "float64"),
        ("wrong_input", "3 x 32 x 32"),
        ("one_row", r"\(20,\)"),
        ("neithr", "did you mean 'neither'"),
    ],
)
def test_a_factory_that_gives_no_classifier_is_one_sentence(user_file: Path, name: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        build(ModelSpec(factory=f"{user_file}:{name}"), *RGB)
    sentence(error)


@pytest.mark.parametrize(
    "text", ["mine.py", "mine:", ":both", "missing.py:both", "no_such_package_here.models:make", "broken.py:both"]
)
def test_a_factory_that_cannot_be_found_is_one_sentence(user_file: Path, text: str) -> None:
    (user_file.parent / "broken.py").write_text("def both(:\n")
    with pytest.raises(UsageError) as error:
        ModelSpec(factory=text, folder=user_file.parent).find()
    assert text.partition(":")[0] in str(error.value)


def test_a_factory_in_a_module() -> None:
    spec = ModelSpec(factory="torchvision.models:resnet18", params={"num_classes": 10})
    assert build(spec, *RGB)(torch.rand(1, 3, 32, 32)).shape == (1, 10)
    assert spec.find().origin.package == "torchvision"


# --- weights ----------------------------------------------------------------------------------------------------


def network(seed: int = 0) -> nn.Module:
    return build(ModelSpec("resnet20", params={"width": 4}), *RGB, seed=seed).network


def variants() -> dict[str, Callable[[dict[str, Tensor], Path], None]]:
    def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
        return {prefix + k: v for k, v in state.items()}

    return {
        "a.safetensors": lambda s, p: save_file(s, p),
        "parallel.safetensors": lambda s, p: save_file(prefixed(s, "module."), p),
        "plain.pt": lambda s, p: torch.save(s, p),
        "legacy.pt": lambda s, p: torch.save(s, p, _use_new_zipfile_serialization=False),
        "state_dict.pth": lambda s, p: torch.save({"state_dict": s, "epoch": 3, "best": 0.9}, p),
        "model.pth": lambda s, p: torch.save({"model": s, "optimizer": {"lr": 0.1}}, p),
        "model_state_dict.tar": lambda s, p: torch.save({"model_state_dict": s}, p),
        "net.t7": lambda s, p: torch.save({"net": s, "acc": 90}, p),
        "module.th": lambda s, p: torch.save({"state_dict": prefixed(s, "module.")}, p),
        "compiled.pt": lambda s, p: torch.save(prefixed(s, "_orig_mod."), p),
        "both.pt": lambda s, p: torch.save({"state_dict": prefixed(s, "module._orig_mod.")}, p),
        "half.pt": lambda s, p: torch.save({k: v.half() if v.is_floating_point() else v for k, v in s.items()}, p),
        "old.pt": lambda s, p: torch.save({k: v for k, v in s.items() if "num_batches" not in k}, p),
        "parameters.pt": lambda s, p: torch.save({k: nn.Parameter(v.float()) for k, v in s.items()}, p),
    }


@pytest.mark.parametrize("kind", variants())
def test_weights_are_read_from_every_usual_file(tmp_path: Path, kind: str) -> None:
    source, target = network(1), network(2)
    source.get_buffer("bn1.running_mean").fill_(0.25)
    variants()[kind](source.state_dict(), tmp_path / kind)
    load_weights(target, tmp_path / kind)
    x = torch.rand(2, 3, 32, 32)
    tolerance = 0.05 if kind == "half.pt" else 0.0
    torch.testing.assert_close(target(x), source(x), rtol=tolerance, atol=tolerance)
    assert all(p.dtype == torch.float32 for p in target.parameters())
    assert target.get_buffer("bn1.running_mean")[0] == 0.25


def _under(prefix: str, state: Mapping[str, object]) -> dict[str, object]:
    return {prefix + k: v for k, v in state.items()}


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "module.model.", "network.", "backbone.", "a.b.c.", "model._orig_mod.", "_orig_mod.net."],
)
@pytest.mark.parametrize("beside", [False, True])
def test_weights_are_read_under_whatever_prefix_fits(tmp_path: Path, prefix: str, beside: bool) -> None:
    source, target = network(1), network(2)
    more = {"loss.weight": torch.ones(10), "metric._extra_state": {"seen": 3}, "ema_conv1weight": torch.ones(3)}
    state = _under(prefix, source.state_dict()) | (more if beside else {})
    torch.save({"state_dict": state, "epoch": 3, "hyper_parameters": {"lr": 0.1}}, tmp_path / "last.ckpt")
    said = load_weights(target, tmp_path / "last.ckpt")
    assert all(torch.equal(v, target.state_dict()[k]) for k, v in source.state_dict().items())
    assert (repr(prefix.replace("_orig_mod.", "")) in said and "loss.weight" in said) == beside
    assert bool(said) == beside


@pytest.mark.parametrize(
    ("change", "says"),
    [
        # The weights and their moving average: nobody knows which are meant.
        (lambda s: _under("model.", s) | _under("ema.module.", s), "'model.', 'ema.module.'"),
        (lambda s: _under("net.", {k: v for k, v in s.items() if k != "linear.bias"}), r"'net.', misses linear\.bias"),
        (lambda s: _under("net.", s | {"fc.bias": torch.ones(3)}), r"'net.', has unexpected fc\.bias"),
        (lambda s: _under("net.", s | {"linear.bias": torch.ones(3)}), r"'net.', has other shapes: linear\.bias"),
        # No prefix: what is not the network's is a mistake.
        (lambda s: s | _under("ema.", s), r"unexpected ema\.conv1\.weight"),
        (
            lambda s: _under("a.", dict(list(s.items())[::2])) | _under("b.", dict(list(s.items())[1::2])),
            r"'a.', misses bn1",
        ),
        (lambda s: _under("net.", s | {"linear.bias": "none"}), r"holds linear\.bias beside or instead"),
    ],
)
def test_weights_that_fit_under_no_prefix_or_several_name_it(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, object]], says: str
) -> None:
    target = network()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    torch.save(change(dict(network(3).state_dict())), tmp_path / "a.pt")
    with pytest.raises(UsageError, match=says) as error:
        load_weights(target, tmp_path / "a.pt")
    sentence(error)
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items())


def test_shapes_tell_which_of_two_networks_of_the_same_names_is_meant(tmp_path: Path) -> None:
    teacher, student, target = (build(ModelSpec("resnet20", params={"width": w}), *RGB).network for w in (8, 4, 4))
    torch.save(_under("teacher.", teacher.state_dict()) | _under("student.", student.state_dict()), tmp_path / "a.pt")
    said = load_weights(target, tmp_path / "a.pt")
    assert torch.equal(target.get_parameter("conv1.weight"), student.get_parameter("conv1.weight"))
    assert "'student.'" in said


def test_a_network_whose_own_names_begin_with_module_keeps_them(tmp_path: Path) -> None:
    source, target = nn.ModuleDict({"module": nn.Linear(2, 2)}), nn.ModuleDict({"module": nn.Linear(2, 2)})
    torch.save(source.state_dict(), tmp_path / "a.pt")
    load_weights(target, tmp_path / "a.pt")
    assert torch.equal(target.get_parameter("module.weight"), source.get_parameter("module.weight"))


def test_saved_weights_come_back_also_when_they_are_shared(tmp_path: Path) -> None:
    source, target = (nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)) for _ in range(2))
    source[2].weight = source[0].weight
    save_weights(source, tmp_path / "a.safetensors")
    load_weights(target, tmp_path / "a.safetensors")
    x = torch.rand(5, 3)
    assert torch.equal(source(x), target(x))


def _changed(state: dict[str, Tensor], **changes: Tensor | None) -> dict[str, Tensor]:
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    return {k: v for k, v in {**state, **changes}.items() if v is not None}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"linear__bias": None}, r"misses linear\.bias"),
        ({"fc__bias": torch.zeros(10)}, r"unexpected fc\.bias"),
        ({"linear__bias": torch.zeros(100)}, r"linear\.bias \(100,\) instead of \(10,\)"),
        ({"linear__bias": torch.full((10,), torch.nan)}, r"NaN or infinity in linear\.bias"),
        ({"a": torch.zeros(1), "b": torch.zeros(1), "c": torch.zeros(1), "d": torch.zeros(1)}, "a, b, c and 1 more"),
    ],
)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_weights_that_do_not_fit_name_what_differs(
    tmp_path: Path, changes: dict[str, Tensor | None], says: str, suffix: str
) -> None:
    target = network()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    file = tmp_path / f"a.{suffix}"
    (save_file if suffix == "safetensors" else torch.save)(_changed(network().state_dict(), **changes), file)
    with pytest.raises(UsageError, match=says) as error:
        load_weights(target, file)
    sentence(error)
    assert all(torch.equal(before[k], v) for k, v in target.state_dict().items()), "nothing was half loaded"


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "kind", ["bomb", "bomb beside weights", "namespace", "module", "list", "empty", "nothing", "text", "truncated"]
)
def test_a_file_that_is_no_checkpoint_is_refused_without_running_it(tmp_path: Path, kind: str, suffix: str) -> None:
    file = tmp_path / f"a.{suffix}"
    state = network().state_dict()
    contents = {
        "bomb": Bomb(tmp_path / "bang"),
        "bomb beside weights": {"state_dict": state, "args": Bomb(tmp_path / "bang")},
        "namespace": {"state_dict": state, "args": argparse.Namespace(lr=0.1)},
        "module": network(),
        "list": [torch.zeros(3)],
        "nothing": {},
    }
    if kind in contents:
        torch.save(contents[kind], file)
    elif kind == "empty":
        file.write_bytes(b"")
    elif kind == "text":
        file.write_text("https://example.org/weights.pt")
    else:
        (save_file if suffix == "safetensors" else torch.save)(state, file)
        file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(UsageError, match=re.escape(str(file))) as error:
        load_weights(network(), file)
    sentence(error)
    assert not (tmp_path / "bang").exists()


def test_missing_weights_are_an_error_unless_training_is_allowed(tmp_path: Path) -> None:
    missing = tmp_path / "gone.pt"
    with pytest.raises(UsageError, match=r"gone\.pt"):
        load_weights(network(), missing)
    with pytest.raises(UsageError, match="train_if_missing") as error:
        _ = ModelSpec("cnn", weights=missing).needs_training
    sentence(error)
    assert ModelSpec("cnn", weights=missing, train_if_missing=True).needs_training
    assert ModelSpec("cnn").needs_training
    missing.touch()
    assert not ModelSpec("cnn", weights=missing).needs_training


def test_a_model_with_weights_is_loaded_and_not_trained(tmp_path: Path) -> None:
    data = datasets.digits(Path("/nowhere")).load()
    spec = ModelSpec("mlp")
    kept = build(spec, data.shape, 10, data.mean, data.std, seed=4)
    save_weights(kept.network, tmp_path / "a.safetensors")
    loaded = obtain(ModelSpec("mlp", weights=tmp_path / "a.safetensors"), data, seed=9)
    assert torch.equal(loaded(data.test.images(slice(5))), kept(data.test.images(slice(5))))


def test_the_weights_of_the_package_are_small_and_plain_and_the_models_of_quick_do_well_with_them() -> None:
    suite = load_suite("quick")
    folder = suite.folder / "weights"
    # Nowhere else: neither the data root nor the working directory takes part.
    found = {label: path for label, path in find_weights(suite, Path("/nowhere")).items() if path is not None}
    assert sorted(found.values()) == sorted(p.resolve() for p in folder.iterdir() if p.suffix not in (".py", ""))
    data = datasets.digits(Path("/nowhere")).load()
    for part in suite.models:
        path = found[part.label]
        assert path is not None and path.suffix == ".safetensors" and path.stat().st_size < 2**20
        assert {value.dtype for value in load_file(path).values()} == {torch.float32}
        model = obtain(model_spec(part, suite.folder, path), data, seed=0)
        assert accuracy(model, data.test) > 0.95


# --- clean accuracy ---------------------------------------------------------------------------------------------


class Echo(nn.Module):
    """Predicts the class that the first pixel encodes; in train mode always class 0."""

    def forward(self, x: Tensor) -> Tensor:
        classes = (x[:, 0, 0, 0] * 10).round().long()
        return F.one_hot(classes * (not self.training), 10).float()


def labelled(labels: list[int], predicted: list[int]) -> ImageSplit:
    return ImageSplit(torch.tensor(predicted).div(10).view(-1, 1, 1, 1), torch.tensor(labels))


@pytest.mark.parametrize("batch_size", [1, 3, 256])
def test_accuracy_is_the_share_of_right_images(batch_size: int) -> None:
    model = Echo().train()
    assert accuracy(model, labelled([1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 0, 5, 6, 0]), batch_size=batch_size) == 5 / 7
    assert model.training, "the mode is as before"


def test_a_limit_reads_images_from_the_whole_split() -> None:
    # Sorted by class, and only the second half is right: the first images alone would say 0.
    split = labelled(
        [c for c in range(10) for _ in range(10)], [c if c >= 5 else 9 for c in range(10) for _ in range(10)]
    )
    assert accuracy(Echo(), split, limit=20) == 0.5
    assert accuracy(Echo(), split, limit=1000) == 0.5


@pytest.mark.parametrize(
    ("value", "classes", "warns", "near"),
    [
        (0.1, 10, True, True), (0.29, 10, True, True), (0.31, 10, True, False), (0.6, 10, False, False),
        (0.5, 2, True, True), (0.6, 2, True, True), (0.7, 2, False, False), (0.25, 100, True, False),
        (0.02, 100, True, True), (0.7, 1000, False, False),
    ],
)  # fmt: skip
def test_accuracy_near_chance_is_said(value: float, classes: int, warns: bool, near: bool) -> None:
    says: dict[Source, str] = {"weights": "mean", "trained": "epochs", "factory": "no weights were given"}
    for source, word in says.items():
        warning = accuracy_warning(value, classes, source)
        assert (warning is not None, is_near_chance(value, classes)) == (warns, near)
        assert warning is None or (word in warning and ("no rank" in warning) == near)


def test_normalise_divides_by_the_deviation_of_each_channel() -> None:
    layer = Normalise((0.5, 0.0), (0.5, 0.25))
    x = torch.tensor([[[[1.0]], [[1.0]]]])
    assert layer(x).flatten().tolist() == [1.0, 4.0]
    assert set(layer.state_dict()) == {"mean", "std"}


def test_the_public_signature_of_the_classifier_is_images_to_logits() -> None:
    assert list(inspect.signature(Classifier.forward).parameters) == ["self", "x"]


@pytest.mark.realdata
@pytest.mark.skipif(not REAL, reason="AFTERSHOCK_DATA names no data")
def test_the_published_resnet20_reaches_its_published_accuracy() -> None:
    root = Path(REAL or "")
    data = datasets.cifar10(root, download=False).load()
    weights = root / "weights" / "cifar10-resnet20-12fca82f.th"
    model = obtain(ModelSpec("resnet20", weights=weights, **IMAGENET), data, seed=0)
    # 9173 of 10,000 on the machine that measured it; another one may round a few images differently.
    assert accuracy(model, data.test) == pytest.approx(0.9173, abs=0.0005)
    # The mistake that the warning is for: pixels taken to be in [0, 255].
    scaled: dict[str, Any] = {k: tuple(255 * v for v in values) for k, values in IMAGENET.items()}
    wrong = obtain(ModelSpec("resnet20", weights=weights, **scaled), data, seed=0)
    assert is_near_chance(accuracy(wrong, data.test, limit=500), 10)


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("model", "data", "file", "published"),
    [
        ("smallcnn", "mnist", "mnist-trades-smallcnn.pt", 0.9948),
        ("resnet4b", "cifar10", "cifar10-resnet4b-adv.pth", 0.7720),
    ],
)
def test_published_adversarially_trained_weights_reach_their_published_accuracy(
    real_data: Path, model: str, data: str, file: str, published: float
) -> None:
    weights = real_data / "weights" / file
    if not weights.is_file():
        pytest.skip(f"needs weights/{file} under AFTERSHOCK_DATA")
    loaded = getattr(datasets, data)(real_data, download=False).load()
    # As the built-in suite has it, from its own file.
    (entry,) = load_suite(f"{data}-robust").models
    made = obtain(model_spec(entry, Path(), weights), loaded, seed=0)
    assert entry.name == model
    assert accuracy(made, loaded.test) == pytest.approx(published, abs=0.0005)


@pytest.mark.parametrize("kept", [0.0, 0.02, 0.5, 0.99])
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "old.pt"])
def test_a_checkpoint_that_is_cut_off_is_told_apart_from_one_of_another_kind(
    tmp_path: Path, name: str, kept: float
) -> None:
    state = {"weight": torch.rand(1000)}
    if name.endswith(".safetensors"):
        save_file(state, tmp_path / name)
    else:
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=name != "old.pt")
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: int(kept * len(data))])
    with pytest.raises(UsageError, match="copy or download it again"):
        load_weights(network(), tmp_path / name)
