"""What ``run.json`` must say so that the cells of a finished run are found."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field, StringConstraints

from ..core.bounded import BitsPerTap, Modules
from ..store.ledger import KEY

Key = Annotated[str, StringConstraints(pattern=KEY.pattern)]
Position = Annotated[int, Field(ge=0, le=10**12)]


class Named(BaseModel):
    name: str


class DetectorEntry(Named):
    label: str
    params: dict[str, Any]


class ModelEntry(DetectorEntry):
    factory: str | None = None
    weights: str | None = None
    tap_modules: Modules = []
    bits_per_tap: BitsPerTap = None


class DataEntry(Named):
    params: dict[str, Any] = {}


class Resolved(BaseModel):
    data: DataEntry
    seeds: list[int] = Field(min_length=1)
    models: list[ModelEntry] = Field(min_length=1)
    detectors: list[DetectorEntry]


class Digests(BaseModel):
    """Sha256 of the weights files, by model label."""

    weights: dict[str, str] = {}


class FittedKeys(BaseModel):
    """The cells of one detector."""

    fit: Key
    calibrate: Key


class PerturbedKeys(BaseModel):
    """The cells of one perturbation of the evaluate images, and of its controls."""

    images: list[Key]
    controls: list[Key]


class Result(BaseModel):
    """The cells of one model and seed."""

    model: str
    seed: int
    key: Key
    detectors: dict[str, FittedKeys]
    perturbations: dict[str, PerturbedKeys] = {}


class Sets(BaseModel):
    """Positions of source images in the test split."""

    evaluate: list[Position] = []


class Facts(BaseModel):
    """What ``run.json`` must say."""

    resolved: Resolved
    results: list[Result]
    digests: Digests = Field(default_factory=Digests)
    sets: Sets = Field(default_factory=Sets)
