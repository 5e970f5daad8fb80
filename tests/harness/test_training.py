"""Training: what it reaches, and that the seed alone decides it."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from aftershock.harness.core.errors import UsageError
from aftershock.harness.data import sets as datasets
from aftershock.harness.data.types import Dataset, ImageSplit
from aftershock.harness.models import training
from aftershock.harness.models.classifier import Classifier, ModelSpec, accuracy, build, obtain
from aftershock.harness.models.training import Recipe, default_recipe, estimate_seconds, train
from support.generators import numpy_state
from torch import Tensor, nn


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return datasets.digits(Path("/nowhere")).load()


def fresh(data: Dataset, name: str = "mlp", seed: int = 0, **params: object) -> Classifier:
    return build(ModelSpec(name, params=params), data.shape, len(data.classes), data.mean, data.std, seed)


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_digits_are_learned(digits: Dataset, name: str) -> None:
    model = obtain(ModelSpec(name), digits, seed=0)
    assert not model.training
    assert accuracy(model, digits.test) >= 0.97
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("augmentation", ["none", "crop-flip"])
def test_the_seed_decides_every_bit(digits: Dataset, augmentation: Literal["none", "crop-flip"]) -> None:
    recipe = Recipe(epochs=2, batch_size=64, augmentation=augmentation)
    models = [fresh(digits, dropout=0.3) for _ in range(3)]
    for number, (model, seed) in enumerate(zip(models, (1, 1, 2), strict=True)):
        torch.manual_seed(number)
        np.random.seed(number)
        train(model, digits.train, recipe, seed)
    assert same(models[0], models[1])
    assert not same(models[0], models[2])


def test_batch_norm_models_are_deterministic_too(digits: Dataset) -> None:
    models = [fresh(digits, "resnet20", width=2) for _ in range(2)]
    for model in models:
        train(model, digits.train, Recipe(epochs=1, optimiser="sgd", learning_rate=0.1), 0)
    assert same(*models)


def test_global_generators_are_untouched_even_inside_progress(digits: Dataset) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = torch.get_rng_state(), numpy_state(), random.getstate()

    def check(done: float) -> None:
        assert torch.equal(torch.get_rng_state(), before[0])
        assert numpy_state() == before[1]
        assert random.getstate() == before[2]

    train(fresh(digits, dropout=0.3), digits.train, Recipe(epochs=1, augmentation="crop-flip"), 0, progress=check)
    check(1.0)


def test_what_a_model_draws_depends_on_seed_and_step(digits: Dataset) -> None:
    def drawn(seed: int) -> list[float]:
        seen: list[float] = []

        class Drawing(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.linear = nn.Linear(64, 10)

            def forward(self, x: Tensor) -> Tensor:
                seen.append(torch.rand(1).item())
                return self.linear(x.flatten(1))

        train(Drawing(), digits.train, Recipe(epochs=1), seed)
        return seen

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first == again
    assert len(set(first + other)) == len(first) + len(other) > 10


def test_progress_climbs_to_one(digits: Dataset) -> None:
    seen: list[float] = []
    train(fresh(digits), digits.train, Recipe(epochs=2, batch_size=100), 0, progress=seen.append)
    assert len(seen) == 2 * 9
    np.testing.assert_allclose(seen, np.arange(1, 19) / 18)


def test_a_small_model_is_the_same_on_any_number_of_threads(digits: Dataset) -> None:
    models = [fresh(digits, "cnn", width=4) for _ in range(2)]
    for model, threads in zip(models, (1, 2), strict=True):
        torch.set_num_threads(threads)
        train(model, digits.train, Recipe(epochs=1, batch_size=64), 0)
        assert torch.get_num_threads() == threads, "the caller's number of threads stays"
    torch.set_num_threads(1)
    assert same(*models)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_training_leaves_the_mode_as_it_was(digits: Dataset, error: type[BaseException]) -> None:
    model = fresh(digits)

    def stop(done: float) -> None:
        raise error

    with pytest.raises(error):
        train(model, digits.train, Recipe(epochs=1), 0, progress=stop)
    assert not model.training
    assert not torch.backends.cudnn.deterministic


def test_every_epoch_shows_every_image_once() -> None:
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(1, 2)

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach().flatten().mul(100).round().long())
            return self.linear(x.flatten(1))

    split = ImageSplit(torch.arange(10).div(100).view(-1, 1, 1, 1), torch.arange(10) % 2)
    train(Spy(), split, Recipe(epochs=3, batch_size=5), 0)
    epochs = torch.cat(seen).view(3, 10)
    assert all(sorted(epoch.tolist()) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3, "in another order each time"


def test_a_split_smaller_than_a_batch_is_still_trained_on() -> None:
    split = ImageSplit(torch.rand(7, 1, 1, 1, generator=torch.Generator().manual_seed(0)), torch.arange(7) % 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2))
    before = model.get_parameter("1.weight").detach().clone()
    train(model, split, Recipe(epochs=1, warmup=0), 0)
    assert not torch.equal(before, model.get_parameter("1.weight"))


def test_a_diverging_training_stops_with_a_sentence(digits: Dataset) -> None:
    with pytest.raises(UsageError, match="learning_rate"):
        train(fresh(digits, "cnn"), digits.train, Recipe(epochs=5, optimiser="sgd", learning_rate=1000.0), 0)


def test_a_model_without_parameters_cannot_be_trained(digits: Dataset) -> None:
    with pytest.raises(UsageError, match="weights"):
        train(nn.Flatten(), digits.train, Recipe(epochs=1), 0)


def test_the_rate_warms_up_and_follows_a_cosine() -> None:
    rates = [training._rate(step, 100, 0.1) for step in range(100)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) / 10)
    np.testing.assert_allclose(rates[10:], 0.5 * (1 + np.cos(np.pi * np.arange(90) / 90)))
    assert training._rate(0, 1, 0.0) == 1


# --- augmentation -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("augmentation", ["crop", "crop-flip"])
def test_augmented_images_are_shifted_and_perhaps_mirrored_copies(augmentation: training.Augmentation) -> None:
    images = torch.rand(300, 3, 16, 8, generator=torch.Generator().manual_seed(0)).add(0.1)
    made = training._augmented(images, augmentation, torch.Generator().manual_seed(1))
    assert made.shape == images.shape
    kinds = set()
    for before, after in zip(images, made, strict=True):
        # Every possible shift and mirroring, made by slicing a padded image; exactly one must match.
        padded = torch.zeros(3, 20, 10)
        padded[:, 2:18, 1:9] = before
        found = [
            (top, left, flip)
            for top in range(5)
            for left in range(3)
            for flip in (False, True)
            if torch.equal(after.flip(2) if flip else after, padded[:, top : top + 16, left : left + 8])
        ]
        assert len(found) == 1
        kinds.add(found[0])
    assert {(t, left) for t, left, _ in kinds} == {(t, left) for t in range(5) for left in range(3)}
    assert {f for _, _, f in kinds} == ({False, True} if augmentation == "crop-flip" else {False})


def test_no_augmentation_changes_no_image() -> None:
    images = torch.rand(4, 1, 8, 8)
    assert training._augmented(images, "none", torch.Generator()) is images


# --- recipes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("architecture", ["mlp", "cnn", "resnet20", "resnet18", "my-model"])
@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10", "svhn", "npz", "image-folder"])
def test_there_is_a_recipe_for_everything_and_it_is_json(architecture: str, dataset: str) -> None:
    recipe = default_recipe(architecture, dataset)
    plain = json.loads(json.dumps(recipe.as_json()))
    assert Recipe(**plain) == recipe
    if dataset in ("digits", "mnist", "svhn"):
        assert recipe.augmentation != "crop-flip", "a mirrored digit is another one or none"


def test_a_recipe_can_be_changed_by_name() -> None:
    recipe = default_recipe("cnn", "digits")
    changed = recipe.changed({"epochs": 2, "learning_rate": "1/50"})
    assert (changed.epochs, changed.learning_rate, changed.batch_size) == (2, 0.02, recipe.batch_size)
    assert changed.as_json() != recipe.as_json()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"epoch": 3}, "did you mean 'epochs'"),
        ({"epochs": 0}, "epochs = 0"),
        ({"epochs": 2.5}, "epochs"),
        ({"batch_size": -1}, "batch_size"),
        ({"learning_rate": -0.1}, "learning_rate"),
        ({"optimiser": "lion"}, "optimiser"),
        ({"augmentation": "mixup"}, "augmentation"),
        ({"label_smoothing": 1}, "label_smoothing"),
    ],
)
def test_a_wrong_recipe_is_one_sentence(changes: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says) as error:
        Recipe().changed(changes)
    assert "\n" not in str(error.value)


def test_the_estimate_is_steps_times_seconds_and_leaves_the_model_alone(
    digits: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter([0.0, 2.0, 4.0, 90.0, 92.0, 94.0])  # one step of five was held up
    monkeypatch.setattr(training, "_now", lambda device: next(ticks))
    model, untouched = fresh(digits), fresh(digits)
    recipe = Recipe(epochs=10, batch_size=100)  # 90 steps
    torch.manual_seed(0)
    state = torch.get_rng_state()
    assert estimate_seconds(model, digits.train, recipe, steps=5) == pytest.approx(90 * 2.0)
    assert same(model, untouched)
    assert not model.training
    assert torch.equal(torch.get_rng_state(), state)


def test_the_estimate_of_a_training_of_one_step_is_not_an_error(digits: Dataset) -> None:
    assert estimate_seconds(fresh(digits), digits.train, Recipe(epochs=1, batch_size=997)) >= 0
