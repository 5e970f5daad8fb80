"""A suite as a person writes it: the keys of the TOML file, what may stand in them, and where a mistake is."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
    model_validator,
)  # fmt: skip

from ..core.parameters import parse_number, wanted
from ..core.registry import did_you_mean

DECIDES_NO_NUMBER = True

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _label(value: str) -> str:
    if not LABEL.fullmatch(value):
        raise ValueError(f"{value!r} must start with a letter or digit and hold only letters, digits, '.', '_' and '-'")
    return value


def _number(value: object) -> float:
    return parse_number(value)


def _amount(value: object) -> float:
    if isinstance(value, str):
        raise ValueError(f"{value!r} is text: write a number without quotes")
    return parse_number(value)


Label = Annotated[str, AfterValidator(_label)]
Number = Annotated[float, BeforeValidator(_number), WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]})]
Amount = Annotated[float, BeforeValidator(_amount), WithJsonSchema({"type": "number"})]


class _Entry(BaseModel):
    """An entry that names a part; every further key is a parameter of that part."""

    model_config = ConfigDict(extra="allow")

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DataEntry(_Entry):
    """The data set and the sizes of the three disjoint sets of source images."""

    name: str = Field(description="A data set: `aftershock list datasets`.")
    fit: StrictInt = Field(gt=0, description="Clean images that detectors learn from (train split).")
    calibrate: StrictInt = Field(gt=0, description="Clean images that thresholds come from (test split).")
    evaluate: StrictInt = Field(gt=0, description="Source images that get perturbed (test split).")


class ThreatEntry(BaseModel):
    """What the ranking is about: perturbed images outside it are shown, not ranked."""

    model_config = ConfigDict(extra="forbid")
    norm: Literal["linf", "l2", "l1", "l0"] = Field(description="The norm in which a perturbation is measured.")
    eps: Number = Field(gt=0, description='The largest norm: a number, or a fraction such as "8/255".')

    @field_validator("eps")
    @classmethod
    def _within_images(cls, eps: float, info: ValidationInfo) -> float:
        if info.data.get("norm") == "linf" and eps > 1:
            raise ValueError(f"{eps:g}: images lie in [0, 1], an L-inf budget is at most 1 (is it 8/255?)")
        return eps


class LimitsEntry(BaseModel):
    """What attacks and detectors may spend; one that takes more fails with that reason.

    Seconds are CPU seconds of all threads, or wall-clock where that is less; of time spent waiting a thirtieth counts.
    """

    model_config = ConfigDict(extra="forbid")
    forwards: Amount = Field(default=100_000, gt=0, description="Images sent through the model, per image.")
    backwards: Amount = Field(default=50_000, gt=0, description="Gradients taken, per image.")
    seconds: Amount = Field(default=120, gt=0, description="Seconds of an attack per image, only a safety.")
    score_seconds: Amount = Field(default=1, gt=0, description="Seconds of a detector's score per image.")
    fit_seconds: Amount = Field(default=3600, gt=0, description="Seconds of a detector's fit.")
    analysis_seconds: Amount = Field(default=3600, gt=0, description="Seconds of a plugin's analysis of one model.")
    idle_seconds: Amount = Field(default=30, gt=0, description="Seconds that a plugin's part may wait, idle, at once.")
    memory: Amount = Field(default=8, gt=0, description="GiB that the process of a plugin's parts may hold.")


class ModelEntry(_Entry):
    """A model: a name or a factory, and where its weights come from."""

    name: str | None = Field(None, description="A model: `aftershock list models`, or a torchvision classifier.")
    factory: str | None = Field(None, description="`package.module:function` or `file.py:function`.")
    label: Label | None = Field(None, description="The name in tables and pages; by default `name`, or the function's.")
    weights: str | None = Field(
        None, description="File of the weights: absolute, beside the suite, or under the data root."
    )
    train_if_missing: StrictBool = Field(False, description="Train where the weights are not found.")
    tap_modules: list[str] = Field(default=[], description="Modules to tap besides the ReLU-like calls.")
    bits_per_tap: StrictInt | None = Field(None, gt=0, description="Maximum number of bits per tap, a seeded sample.")

    @model_validator(mode="after")
    def _one_source(self) -> ModelEntry:
        if self.name is not None and self.factory is not None:
            raise ValueError("a model has either `name` or `factory`: leave one of them out")
        if self.name is None and self.factory is None:
            near = [k for k in self.model_extra or () if did_you_mean(k, ["name", "factory"])]
            meant = f" (is {near[0]!r} meant for one of them?)" if near else ""
            raise ValueError(f"a model needs `name` or `factory`{meant}")
        return self


class PerturbationEntry(_Entry):
    """A perturbation; `eps` may be a list, which makes one perturbation per budget."""

    name: str = Field(description="A perturbation: `aftershock list perturbations`.")
    label: Label | None = Field(None, description="The name in tables, pages and `fit_on`; by default `name`.")


class DetectorEntry(_Entry):
    """A detector; supervised ones name the perturbations that they learn from."""

    name: str = Field(description="A detector: `aftershock list detectors`.")
    label: Label | None = Field(None, description="The name in tables and pages; by default `name`.")
    fit_on: list[str] = Field(default=[], description="Labels of perturbations that the detector may learn from.")
    fit_negatives: list[str] = Field(default=[], description="Labels of noise that counts as clean in fit.")


class AnalysisEntry(_Entry):
    """An analysis of the model's codes."""

    name: str = Field(description="An analysis: `aftershock list analyses`.")
    label: Label | None = Field(None, description="The name of its folder and page; by default `name`.")


_TABLES: Mapping[str, type[BaseModel]] = {"data": DataEntry, "threat": ThreatEntry, "limits": LimitsEntry}
_ARRAYS: Mapping[str, type[BaseModel]] = {
    "models": ModelEntry, "perturbations": PerturbationEntry, "detectors": DetectorEntry, "analyses": AnalysisEntry,
}  # fmt: skip


class SuiteFile(BaseModel):
    """A suite as it is written in TOML."""

    model_config = ConfigDict(extra="forbid", title="Aftershock suite")
    name: Label = Field(description="The name of the suite, and of its run directory.")
    seeds: list[Annotated[StrictInt, Field(ge=0)]] = Field(
        default=[0], min_length=1, description="Everything random is drawn anew for each; numbers are their means."
    )  # fmt: skip
    plugins: list[str] = Field(
        default=[], description="Files beside the suite that register parts; their code runs in a process of its own."
    )  # fmt: skip
    price_images: StrictInt = Field(
        default=64, ge=0, le=200,
        description="Evaluate images by which the price of detectors is measured; 0 leaves it out.",
    )  # fmt: skip
    data: DataEntry
    threat: ThreatEntry
    limits: LimitsEntry = Field(default_factory=LimitsEntry)
    models: list[ModelEntry] = Field(min_length=1)
    perturbations: list[PerturbationEntry] = Field(min_length=1)
    detectors: list[DetectorEntry] = Field(min_length=1)
    analyses: list[AnalysisEntry] = []


def salvage(raw: Mapping[str, Any], wrong: Collection[tuple[str | int, ...]]) -> SuiteFile:
    """What of a suite with mistakes can still be checked: the keys at ``wrong`` are gone, missing ones are ``None``."""
    whole: dict[str, Any] = {}
    for key, model in _TABLES.items():
        given = raw.get(key)
        whole[key] = _entry(model, given, (key,), wrong) if isinstance(given, Mapping) else None
    for key, model in _ARRAYS.items():
        given = raw.get(key)
        whole[key] = [
            _entry(model, item if isinstance(item, Mapping) else {}, (key, number), wrong)
            for number, item in enumerate(given if isinstance(given, list) else ())
        ]
    plugins = raw.get("plugins")
    # A mistake here is told on its own.
    whole["price_images"] = 0
    whole["plugins"] = [p if isinstance(p, str) else None for p in plugins] if isinstance(plugins, list) else []
    return SuiteFile.model_construct(**whole)


def _entry(
    model: type[BaseModel], given: Mapping[str, Any], place: tuple[str | int, ...],
    wrong: Collection[tuple[str | int, ...]],
) -> Any:  # fmt: skip
    size = len(place)
    gone = {location[size] for location in wrong if location[:size] == place and len(location) > size}
    absent = {name: None for name, field in model.model_fields.items() if field.is_required()}
    kept = {key: value for key, value in given.items() if isinstance(key, str) and key not in gone}
    return model.model_construct(**{**absent, **kept})


def only_misspelt(item: Any, items: Sequence[Any]) -> bool:
    """Whether a key is missing because an unknown one beside it is misspelt: one mistake, told where it stands.

    An entry that takes parameters has no unknown keys: what it holds beside its own may be a parameter or misspelt.
    """
    unknown = [i["loc"][-1] for i in items if i["type"] == "extra_forbidden" and i["loc"][:-1] == item["loc"][:-1]]
    own = _TABLES.get(str(item["loc"][0])) if len(item["loc"]) == 2 else None
    if own is not None and own.model_config.get("extra") == "allow" and isinstance(item["input"], Mapping):
        unknown += [key for key in item["input"] if key not in own.model_fields]
    return item["type"] == "missing" and any(did_you_mean(str(u), [str(item["loc"][-1])]) for u in unknown)


def explain(item: Any) -> str:
    """Return a pydantic error in a person's words, with the nearest known key for an unknown one."""
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        model = _TABLES.get(str(item["loc"][0]), SuiteFile)
        known = list(model.model_fields)
        return f"unknown key {item['loc'][-1]!r}{did_you_mean(str(item['loc'][-1]), known)}; known: {', '.join(known)}"
    if item["type"] == "missing":
        return f"the key {name!r} is missing"
    if item["type"] == "list_type" and name in _ARRAYS:
        return f"{name} is an array of tables: write [[{name}]] above each of them"
    if (instead := wanted(item)) is not None:
        return f"{name} = {item['input']!r:.60}: give {instead}"
    message = str(item["msg"]).removeprefix("Value error, ")
    array, number = (*item["loc"], "", "")[:2]
    if array in _ARRAYS and len(item["loc"]) == 2 and isinstance(number, int):
        return f"[[{array}]] number {number + 1}: {message}"
    return f"{name}: {message}"
