"""Perturbations that are not defined for a task or lack a package: left out of plan, digest and ranking, and said."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aftershock.attacks.libraries import declare as library
from aftershock.harness.core.registry import DATASETS
from aftershock.harness.data.sets import SIZES, TASKS, task_shape
from aftershock.harness.data.types import Dataset, TaskShape
from aftershock.harness.evaluation.results import PerturbationResult
from aftershock.harness.plan import Plan, make_plan
from aftershock.harness.plan.applicability import applicability, make_perturbations
from aftershock.harness.suite.resolve import load_suite
from PIL import Image
from support.commands import CacheVariable, Forks
from support.suites import Tiny
from support.tables import read_table, share_secret

FGSM = {"name": "fgsm", "eps": 0.2}
GAUSSIAN = {"name": "gaussian", "std": 0.1}
AUTOATTACK = {"name": "autoattack", "eps": 0.1, "steps": 3, "queries": 20}
# On two classes: no DLR loss is defined.
DLR = {"name": "pgd", "label": "dlr", "eps": [0.1, 0.2], "loss": "dlr", "steps": 2}
AIMED = {"name": "autopgd", "label": "aimed", "eps": 0.1, "loss": "dlr-targeted", "steps": 2}
# On images of one channel: there is no colour to saturate.
SATURATE = {"name": "corruption.saturate"}

PLUGIN = """
from aftershock.attacks import Perturbation, PerturbationInfo, register
from aftershock.harness.core.errors import UnavailableError


class Planted(Perturbation):
    info = PerturbationInfo(title="planted", kind="attack", family="planted", gradients=False)


@register("refuses")
class Refuses(Planted):
    def perturb(self, model, images, labels, draws):
        raise UnavailableError("a part of it is not there")


@register("unsure")
class Unsure(Planted):
    def inapplicable(self, shape, classes):
        raise ValueError("it does not know")

    def perturb(self, model, images, labels, draws):
        return images


@register("lacks")
class Lacks(Planted):
    @classmethod
    def missing(cls):
        return "It needs the package nowhere."

    def perturb(self, model, images, labels, draws):
        raise RuntimeError("it was called all the same")


@register("adaptive-colour")
class AdaptiveColour(Planted):
    info = PerturbationInfo(title="colour", kind="adaptive", family="colour", norm="linf", gradients=False)

    def __init__(self, eps: float = 0.3, images: int = 7):
        self.eps, self.images = eps, images

    def inapplicable(self, shape, classes):
        return "It needs colour." if shape[0] == 1 else None

    def perturb(self, model, images, labels, draws):
        return images
"""


def arrays(path: Path, classes: int, train: int = 200, test: int = 280) -> Path:
    """An npz data set of 1 x 6 x 6 images: the place of a brighter band is the class."""
    random, made = np.random.default_rng(0), dict[str, Any]()
    for part, count in (("train", train), ("test", test)):
        labels = np.arange(count) % classes
        images = random.uniform(0, 0.5, (count, 6, 6))
        for row, label in enumerate(labels):
            images[row, :, label * 6 // classes : (label + 1) * 6 // classes] += 0.25
        made |= {f"x_{part}": (images * 255).astype(np.uint8), f"y_{part}": labels}
    np.savez(path, **made)
    return path


def planned(path: Path, tiny: Tiny, dataset: Dataset, perturbations: Sequence[Mapping[str, Any]], **more: Any) -> Plan:
    suite = load_suite(tiny(path, perturbations, **more))
    return make_plan(suite, dataset, "data", "cpu", {"mlp": None})


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("plugin") / "plugin.py"
    path.write_text(PLUGIN)
    return str(path)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return DATASETS.get("digits")(Path()).load()


@pytest.fixture(scope="module")
def binary(digits: Dataset) -> Dataset:
    return replace(digits, classes=("even", "odd"))


def test_the_task_is_known_without_loading_the_images(tmp_path: Path, digits: Dataset) -> None:
    assert TASKS.keys() == SIZES.keys()
    assert task_shape("digits", {}) == digits.task == TaskShape((1, 8, 8), 10)
    path = arrays(tmp_path / "three.npz", 3)
    assert task_shape("npz", {"path": path}) == DATASETS.get("npz")(tmp_path, path).load().task
    names = ("a", "b", "c", "never")
    assert task_shape("npz", {"path": path, "classes": names}) == TaskShape((1, 6, 6), 4)
    np.savez(path, x_train=np.zeros((2, 3, 4, 5), np.uint8), y_train=np.array([0, 1]))
    assert task_shape("npz", {"path": path}) == TaskShape((3, 4, 5), 2)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            Image.new("RGB", (9, 7)).save(tmp_path / part / name / "1.png")
    for grey in (False, True):
        params = {"path": tmp_path, "size": 5, "grey": grey}
        assert task_shape("image-folder", params) == DATASETS.get("image-folder")(tmp_path, **params).load().task


@pytest.mark.parametrize("content", [b"", b"nothing", None])
def test_a_file_that_cannot_be_read_has_no_known_task(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    if content is None:
        np.savez(path, x_train=np.zeros(3), labels=np.zeros(3))
    else:
        path.write_bytes(content)
    assert task_shape("npz", {"path": path}) is None
    assert task_shape("npz", {"path": tmp_path / "nowhere.npz"}) is None
    assert task_shape("image-folder", {"path": tmp_path / "nowhere", "size": 8}) is None
    assert task_shape("of-a-plugin", {}) is None


def test_the_shape_decides_and_everything_is_said_once(tmp_path: Path, tiny: Tiny) -> None:
    detectors: list[dict[str, Any]] = [
        {"name": "msp"},
        {"name": "bitvector", "label": "bits", "method": "logistic", "fit_on": ["fgsm", "dlr"]},
    ]
    suite = load_suite(tiny(tmp_path / "a.toml", [FGSM, DLR, AIMED, SATURATE, AUTOATTACK], detectors))

    def found(*task: Any) -> Any:
        return applicability(suite, make_perturbations(suite), TaskShape(*task))

    assert found((3, 8, 8), 10).sentences == ()
    two = found((1, 8, 8), 2)
    assert set(two.inapplicable) == {"dlr[eps=0.1]", "dlr[eps=0.2]", "aimed", "corruption.saturate"}
    assert set(two.reduced) == {"autoattack"}
    assert set(two.unfitted) == {"bits"}
    said = "\n".join(two.sentences)
    assert "dlr does not apply to digits (1 x 8 x 8, 2 classes) and is left out: The loss dlr needs" in said
    assert "The detector bits is not fitted: it learns from dlr[eps=0.1], which does not apply" in said
    assert "autoattack is reduced on" in said
    assert len(two.sentences) == 5
    three = found((3, 8, 8), 3)
    assert (set(three.inapplicable), set(three.reduced), set(three.unfitted)) == ({"aimed"}, {"autoattack"}, set())
    assert set(found((3, 8, 8), 1).inapplicable) >= {"fgsm", "autoattack", "aimed"}


def test_a_part_that_cannot_decide_is_not_inapplicable(tmp_path: Path, tiny: Tiny, plugin: str) -> None:
    suite = load_suite(tiny(tmp_path / "a.toml", [{"name": "unsure"}], plugins=[plugin]))
    assert applicability(suite, make_perturbations(suite), TaskShape((1, 8, 8), 2)).inapplicable == {}


@pytest.mark.parametrize(
    ("entry", "package"),
    [
        ({"name": "torchattacks.FGSM", "label": "it", "eps": [0.1, 0.2]}, "torchattacks"),
        ({"name": "torchattacks.CW", "label": "it"}, "torchattacks"),
        ({"name": "foolbox.DDNAttack", "label": "it"}, "foolbox"),
    ],
)
def test_what_lacks_its_package_is_left_out_and_said_once(
    entry: Mapping[str, Any], package: str, tmp_path: Path, tiny: Tiny, digits: Dataset,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def missing(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(library, "version", missing)
    bits = {"name": "bitvector", "label": "bits", "method": "logistic", "fit_on": ["it"]}
    whole = planned(tmp_path / "a.toml", tiny, digits, [FGSM, entry], detectors=[{"name": "msp"}, bits])
    without = planned(tmp_path / "b.toml", tiny, digits, [FGSM], detectors=[{"name": "msp"}])
    assert list(whole.cells) == list(without.cells)
    assert whole.protocols == without.protocols
    said, learns = whole.applicability.sentences
    assert said.startswith("it is left out: ") and f"run 'pip install {package}'" in said
    assert learns.startswith("The detector bits is not fitted: it learns from it")
    # The shape of the task is not needed to know.
    suite = load_suite(tmp_path / "a.toml")
    assert applicability(suite, make_perturbations(suite), None).sentences == whole.applicability.sentences


def test_what_does_not_apply_has_no_cells_and_is_in_no_digest(
    tmp_path: Path, tiny: Tiny, binary: Dataset, plugin: str
) -> None:
    more = {"plugins": [plugin]}
    with_all: list[dict[str, Any]] = [FGSM, DLR, GAUSSIAN, SATURATE, {"name": "adaptive-colour"}]
    whole = planned(tmp_path / "a.toml", tiny, binary, with_all, **more)
    without = planned(tmp_path / "b.toml", tiny, binary, [FGSM, GAUSSIAN], **more)
    assert [c.name for c in whole.cells.values()] == [c.name for c in without.cells.values()]
    assert list(whole.cells) == list(without.cells)
    assert whole.protocols == without.protocols
    assert whole.protocols["mlp"].series == without.protocols["mlp"].series
    # An attack that does not apply limits no other attack's images.
    assert whole.ranked == without.ranked == 60
    other = planned(tmp_path / "c.toml", tiny, binary, [FGSM], **more)
    assert other.protocols != without.protocols
    assert other.protocols["mlp"].series != without.protocols["mlp"].series
    assert len(set(whole.applicability.inapplicable)) == 5


def test_single_seeds_share_their_series(tmp_path: Path, tiny: Tiny, digits: Dataset) -> None:
    plans = [planned(tmp_path / f"{n}.toml", tiny, digits, [FGSM], seeds=s) for n, s in enumerate(([0], [1], [0, 1]))]
    assert len({p.protocols["mlp"].digest for p in plans}) == 3
    [series] = {p.protocols["mlp"].series for p in plans}
    assert series not in {p.protocols["mlp"].digest for p in plans}
    smaller = planned(tmp_path / "smaller.toml", tiny, digits, [FGSM], data={"evaluate": 30})
    assert smaller.protocols["mlp"].series != series


def test_a_detector_that_learns_from_it_and_what_attacks_that_detector_have_no_cells(
    tmp_path: Path, tiny: Tiny, binary: Dataset
) -> None:
    bits = {"name": "bitvector", "label": "bits", "method": "logistic", "fit_on": ["dlr", "fgsm"]}
    adaptive = {"name": "adaptive", "eps": 0.1, "images": 10}
    whole = planned(tmp_path / "a.toml", tiny, binary, [FGSM, DLR, adaptive], detectors=[{"name": "msp"}, bits])
    without = planned(tmp_path / "b.toml", tiny, binary, [FGSM, adaptive], detectors=[{"name": "msp"}])
    assert {c.name for c in whole.cells.values()} == {c.name for c in without.cells.values()}
    assert whole.protocols == without.protocols
    assert whole.ranked == without.ranked == 10


def test_an_inapplicable_attack_counts_for_no_detector() -> None:
    about: dict[str, Any] = {
        "kind": "attack",
        "family": "pgd",
        "library": "aftershock",
        "reason": "The loss dlr needs 3 classes.",
    }
    assert PerturbationResult("pgd", **about).threatens("msp")
    assert not PerturbationResult("pgd", **about, inapplicable=True).threatens("msp")
    with pytest.raises(ValueError, match="without a reason"):
        PerturbationResult("pgd", **(about | {"reason": ""}), inapplicable=True)


BITS = {"name": "bitvector", "label": "bits", "method": "logistic", "fit_on": ["dlr"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny: Tiny, plugin: str) -> Path:
    folder = tmp_path_factory.mktemp("few-classes")
    arrays(folder / "two.npz", 2)
    data = {"name": "npz", "path": "two.npz"}
    # With fewer epochs it would be near chance, and nothing would be ranked.
    more: dict[str, Any] = {"data": data, "plugins": [plugin], "model": {"epochs": 20}}
    sought = {"name": "adaptive-square", "eps": 0.3, "queries": 5, "images": 20}
    parts: list[dict[str, Any]] = [
        FGSM,
        DLR,
        AUTOATTACK,
        SATURATE,
        sought,
        {"name": "adaptive-colour"},
        {"name": "lacks"},
    ]
    tiny(folder / "whole.toml", parts, [{"name": "msp"}, BITS], **more)
    tiny(folder / "without.toml", [FGSM, AUTOATTACK, sought], [{"name": "msp"}], **more)
    tiny(folder / "broken.toml", [FGSM, {"name": "refuses"}], [{"name": "msp"}], **more)
    tiny(folder / "nothing.toml", [DLR], [{"name": "msp"}], **more)
    return folder


def test_validate_says_what_does_not_apply(place: Path, forks: Forks, tiny: Tiny) -> None:
    done = forks("validate", "whole.toml", cwd=place)
    text = " ".join(done.output.split())
    assert done.status == 0, text
    assert "is valid" in text
    assert "dlr does not apply to npz (1 x 6 x 6, 2 classes) and is left out" in text
    assert "corruption.saturate does not apply" in text
    assert "autoattack is reduced" in text
    assert "lacks is left out: It needs the package nowhere." in text
    assert "The detector bits is not fitted" in text
    tiny(place / "ten.toml", [FGSM, DLR, AUTOATTACK])
    assert "appl" not in forks("validate", "ten.toml", cwd=place).output


def test_a_run_leaves_it_out_and_keeps_the_other_attacks_numbers(place: Path, forks: Forks) -> None:
    cache: CacheVariable = {"AFTERSHOCK_CACHE": str(place / "cache")}
    done = forks("run", "whole.toml", "--out", "whole", cwd=place, **cache)
    assert done.status == 0, done.output
    text = " ".join(done.output.split())
    for said in ("dlr does not apply to npz", "corruption.saturate does not apply", "bits is not fitted"):
        assert text.count(said) == 1
    table = {r["perturbation"]: r for r in read_table(place / "whole", "perturbations.csv")}
    for label in ("dlr[eps=0.1]", "dlr[eps=0.2]"):
        assert table[label]["reason"] == "The loss dlr needs a model of at least 3 classes, not 2."
        assert table[label]["n"] in ("", "0")
    assert "no colour" in table["corruption.saturate"]["reason"]
    assert "reduced-ensemble" in table["autoattack"]["flags"]
    assert float(table["autoattack"]["success_rate"]) > 0
    facts = json.loads((place / "whole" / "run.json").read_text())
    assert facts["failures"] == []
    assert facts["cells"]["skipped"] == 0
    assert table["lacks"]["reason"] == "It needs the package nowhere."
    assert len(facts["notes"]) == 7
    assert facts["notes"][0].startswith("No detector will have a rank")
    assert "does not apply to npz" in (place / "whole" / "site" / "runs.html").read_text()
    share_secret(place / "whole", place / "without")
    assert forks("run", "without.toml", "--out", "without", cwd=place, **cache).status == 0
    board, other = (
        {r["detector"]: r for r in read_table(place / run, "leaderboard.csv")} for run in ("whole", "without")
    )
    for detector in ("msp", "none"):
        assert board[detector] == other[detector]
        assert board[detector]["robust_accuracy_at_fpr_5"]
    assert board["none"]["rank"] == "1"
    assert board["bits"]["rank"] == ""
    assert board["bits"]["flags"].startswith(
        "no-adaptive-attack; it learns from dlr[eps=0.1], which does not apply: The loss dlr needs"
    )
    assert table["adaptive-square@bits"]["reason"] == "it is made against bits, which is not fitted"
    # The same command again computes nothing, and says the same.
    again = forks("run", "whole.toml", "--out", "whole", cwd=place, **cache)
    assert "Nothing was missing." in again.output
    assert "dlr does not apply to npz" in again.output


def test_an_attack_that_raises_is_a_failure_and_leaves_no_number(place: Path, forks: Forks) -> None:
    done = forks("run", "broken.toml", "--out", "broken", cwd=place, AFTERSHOCK_CACHE=str(place / "cache"))
    assert done.status == 1, done.output
    assert "a part of it is not there" in done.output
    failed = json.loads((place / "broken" / "run.json").read_text())["failures"]
    assert "failed" in {f["status"] for f in failed if "/perturb/refuses/" in f["cell"]}
    for row in read_table(place / "broken", "leaderboard.csv"):
        assert (row["rank"], row["robust_accuracy_at_fpr_5"]) == ("", "")
        assert "refuses is missing: a part of it is not there" in row["flags"]


def test_a_suite_of_which_nothing_applies_is_one_without_perturbations(place: Path, forks: Forks) -> None:
    done = forks("run", "nothing.toml", "--out", "nothing", cwd=place, AFTERSHOCK_CACHE=str(place / "cache"))
    assert done.status == 0, done.output
    assert {r["n"] for r in read_table(place / "nothing", "perturbations.csv")} <= {"", "0"}
