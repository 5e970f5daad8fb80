"""The models under test: found from a suite's entry, identified by content, made once and loaded again."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..core.code_digests import part_digest
from ..core.content_keys import sources_digest
from ..core.errors import AftershockError, UsageError
from ..core.files import file_digest
from ..core.process_state import noted
from ..core.registry import PACKAGE, Entry
from ..data.types import Dataset
from ..models.classifier import (
    Classifier,
    ModelSpec,
    Normalise,
    Source,
    accuracy,
    accuracy_warning,
    build,
    is_near_chance,
    obtain,
)
from ..models.flags import NEAR_CHANCE, NO_WEIGHTS
from ..models.probe import probe, probe_images
from ..models.training import estimate_seconds
from ..models.weights import network_digest, state_digest
from ..suite.resolved import ModelPart, Suite
from ..tracing.recorder import Survey, survey


def find_weights(suite: Suite, root: Path) -> dict[str, Path | None]:
    """Return where each model's weights are, by label: absolute, beside the suite, or under the data root.

    ``None`` where the model is trained or comes ready from its factory.

    Raises:
        UsageError: if weights are missing and the entry does not say ``train_if_missing``.
    """
    return {part.label: find_model_weights(part, suite.folder, root) for part in suite.models}


def find_model_weights(part: ModelPart, folder: Path, root: Path) -> Path | None:
    """Return where the weights of one model are, as :func:`find_weights`.

    Args:
        folder: of the suite.
        root: of the data.
    """
    if part.weights is None:
        return None
    places = [folder / part.weights, root / part.weights]
    existing = [place for place in places if place.is_file()]
    if existing:
        return existing[0].resolve()
    if part.train_if_missing:
        return None
    looked = " or ".join(str(p) for p in dict.fromkeys(places))
    raise UsageError(
        f"The weights of model {part.label!r} are not at {looked}: correct the path, set --data (or "
        "AFTERSHOCK_DATA), or add train_if_missing = true."
    )


def model_spec(part: ModelPart, folder: Path, weights: Path | None) -> ModelSpec:
    """Return a suite's model entry as the model room reads it."""
    return ModelSpec.from_entry(
        part.name or None, part.factory, part.params, weights, part.train_if_missing and weights is None, folder
    )


def ready_state(part: ModelPart, folder: Path, weights: Path | None, dataset: Dataset, seed: int) -> str | None:
    """Digest of the network that a user's or a plugin's function gives with its state; it is made for this.

    ``None`` where weights or training decide the state.
    """
    spec = model_spec(part, folder, weights)
    if weights is not None or spec.needs_training:
        return None
    try:
        made = build(spec, dataset.shape, len(dataset.classes), dataset.mean, dataset.std, seed)
    except (UsageError, SystemExit):
        # Its cell fails for the same reason, which is reported there.
        return ""
    return network_digest(made.network)


def model_identity(
    part: ModelPart, folder: Path, weights: Path | None, dataset: str, state: str | None = None
) -> dict[str, Any]:
    """Return what decides a model's numbers, as JSON values: architecture, code, and its weights' bytes or its recipe.

    ``state`` is the digest of what a function gave (:func:`ready_state`).
    """
    spec = model_spec(part, folder, weights)
    factory = spec.find()
    identity = spec.as_json()
    if part.factory:
        identity["factory"] = part.factory.rpartition(":")[2]
    if factory.origin.package not in (PACKAGE, "torchvision"):
        identity["code"] = part_digest(
            Entry(factory.name, factory.make, factory.origin), "harness.models.architectures"
        )
        named = getattr(sys.modules.get((part.factory or "").rpartition(":")[0]), "__file__", None)
        if factory.origin.package == "session" and named:
            # The function may come from elsewhere; the module that the suite names decides which it is.
            identity["module"] = sources_digest(Path(named))
    if state is not None:
        identity["state"] = state
    if weights is not None:
        identity["weights"] = file_digest(weights)
    elif spec.needs_training:
        identity["recipe"] = spec.recipe(dataset).as_json()
    return identity


def make_classifier(
    part: ModelPart,
    folder: Path,
    dataset: Dataset,
    weights: Path | None,
    seed: int,
    device: torch.device,
    on_message: Callable[[str], None],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Train or load a model, list its taps and measure its clean accuracy on the whole test split.

    Returns:
        its state where it was made here (else the weights file stays the source), and what the ledger keeps.
    """
    spec = model_spec(part, folder, weights)
    trains = weights is None and spec.needs_training
    start = time.perf_counter()
    progress = None
    if trains:
        fresh = build(spec, dataset.shape, len(dataset.classes), dataset.mean, dataset.std, seed).to(device)
        expected = estimate_seconds(fresh, dataset.train, spec.recipe(dataset.name), device)
        if expected > 20:
            missing = f" ({part.weights} was not found)" if part.weights else ""
            on_message(f"Training {part.label} on {dataset.name}{missing}: about {_duration(expected)}.")
            progress = _tenths(part.label, on_message)
    notes: list[str] = []
    classifier = obtain(spec, dataset, seed, device, progress, notes.append)
    seconds = time.perf_counter() - start
    images = probe_images(dataset.test, classifier.shape)
    found = probe(classifier, images)
    taps = survey(classifier, images.to(device), part.tap_modules, classifier.network)
    right = accuracy(classifier, dataset.test, device=device)
    source: Source = "trained" if trains else "weights" if weights else "factory"
    low = accuracy_warning(right, len(dataset.classes), source)
    notes += [*found.notes, *tap_notes(taps)]
    warnings = [*found.warnings, *([low] if low else [])]
    for text in (*notes, *warnings):
        on_message(f"{part.label}: {text}")
    flags = list(found.flags)
    if is_near_chance(right, len(dataset.classes)):
        flags.append(NO_WEIGHTS if source == "factory" else NEAR_CHANCE)
    values = {
        "gradient": found.gradient,
        "taps": [[t.name, t.kind, list(t.shape), t.channel_axis] for t in taps.taps],
        "digest": state_digest(classifier.network),
        "normalise": normalise_values(classifier),
        "shape": list(classifier.shape),
        "classes": classifier.classes,
        "clean_accuracy": right,
        "test_images": len(dataset.test),
        "source": "trained" if trains else (weights.name if weights else "factory"),
        "seed": seed,
        "train_seconds": round(seconds, 3) if trains else None,
        "flags": flags,
        "notes": notes,
        "warnings": warnings,
    }
    values = dict(noted(values, classifier.changes))
    if weights is not None or found.other_state:
        return {}, values
    return {k: v.detach().cpu() for k, v in classifier.state_dict().items()}, values


def tap_notes(survey: Survey) -> list[str]:
    """Return sentences about activations that are not read, or whose channel axis is unclear."""
    found = []
    if survey.left_out:
        found.append(
            f"The activations at {_some(survey.left_out)} have no row for each image and are not read: they are made "
            "of weights alone, or their first axis is not the batch."
        )
    if survey.unclear:
        found.append(
            f"Which axis of the activations at {_some(survey.unclear)} holds the channels is unclear: axis 1 is "
            "taken, as convolutions have it."
        )
    return found


def _some(names: Sequence[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more taps" if len(names) > count else ""
    return ", ".join(names[:count]) + more


def load_classifier(
    part: ModelPart, folder: Path, dataset: Dataset, weights: Path | None, state: Mapping[str, Tensor],
    made: Mapping[str, Any],
) -> Classifier:  # fmt: skip
    """Return a model that :func:`make_classifier` made, on the CPU, in eval mode.

    Args:
        state: what :func:`make_classifier` gave, read again, and
        made: the values beside it.

    Raises:
        AftershockError: if the state could not be kept, and the factory does not give the same network again.
    """
    spec = model_spec(part, folder, weights)
    if not state:
        classifier = obtain(spec, dataset, made.get("seed", 0)).eval()
        if weights is None and state_digest(classifier.network) != made["digest"]:
            raise AftershockError(
                f"The factory of {part.label!r} gave another network than before, and its state cannot be kept, since "
                "it holds more than plain tensors: let the factory give the same network each time."
            )
        return classifier
    classifier = build(spec, dataset.shape, len(dataset.classes), dataset.mean, dataset.std)
    classifier.load_state_dict(dict(state))
    return classifier.eval()


def untrained_classifier(part: ModelPart, folder: Path, dataset: Dataset, seed: int) -> Classifier:
    """Return the architecture of a model with freshly drawn weights, in eval mode on the CPU.

    Raises:
        UsageError: for a factory that returns a model with its weights: there is no architecture without them.
    """
    if part.factory:
        raise UsageError(
            f"The model {part.label!r} is returned with its weights by its factory: there is no "
            "untrained network of its architecture."
        )
    spec = model_spec(part, folder, None)
    return build(spec, dataset.shape, len(dataset.classes), dataset.mean, dataset.std, seed).eval()


def normalise_values(classifier: Classifier) -> dict[str, list[float]] | None:
    """Return mean and standard deviation per channel; ``None`` where the network takes images in [0, 1] as they are."""
    layer = classifier.normalise
    if not isinstance(layer, Normalise):
        return None
    return {"mean": layer.mean.flatten().tolist(), "std": layer.std.flatten().tolist()}


def _tenths(label: str, on_message: Callable[[str], None]) -> Callable[[float], None]:
    """Tells how far a long training is, once per tenth."""
    shown = 0

    def progress(share: float) -> None:
        nonlocal shown
        if int(10 * share) > shown:
            shown = int(10 * share)
            on_message(f"Training {label}: {10 * shown} %.")

    return progress


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
