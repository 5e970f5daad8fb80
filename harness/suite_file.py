"""A suite as a person writes it: the keys of the TOML file, what may stand in them, and where a mistake is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    model_validator,
)  # fmt: skip

from .params import parse_number
from .registry import did_you_mean

LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def _label(value: str) -> str:
    if not LABEL.fullmatch(value):
        raise ValueError(f"{value!r} must start with a letter or digit and hold only letters, digits, '.', '_' and '-'")
    return value


def _number(value: object) -> float:
    return parse_number(value)


Label = Annotated[str, AfterValidator(_label)]
Number = Annotated[float, BeforeValidator(_number), WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]})]


class _Entry(BaseModel):
    """An entry that names a part; every further key is a parameter of that part."""

    model_config = ConfigDict(extra="allow")

    @property
    def params(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class DataEntry(_Entry):
    """The data set and the sizes of the three disjoint sets of source images."""

    name: str = Field(description="A data set: `aftershock list datasets`.")
    fit: int = Field(gt=0, description="Clean images that detectors learn from (train split).")
    calibrate: int = Field(gt=0, description="Clean images that thresholds come from (test split).")
    evaluate: int = Field(gt=0, description="Source images that get perturbed (test split).")


class ThreatEntry(BaseModel):
    """What the ranking is about: perturbed images outside it are shown, not ranked."""

    model_config = ConfigDict(extra="forbid")
    norm: Literal["linf", "l2", "l1", "l0"]
    eps: Number = Field(gt=0, description='A number or a fraction such as "8/255".')

    @model_validator(mode="after")
    def _within_images(self) -> ThreatEntry:
        if self.norm == "linf" and self.eps > 1:
            raise ValueError(f"eps = {self.eps:g}: images lie in [0, 1], an L-inf budget is at most 1 (is it 8/255?)")
        return self


class LimitsEntry(BaseModel):
    """What an attack or a detector may spend per image; one that asks for more fails with that reason."""

    model_config = ConfigDict(extra="forbid")
    forwards: float = Field(default=100_000, gt=0, description="Images sent through the model.")
    backwards: float = Field(default=50_000, gt=0, description="Gradients taken.")
    seconds: float = Field(default=120, gt=0, description="Wall-clock of an attack, only a safety.")
    score_seconds: float = Field(default=1, gt=0, description="Wall-clock of a detector's score, only a safety.")


class ModelEntry(_Entry):
    """A model: a name or a factory, and where its weights come from."""

    name: str | None = Field(None, description="A model: `aftershock list models`, or a torchvision classifier.")
    factory: str | None = Field(None, description="`package.module:function` or `file.py:function`.")
    label: Label | None = None
    weights: str | None = Field(None, description="Absolute, beside the suite, or under the data root.")
    train_if_missing: bool = Field(False, description="Train where the weights are not found.")
    tap_modules: list[str] = Field(default=[], description="Modules to tap besides the ReLU-like calls.")
    bits_per_tap: int | None = Field(None, gt=0, description="At most so many bits per tap, a seeded sample.")

    @model_validator(mode="after")
    def _one_source(self) -> ModelEntry:
        if (self.name is None) == (self.factory is None):
            raise ValueError("a model has either `name` or `factory`")
        return self


class PerturbationEntry(_Entry):
    """A perturbation; `eps` may be a list, which makes one perturbation per budget."""

    name: str = Field(description="A perturbation: `aftershock list perturbations`.")
    label: Label | None = None


class DetectorEntry(_Entry):
    """A detector; supervised ones name the perturbations that they learn from."""

    name: str = Field(description="A detector: `aftershock list detectors`.")
    label: Label | None = None
    fit_on: list[str] = Field(default=[], description="Labels of perturbations that the detector may learn from.")
    fit_negatives: list[str] = Field(default=[], description="Labels of noise that counts as clean in fit.")


class AnalysisEntry(_Entry):
    """An analysis of the model's codes."""

    name: str = Field(description="An analysis: `aftershock list analyses`.")
    label: Label | None = None


class SuiteFile(BaseModel):
    """A suite as it is written in TOML."""

    model_config = ConfigDict(extra="forbid", title="Aftershock suite")
    name: Label
    seeds: list[Annotated[int, Field(ge=0)]] = Field(default=[0], min_length=1)
    plugins: list[str] = []
    data: DataEntry
    threat: ThreatEntry
    limits: LimitsEntry = Field(default_factory=LimitsEntry)
    models: list[ModelEntry] = Field(min_length=1)
    perturbations: list[PerturbationEntry] = Field(min_length=1)
    detectors: list[DetectorEntry] = Field(min_length=1)
    analyses: list[AnalysisEntry] = []


def locate(text: str, location: Sequence[str | int]) -> int:
    """The line (from 1) of a key in TOML text, e.g. of ``("detectors", 1, "layers")``; 0 where it cannot be told."""
    line, table, count = 0, "", -1
    wanted = [str(part) for part in location if not isinstance(part, int)]
    index = next((part for part in location if isinstance(part, int)), None)
    counts: dict[str, int] = {}
    for number, content in enumerate(text.splitlines(), 1):
        header = re.match(r"\s*(\[\[?)\s*([A-Za-z0-9_.-]+)\s*\]", content)
        if header:
            table = header[2]
            if header[1] == "[[":
                counts[table] = count = counts.get(table, -1) + 1
            else:
                count = -1
            if wanted and table == wanted[0] and index in (None, count):
                line = number
            continue
        key = re.match(r"\s*[\"']?([A-Za-z0-9_-]+)[\"']?\s*=", content)
        if key:
            here = [table, key[1]] if table else [key[1]]
            if here == wanted[: len(here)] and (not table or len(wanted) > 1) and (not table or index in (None, count)):
                return number
    return line


def explain(item: Any) -> str:
    """A pydantic error in a person's words, with the nearest known key for an unknown one."""
    name = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        tables: dict[str, type[BaseModel]] = {"threat": ThreatEntry, "limits": LimitsEntry}
        model = tables.get(str(item["loc"][0]), SuiteFile)
        known = list(model.model_fields)
        return f"unknown key {item['loc'][-1]!r}{did_you_mean(str(item['loc'][-1]), known)}; known: {', '.join(known)}"
    if item["type"] == "missing":
        return f"the key {name!r} is missing"
    message = str(item["msg"]).removeprefix("Value error, ")
    return f"{name}: {message}"
