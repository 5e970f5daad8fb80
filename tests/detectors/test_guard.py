"""Fitted detectors leave a run: loaded again without its suite, and as a guard around the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from aftershock import Guard
from aftershock.detectors.activations.latent import Latent
from aftershock.detectors.bits.bitvector import BitVector
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.registry import DATASETS
from aftershock.harness.models.classifier import Classifier, Normalise
from aftershock.harness.run.guard import export_guard
from aftershock.harness.run.load import RunFolder, load_detector, load_model
from aftershock.harness.suite.builtin import builtin_suites
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.cells import artifact, ledger
from support.commands import Forks
from support.suites import Tiny
from support.tables import read_table
from torch import nn

PARTS = """
import torch
from aftershock.detectors import Detector, DetectorInfo, View, register


@register("shaky")
class Shaky(Detector):
    # Reads a second forward, of slightly blurred images.
    info = DetectorInfo(title="how far a blur moves the logits", needs=())

    @property
    def views(self):
        blur = torch.nn.AvgPool2d(3, stride=1, padding=1)
        return (View("blurred", lambda images, generator: blur(images)),)

    def fit(self, clean, perturbed=None):
        return self

    def score(self, traces):
        return (traces.logits - traces.view("blurred").logits).abs().amax(1).double()
"""
DETECTORS = ("bits", "mahalanobis", "codeshift", "latent", "shaky")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, forks: Forks, tiny: Tiny) -> Path:
    folder = tmp_path_factory.mktemp("guard")
    (folder / "parts.py").write_text(PARTS)
    detectors: list[dict[str, Any]] = [
        {"name": "bitvector", "label": "bits", "method": "hamming"}, {"name": "mahalanobis"},
        {"name": "codeshift", "rows": 3, "columns": 3, "epochs": 3}, {"name": "shaky"},
        {"name": "latent", "latent": 3, "hidden": [16], "epochs": 3},
    ]  # fmt: skip
    tiny(folder / "a.toml", [{"name": "pgd", "eps": 0.3}], detectors, plugins=["parts.py"])
    done = forks("run", "a.toml", "--out", "run", cwd=folder, AFTERSHOCK_CACHE=str(folder / "cache"))
    assert done.status == 0, done.output
    from aftershock.harness.core.plugin_files import load_plugin_file

    load_plugin_file(folder / "parts.py")
    return folder / "run"


def scores_of(run: Path, detector: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions in the test split and scores of the clean evaluate images, as the table has them."""
    rows = [
        r for r in read_table(run, "scores.csv.gz")
        if (r["detector"], r["set"], r["perturbation"]) == (detector, "clean", "none")
    ]  # fmt: skip
    return torch.tensor([int(r["index"]) for r in rows]), torch.tensor([float(r["score"]) for r in rows]).double()


def guard(run: Path, detector: str, folder: Path, **more: Any) -> Guard:
    return Guard.load(export_guard(run, detector, folder / f"{detector}.safetensors"), load_model(run), **more)


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_guard_scores_as_the_run_did(run: Path, detector: str, tmp_path: Path) -> None:
    index, expected = scores_of(run, detector)
    assert len(index) == 60
    images = DATASETS.get("digits")(Path()).load().test.images(index.tolist())
    made = guard(run, detector, tmp_path)
    logits, alarm, score = made(images)
    # Tables keep six digits.
    torch.testing.assert_close(score, expected, rtol=2e-5, atol=2e-5)
    assert logits.shape == (len(images), 10) and alarm.dtype == torch.bool
    assert torch.equal(alarm, score > made.threshold)
    one = made(images[:1])
    torch.testing.assert_close(one.score, score[:1], rtol=1e-4, atol=1e-6)
    assert made(images[:0]).score.shape == (0,)
    with torch.no_grad():
        torch.testing.assert_close(logits, load_model(run)(images))


def test_a_guard_of_a_latent_detector_has_a_live_map(run: Path, tmp_path: Path) -> None:
    made = guard(run, "latent", tmp_path)
    points, classes = made.landmarks()
    data = DATASETS.get("digits")(Path()).load()
    images, labels = data.test.images(range(200)), data.test.labels(range(200))
    found = made.positions(images)
    assert found.shape == (200, 3) and points.shape == (len(classes), 3) and made.positions(images[:0]).shape == (0, 3)
    torch.testing.assert_close(made.positions(images[7:8]), found[7:8], rtol=1e-4, atol=1e-4)
    # What was fitted survived the file.
    fitted = RunFolder(run).detector("latent").detector
    assert isinstance(fitted, Latent)
    assert torch.equal(fitted.landmarks()[0], points)
    # A map that means something: images lie nearer to the landmarks of their class than to those of the others.
    distances = torch.cdist(found, points)
    own = torch.stack([distances[i, classes == labels[i]].median() for i in range(200)])
    others = torch.stack([distances[i, classes != labels[i]].median() for i in range(200)])
    assert float((own < others).float().mean()) > 0.7


def test_a_detector_without_a_map_says_so(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no map: export one of the kind `latent`"):
        guard(run, "mahalanobis", tmp_path).positions(torch.rand(1, 1, 8, 8))


def test_the_share_of_alarms_is_what_was_asked_for(run: Path, tmp_path: Path) -> None:
    calibrate = RunFolder(run).detector("mahalanobis").calibrate
    for fpr in (0.05, 0.2):
        made = guard(run, "mahalanobis", tmp_path, fpr=fpr)
        share = float((calibrate > made.threshold).double().mean())
        assert share <= fpr and share > fpr - 2 / len(calibrate)
    with pytest.raises(UsageError, match=r"fpr = 0\.0001.*needs"):
        guard(run, "mahalanobis", tmp_path, fpr=0.0001)
    with pytest.raises(UsageError, match="between 0 and 1"):
        guard(run, "mahalanobis", tmp_path, fpr=5)


def test_a_bare_network_gets_the_normalisation_of_the_run(run: Path, tmp_path: Path) -> None:
    classifier = load_model(run)
    path = export_guard(run, "mahalanobis", tmp_path / "m.safetensors")
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, bare = Guard.load(path, classifier), Guard.load(path, load_model(run).network)
    assert torch.equal(whole(images).score, bare(images).score)


def test_a_model_in_train_mode_is_put_into_eval_mode(run: Path, tmp_path: Path) -> None:
    path = export_guard(run, "mahalanobis", tmp_path / "m.safetensors")
    model = load_model(run).train()
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    made = Guard.load(path, model)
    assert not model.training
    assert torch.equal(made(images).score, Guard.load(path, load_model(run))(images).score)


def test_other_weights_are_refused_unless_one_insists(run: Path, tmp_path: Path) -> None:
    path = export_guard(run, "mahalanobis", tmp_path / "m.safetensors")
    model = load_model(run)
    with torch.no_grad():
        next(model.network.parameters()).add_(1e-6)
    with pytest.raises(UsageError, match="other weights of 'mlp'"):
        Guard.load(path, model)
    assert Guard.load(path, model, check_weights=False)(torch.rand(2, 1, 8, 8)).alarm.shape == (2,)


def test_another_architecture_is_refused(run: Path, tmp_path: Path) -> None:
    path = export_guard(run, "mahalanobis", tmp_path / "m.safetensors")
    small = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    with pytest.raises(UsageError, match="other layers"):
        Guard.load(path, small, check_weights=False)
    wrong = nn.Sequential(nn.Flatten(), nn.Linear(99, 10), nn.ReLU())
    with pytest.raises(UsageError, match="cannot take the images"):
        Guard.load(path, Classifier(wrong, nn.Identity(), (1, 8, 8), 10), check_weights=False)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(2, 3, 8, 8), r"\(n, 1, 8, 8\)"),
        (torch.rand(1, 8, 8), r"\(n, 1, 8, 8\)"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "torch.uint8"),
        (torch.full((2, 1, 8, 8), 255.0), r"\[0, 1\]"),
        (torch.full((2, 1, 8, 8), torch.nan), r"\[0, 1\]"),
        ("cat.png", "str"),
    ],
)
def test_wrong_images_are_one_sentence(run: Path, tmp_path: Path, images: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        guard(run, "mahalanobis", tmp_path)(images)


def test_files_that_are_no_guard_are_one_sentence(run: Path, tmp_path: Path) -> None:
    good = export_guard(run, "mahalanobis", tmp_path / "m.safetensors")
    with safe_open(good, "pt") as stream:
        about = json.loads(stream.metadata()["guard"])
    tensors = load_file(good)
    (tmp_path / "text.safetensors").write_text("hello")
    save_file(tensors, tmp_path / "plain.safetensors")
    for name, changed in {
        "unknown": {**about, "detector": "no-such-detector"},
        "extra": {**about, "execute": "os.system"},
        "future": {**about, "format": 2},
        "param": {**about, "params": {"colour": "red"}},
        "state": {**about, "state": {"$tensor": "nowhere"}},
    }.items():
        save_file(tensors, tmp_path / f"{name}.safetensors", {"guard": json.dumps(changed)})
    for name in ("text", "plain", "unknown", "extra", "future", "param", "state", "absent"):
        with pytest.raises(UsageError):
            Guard.load(tmp_path / f"{name}.safetensors", load_model(run))


def test_a_score_that_is_no_number_raises_the_alarm(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = guard(run, "mahalanobis", tmp_path)
    monkeypatch.setattr(made.detector, "score", lambda traces: torch.full((len(traces),), torch.nan))
    assert made(torch.rand(3, 1, 8, 8)).alarm.tolist() == [True] * 3


def test_another_normalisation_is_refused(run: Path, tmp_path: Path) -> None:
    path = export_guard(run, "mahalanobis", tmp_path / "m.safetensors")
    model = load_model(run)
    other = Classifier(model.network, Normalise([0.9], [0.1]), (1, 8, 8), 10)
    with pytest.raises(UsageError, match="normalises its input otherwise"):
        Guard.load(path, other)
    with pytest.raises(UsageError, match="not NoneType"):
        Guard.load(path, None)  # type: ignore[arg-type]


def test_a_state_cannot_replace_methods_or_checked_parameters(run: Path) -> None:
    detector = load_detector(run, "bits")
    for name in ("score", "fit", "_hidden", "info", "supervised"):
        with pytest.raises(UsageError, match=name):
            detector.load_state({name: 5})
    detector.load_state({"patterns": 10**9, "method": "forest"})
    assert isinstance(detector, BitVector)
    assert detector.patterns == 500 and detector.method == "hamming"


@pytest.mark.parametrize(
    "damage",
    [
        {"detectors": ["bits"]}, {"detectors": [{"name": "msp", "label": "bits", "params": []}]}, {"seeds": ["a"]},
        {"seeds": []}, {"models": []}, {"models": [{"label": "mlp"}]}, {"data": "digits"},
    ],
)  # fmt: skip
def test_a_damaged_run_is_one_sentence(run: Path, tmp_path: Path, damage: dict[str, Any]) -> None:
    facts = json.loads((run / "run.json").read_text())
    facts["resolved"] |= damage
    (tmp_path / "run.json").write_text(json.dumps(facts))
    with pytest.raises(UsageError, match="damaged or of another version"):
        load_detector(tmp_path, "bits")


def test_what_only_left_out_is_still_there(run: Path, forks: Forks, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    done = forks(
        "run", str(run.parent / "a.toml"), "--out", str(copy), "--only", "*perturb/pgd*", cwd=run.parent,
        AFTERSHOCK_CACHE=str(run.parent / "cache"),
    )  # fmt: skip
    assert done.status == 0, done.output
    found = load_detector(copy, "bits")
    assert isinstance(found, BitVector) and found.method == "hamming"


def test_a_fitted_detector_is_loaded_without_the_suite(run: Path) -> None:
    detector = load_detector(run, "bits")
    assert isinstance(detector, BitVector)
    assert detector.method == "hamming" and detector.surrogate_kind == "relaxed"
    for label, model, message in (
        ("bit", None, "no detector 'bit'.*did you mean 'bits'"),
        ("bits", "resnet", "no model 'resnet'"),
    ):
        with pytest.raises(UsageError, match=message):
            load_detector(run, label, model)
    with pytest.raises(UsageError, match="no seed 7"):
        load_detector(run, "bits", seed=7)
    with pytest.raises(UsageError, match=r"no run\.json"):
        load_detector(run / "tables", "bits")


def test_a_changed_artifact_is_refused(run: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    for record in ledger(copy).values():
        path = artifact(copy, record.key)
        if record.digest:
            data = bytearray(path.read_bytes())
            data[record.offset + record.size - 1] ^= 1
            path.write_bytes(bytes(data))
    with pytest.raises(UsageError, match="was changed after it was written"):
        load_detector(copy, "mahalanobis")


@pytest.fixture(scope="module")
def with_weights(tmp_path_factory: pytest.TempPathFactory, forks: Forks, tiny: Tiny) -> Path:
    """A folder with a run of the weights that come with the package, and one of a user's own."""
    folder = tmp_path_factory.mktemp("weights")
    weights = builtin_suites()["quick"].parent / "weights" / "digits-mlp.safetensors"
    save_file({name: value + 0.01 for name, value in load_file(weights).items()}, folder / weights.name)
    for name, path in (("ours", weights), ("own", folder / weights.name)):
        # The recipe of the tiny suite has no say in weights from a file, but the width has.
        tiny(folder / f"{name}.toml", model={"weights": str(path), "width": 128})
        done = forks(
            "run", f"{name}.toml", "--only", "/model", "--out", name, cwd=folder, AFTERSHOCK_CACHE=str(folder / "cache")
        )  # fmt: skip
        assert done.status == 0, done.output
    return folder


def test_a_model_of_a_built_in_suite_needs_no_path(with_weights: Path) -> None:
    images = torch.rand(3, 1, 8, 8)
    weights = builtin_suites()["quick"].parent / "weights" / "digits-mlp.safetensors"
    assert torch.equal(
        load_model(with_weights / "ours")(images), load_model(with_weights / "ours", weights=weights)(images)
    )


def test_weights_of_a_user_are_asked_for_even_if_the_name_is_known(with_weights: Path) -> None:
    with pytest.raises(UsageError, match="give its path as `weights`"):
        load_model(with_weights / "own")
    load_model(with_weights / "own", weights=with_weights / "digits-mlp.safetensors")


def test_the_command_line_writes_a_guard(run: Path, forks: Forks, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "g.safetensors"
    done = forks("guard", "export", str(run), "--detector", "mahalanobis", "--out", str(out), cwd=tmp_path)
    assert done.status == 0 and out.is_file(), done.output
    wrong = forks("guard", "export", str(run), "--detector", "mahalanobi", cwd=tmp_path)
    assert wrong.status == 2 and "did you mean 'mahalanobis'" in wrong.output
    plugin = forks("guard", "export", str(run), "--detector", "shaky", cwd=tmp_path)
    assert plugin.status == 2 and "no detector 'shaky'" in plugin.output
    again = forks(
        "guard", "export", str(run), "--detector", "shaky", "--plugin", str(run.parent / "parts.py"), cwd=tmp_path
    )
    assert again.status == 0 and (tmp_path / "shaky.safetensors").is_file(), again.output
