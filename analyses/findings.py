"""What an analysis found: claims, tables, figures and arrays, as plain values that can be stored and drawn.

The vocabulary of figures is fixed, so that a page about a run from an untrusted source executes nothing: numbers are
checked when they are read, and every word is escaped when it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import torch
from torch import Tensor

from ..harness.core.errors import UsageError
from ..harness.core.state import join_state, split_state

DECIDES_NO_NUMBER = True

Value = str | int | float | None
# A number as a claim quotes it: alone, or with the ends of its interval.
Quoted = int | float | None | tuple[float | None, float | None, float | None]


@dataclass(frozen=True)
class Table:
    """Rows for a CSV file and for the page.

    Attributes:
        name: of the file: letters, digits, hyphens.
        caption: what a row is, one sentence.
        columns: their names.
        rows: as long as ``columns`` each; NaN and infinity count as empty.
    """

    name: str
    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Value]]


@dataclass(frozen=True)
class Series:
    """A curve: ``y`` by the figure's x (``None``: no value there), and its band."""

    name: str
    y: Sequence[float | None]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    style: Literal["solid", "dashed", "dotted"] = "solid"


@dataclass(frozen=True)
class Lines:
    """Curves over depth or another axis; ``x`` may be words (tap names in order)."""

    title: str
    caption: str
    x: Sequence[str | float]
    x_title: str
    y_title: str
    series: Sequence[Series]
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True, eq=False)
class Panel:
    """One matrix, float (rows, columns), with its heading."""

    name: str
    values: Tensor


@dataclass(frozen=True, eq=False)
class HeatMaps:
    """Matrices on one colour scale from ``low`` to ``high``, next to each other.

    ``ticks`` marks runs of rows and columns: (first position, label), as for images ordered by class.
    """

    title: str
    caption: str
    panels: Sequence[Panel]
    low: float
    high: float
    ticks: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True, eq=False)
class Points:
    """A scatter of (n, 2) or (n, 3) coordinates in named groups, with tracks that run through it.

    A group called ``NAME, more words`` beside one called ``NAME`` has the other's colour and another mark.

    Attributes:
        coordinates: float (n, 2 or 3).
        group: int64 (n,), index into ``groups``.
        tracks: float (m, steps, 2 or 3): each is drawn as a line.
        track_names: m names.
    """

    title: str
    caption: str
    axes: Sequence[str]
    coordinates: Tensor
    group: Tensor
    groups: Sequence[str]
    tracks: Tensor = field(default_factory=lambda: torch.empty(0, 0, 3))
    track_names: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Pictures:
    """A grid of images, float (rows, columns, channels, height, width) in [0, 1]; an image of NaN leaves a gap."""

    title: str
    caption: str
    images: Tensor
    row_labels: Sequence[str] = ()
    column_labels: Sequence[str] = ()


Figure = Lines | HeatMaps | Points | Pictures
KINDS: Mapping[str, type] = {"lines": Lines, "heatmaps": HeatMaps, "points": Points, "pictures": Pictures}


@dataclass(frozen=True)
class Claim:
    """One thing that was found, as a value; its sentence says the same to a reader.

    Attributes:
        kind: what is claimed, by a name of the analysis' own (``left-for-good``).
        subject: what it is about: a perturbation, a tap, a network; empty for all.
        estimates: the numbers that it rests on, by name; with the ends of their intervals where they have one.
        verdict: what follows from them (``later``, ``no difference``); empty where nothing does.
        sentence: for people.
    """

    kind: str
    subject: str = ""
    estimates: Mapping[str, Quoted] = field(default_factory=dict)
    verdict: str = ""
    sentence: str = ""


@dataclass(frozen=True, eq=False)
class Findings:
    """What an analysis found for one model and seed.

    Attributes:
        claims: what a reader should take away; the most important first.
        figures: in the order in which they are shown.
        tables: every number that a figure shows is in one of them.
        arrays: what others may want to compute with (maps, codes, decoders' outputs), by name.
    """

    claims: Sequence[Claim] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    arrays: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def sentences(self) -> list[str]:
        """What the claims say to a reader."""
        return [claim.sentence for claim in self.claims if claim.sentence]

    def stored(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors by path, and a JSON value that says where they belong."""
        kinds = {kind: name for name, kind in KINDS.items()}
        value = {
            "sentences": self.sentences,
            "claims": [asdict(c) for c in self.claims],
            "figures": [{"kind": kinds[type(f)], **asdict(f)} for f in self.figures],
            "tables": [asdict(t) for t in self.tables],
            "arrays": dict(self.arrays),
        }
        return split_state(value)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], value: Any) -> Findings:
        """The inverse of :meth:`stored`.

        Raises:
            UsageError: for anything that :meth:`stored` does not write.
        """
        try:
            whole = join_state(tensors, value)
            found = cls(
                _claims(whole),
                [_figure(dict(f)) for f in whole["figures"]],
                [_table(t) for t in whole["tables"]],
                {str(k): _tensor(v) for k, v in dict(whole["arrays"]).items()},
            )
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UsageError(f"these findings were not written by this version ({error!r})") from error
        return found


def _claims(whole: Mapping[str, Any]) -> list[Claim]:
    """The claims of stored findings; older ones have sentences alone."""
    if "claims" not in whole:
        return [Claim("", sentence=_word(s)) for s in whole["sentences"]]
    return [_claim(dict(c)) for c in whole["claims"]]


def _claim(value: dict[str, Any]) -> Claim:
    estimates = {_word(k): _quoted(v) for k, v in dict(value.pop("estimates")).items()}
    return Claim(estimates=estimates, **{k: _word(v) for k, v in value.items()})


def _quoted(value: object) -> Quoted:
    if isinstance(value, list | tuple):
        middle, low, high = (None if v is None else _number(v) for v in value)
        return middle, low, high
    return None if value is None else _number(value)


def _figure(value: dict[str, Any]) -> Figure:
    kind = KINDS[value.pop("kind")]
    known = {f.name for f in fields(kind)}
    if set(value) != known:
        raise ValueError(f"the figure has {sorted(set(value) ^ known)} too much or too little")
    for name in ("title", "caption"):
        value[name] = _word(value[name])
    if kind is Lines:
        value["x"] = [x if isinstance(x, str) else _number(x) for x in value["x"]]
        value["series"] = [_series(dict(s), len(value["x"])) for s in value["series"]]
        value["y_range"] = None if value["y_range"] is None else tuple(_number(v) for v in value["y_range"])
        value["x_title"], value["y_title"] = _word(value["x_title"]), _word(value["y_title"])
    elif kind is HeatMaps:
        value["panels"] = [Panel(_word(p["name"]), _shaped(p["values"], 2)) for p in value["panels"]]
        value["low"], value["high"] = _number(value["low"]), _number(value["high"])
        value["ticks"] = [(int(position), _word(label)) for position, label in value["ticks"]]
    elif kind is Points:
        coordinates, group = _shaped(value["coordinates"], 2), _shaped(value["group"], 1).long()
        value["groups"] = [_word(g) for g in value["groups"]]
        dimensions = coordinates.shape[1]
        in_range = not len(group) or (int(group.min()) >= 0 and int(group.max()) < len(value["groups"]))
        if dimensions not in (2, 3) or len(group) != len(coordinates) or not in_range:
            raise ValueError("points and their groups do not fit each other")
        value["coordinates"], value["group"] = coordinates, group
        value["tracks"] = _shaped(value["tracks"], 3)
        value["track_names"] = [_word(n) for n in value["track_names"]]
        value["axes"] = [_word(a) for a in value["axes"]]
    else:
        images = _shaped(value["images"], 5)
        if images.shape[2] not in (1, 3):
            raise ValueError(f"pictures have 1 or 3 channels, not {images.shape[2]}")
        value["images"] = images
        value["row_labels"] = [_word(label) for label in value["row_labels"]]
        value["column_labels"] = [_word(label) for label in value["column_labels"]]
    made: Figure = kind(**value)
    return made


def _series(value: dict[str, Any], length: int) -> Series:
    rows = {name: [None if y is None else _number(y) for y in value[name]] for name in ("y", "low", "high")}
    if len(rows["y"]) != length or any(len(rows[n]) not in (0, length) for n in ("low", "high")):
        raise ValueError("a curve is not as long as its axis")
    if value["style"] not in ("solid", "dashed", "dotted"):
        raise ValueError(f"there is no style {value['style']!r}")
    return Series(_word(value["name"]), rows["y"], rows["low"], rows["high"], value["style"])


def _table(value: Mapping[str, Any]) -> Table:
    columns = [_word(c) for c in value["columns"]]
    rows = [[v if v is None or isinstance(v, str) else _number(v) for v in row] for row in value["rows"]]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError("a row is not as long as its header")
    return Table(_word(value["name"]), _word(value["caption"]), columns, rows)


def _word(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{value!r} is no number")
    return value


def _tensor(value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"{type(value).__name__} is no tensor")
    return value


def _shaped(value: object, dimensions: int) -> Tensor:
    found = _tensor(value)
    if found.ndim != dimensions:
        raise ValueError(f"a tensor has {found.ndim} axes instead of {dimensions}")
    return found
