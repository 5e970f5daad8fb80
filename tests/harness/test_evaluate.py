"""The protocol on arrays: what a suite run says of the same images, and what is refused in a sentence."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import aftershock
import numpy as np
import pytest
import torch
from aftershock import Detector, DetectorInfo, Perturbation, UsageError
from aftershock.harness.conformance.fixture import make_fixture
from aftershock.harness.core.registry import DATASETS, DETECTORS, MODELS, PERTURBATIONS
from aftershock.harness.core.seeds import derive_seed
from aftershock.harness.models.classifier import Classifier
from aftershock.harness.models.weights import save_weights
from aftershock.harness.plan.models import normalise_values

FIT, CALIBRATE, EVALUATE = 100, 220, 60
# The control is drawn anew for each position, and the positions differ.
SAME = ("robust_accuracy_at_fpr_5", "worst_auroc", "mean_auroc_unseen", "fpr_realised_5")


class Digits:
    """Arrays of scikit-learn's digits: to fit on, to calibrate with, and to perturb."""

    def __init__(self) -> None:
        data = DATASETS.get("digits")(Path()).load()
        self.fit = data.train.images(slice(FIT)), data.train.labels(slice(FIT))
        self.test = data.test.images(slice(CALIBRATE + EVALUATE)), data.test.labels(slice(CALIBRATE + EVALUATE))
        self.calibrate = self.test[0][EVALUATE:], self.test[1][EVALUATE:]
        self.images, self.labels = self.test[0][:EVALUATE], self.test[1][:EVALUATE]


def classifier() -> Classifier:
    """The kits' network."""
    model = make_fixture().traced_model.model
    assert isinstance(model, Classifier)
    return model


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits()


@pytest.fixture(scope="module")
def evaluate(digits: Digits, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., aftershock.Run]:
    """Evaluates the kits' network with one attack and one detector, unless told otherwise."""
    folder = tmp_path_factory.mktemp("evaluate")

    def run(**given: Any) -> aftershock.Run:
        wanted = {
            "fit": digits.fit, "calibrate": digits.calibrate, "eps": 0.3, "attacks": ["fgsm"], "detectors": ["energy"],
            "out": folder / "run", "cache": folder / "cache", "device": "cpu", **given,
        }  # fmt: skip
        images, labels = wanted.pop("images", digits.images), wanted.pop("labels", digits.labels)
        return aftershock.evaluate(classifier(), images, labels, **wanted)

    return run


def test_arrays_give_the_numbers_of_a_suite_run_on_the_same_arrays(
    digits: Digits, evaluate: Callable[..., aftershock.Run], tmp_path: Path
) -> None:
    found = evaluate(detectors=["energy", "mahalanobis"])
    model = classifier()
    save_weights(model.network, tmp_path / "cnn.safetensors")
    # Where the protocol draws the sets, the images that it draws for each are put in their places.
    order = torch.randperm(
        len(digits.test[0]), generator=torch.Generator().manual_seed(derive_seed(0, "split", "npz", "test"))
    )  # fmt: skip
    images, labels = torch.empty_like(digits.test[0]), torch.empty_like(digits.test[1])
    images[order], labels[order] = digits.test
    np.savez(
        tmp_path / "digits.npz", x_train=digits.fit[0].numpy(), y_train=digits.fit[1].numpy(), x_test=images.numpy(),
        y_test=labels.numpy(),
    )  # fmt: skip
    suite = {
        "name": "same",
        "data": {
            "name": "npz", "path": str(tmp_path / "digits.npz"), "fit": FIT, "calibrate": CALIBRATE,
            "evaluate": EVALUATE,
        },
        "threat": {"norm": "linf", "eps": 0.3},
        "models": [
            {
                "name": "cnn", "width": 8, "hidden": 48, "weights": str(tmp_path / "cnn.safetensors"),
                **(normalise_values(model) or {}),
            }
        ],
        "perturbations": [{"name": "fgsm", "eps": 0.3}],
        "detectors": [{"name": "energy"}, {"name": "mahalanobis"}],
    }  # fmt: skip
    run = aftershock.run(suite, tmp_path / "run", cache=tmp_path / "cache", device="cpu")
    for table in (run, found):
        assert not table.failed
    ours, theirs = (r.leaderboard.set_index("detector") for r in (found, run))
    for column in SAME:
        for row in ("none", "energy", "mahalanobis"):
            assert ours[column][row] == pytest.approx(theirs[column][row], rel=1e-4, nan_ok=True), (row, column)


def test_rows_of_tables_are_positions_in_the_arrays(evaluate: Callable[..., aftershock.Run], digits: Digits) -> None:
    scores = evaluate().scores
    by_set = {name: set(rows["index"]) for name, rows in scores.groupby("set")}
    assert by_set["clean"] == set(range(EVALUATE))
    assert by_set["calibrate"] == set(range(EVALUATE, EVALUATE + CALIBRATE))
    clean = scores[scores["set"] == "clean"].sort_values("index")
    assert list(clean["label"]) == digits.labels.tolist()


def test_calibrate_images_can_be_set_aside(evaluate: Callable[..., aftershock.Run], digits: Digits) -> None:
    found = evaluate(images=digits.test[0].numpy(), labels=digits.test[1].numpy(), calibrate=200).scores
    sizes = found[found["perturbation"] == "none"].groupby("set")["index"].nunique()
    assert (sizes["calibrate"], sizes["clean"]) == (200, 80)


def test_parts_are_names_tables_classes_and_functions(evaluate: Callable[..., aftershock.Run]) -> None:
    class MinusLargestLogit(Detector):
        info = DetectorInfo(title="minus the largest logit", needs=())

        def fit(self, clean: Any, perturbed: Any = None) -> Any:
            return self

        def score(self, traces: Any) -> torch.Tensor:
            return -traces.logits.amax(1)

    def darker(model: Any, images: torch.Tensor, labels: torch.Tensor, eps: float = 0.01) -> torch.Tensor:
        return images - eps

    known = [set(r._entries) for r in (DATASETS, MODELS, PERTURBATIONS, DETECTORS)]
    found = evaluate(attacks=[darker, {"name": "fgsm", "label": "weak", "eps": 0.1}], detectors=[MinusLargestLogit])
    assert set(found.leaderboard["detector"]) == {"none", "minus-largest-logit"}
    attacks = found.perturbations.set_index("perturbation")
    assert attacks["eps"].to_dict() == {"darker": pytest.approx(0.3), "weak": pytest.approx(0.1)}
    assert attacks["max_linf"]["darker"] == pytest.approx(0.3)
    assert attacks["library"].to_dict() == {"darker": "session", "weak": "aftershock"}
    # What was lent a name for the call has none afterwards.
    assert [set(r._entries) for r in (DATASETS, MODELS, PERTURBATIONS, DETECTORS)] == known


def test_the_same_call_computes_nothing_again_and_another_model_everything(
    evaluate: Callable[..., aftershock.Run], digits: Digits, tmp_path: Path
) -> None:
    again = [evaluate(out=tmp_path / "run", cache=tmp_path / "cache") for _ in range(2)]
    assert again[0].computed and not again[1].computed
    model = classifier()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    other = type(model)(model.network, torch.nn.Identity(), model.shape, model.classes).eval()
    changed = aftershock.evaluate(
        other, digits.images, digits.labels, fit=digits.fit, calibrate=digits.calibrate, eps=0.3, attacks=["fgsm"],
        detectors=["energy"], out=tmp_path / "run", cache=tmp_path / "cache", device="cpu",
    )  # fmt: skip
    # The re-encoded images do not depend on the model.
    assert changed.computed >= again[0].computed - 1
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())


NOTEBOOK = """
from aftershock import Detector, DetectorInfo

class Logit(Detector):
    info = DetectorInfo(title="a logit", needs=())

    def fit(self, clean, perturbed=None):
        return self

    def score(self, traces):
        return SIGN * traces.logits.amax(1)
"""


def test_a_class_that_a_notebook_cell_changed_is_scored_again(
    evaluate: Callable[..., aftershock.Run], tmp_path: Path
) -> None:
    found = []
    for sign in ("-1", "+1"):
        # No file stands behind its module, as in a notebook.
        space: dict[str, Any] = {"__name__": "notebook"}
        exec(NOTEBOOK.replace("SIGN", sign), space)
        scores = evaluate(detectors=[space["Logit"]], out=tmp_path / "run").scores
        found.append(scores[scores["detector"] == "logit"].set_index(["set", "perturbation", "index"])["score"])
    assert (found[0] == -found[1]).all()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"fit": None}, r"fit takes images and their labels"),
        ({"calibrate": 0}, r"set aside at least 1"),
        ({"calibrate": 60}, r"set aside at least 1"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels is int64 of shape \(3,\)"),
        ({"labels": torch.full((EVALUATE,), 10)}, r"labels has the label 10: labels go from 0 to 9"),
        ({"images": torch.full((EVALUATE, 1, 8, 8), 2.0)}, r"images goes from 2 to 2: rescale it"),
        ({"images": torch.rand(EVALUATE, 3, 5, 5)}, r"The model cannot take images of 3 x 5 x 5"),
        ({"attacks": ["fgsn"]}, r"did you mean 'fgsm'"),
        ({"attacks": [object()]}, r"is not a perturbation to evaluate"),
        ({"detectors": [{"name": "energy", "colour": 3}]}, r"no parameter 'colour'"),
        ({"name": "digits"}, r"'digits', but aftershock .* has that name"),
    ],
)
def test_what_cannot_be_evaluated_is_one_sentence(
    evaluate: Callable[..., aftershock.Run], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        evaluate(**given)


def test_an_instance_is_refused_since_runs_make_their_own(evaluate: Callable[..., aftershock.Run]) -> None:
    made = PERTURBATIONS.get("fgsm")(eps=0.1)
    assert isinstance(made, Perturbation)
    with pytest.raises(UsageError, match="the run makes instances itself"):
        evaluate(attacks=[made])
