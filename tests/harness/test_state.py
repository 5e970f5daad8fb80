"""Records: frozen dataclasses as tensors and JSON, read against what their class says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from aftershock.harness.core.errors import UsageError
from aftershock.harness.core.state import decode, encode
from numpy.typing import NDArray
from safetensors.torch import load, save
from torch import Tensor


@dataclass(frozen=True)
class Inner:
    name: str
    kind: Literal["a", "b"] = "a"


@dataclass(frozen=True, eq=False)
class Record:
    values: Tensor
    counts: NDArray[np.int64]
    share: float
    interval: tuple[float, float | None, float]
    words: tuple[str, ...]
    rows: Sequence[Mapping[str, float]]
    by_pair: Mapping[tuple[str, int], Tensor]
    inner: Inner | None
    others: Mapping[str, Inner]


RECORD = Record(
    torch.arange(6, dtype=torch.int16).reshape(2, 3).T,
    np.array([[1, 2], [3, 4]]),
    float(np.float64(0.1)),
    (math.nan, None, -math.inf),
    ("x", "$tensor"),
    [{"n": 3, "$tensor": 0.5}],
    {("a", 1): torch.eye(2, dtype=torch.bool), ("b", 2): torch.empty(0, 3)},
    Inner("in", "b"),
    {"o": Inner("out")},
)


def through_files(record: Any) -> tuple[dict[str, Tensor], Any]:
    tensors, value = encode(record)
    return load(save(tensors)), json.loads(json.dumps(value, allow_nan=False))


def test_a_record_comes_back_from_its_files_as_it_was() -> None:
    found = decode(Record, *through_files(RECORD))
    assert torch.equal(found.values, RECORD.values) and found.values.dtype == torch.int16
    assert np.array_equal(found.counts, RECORD.counts) and found.counts.dtype == np.int64
    assert math.isnan(found.interval[0]) and found.interval[1:] == (None, -math.inf)
    assert (found.share, found.words, found.rows) == (RECORD.share, RECORD.words, RECORD.rows)
    assert {k: (v.dtype, v.tolist(), v.shape) for k, v in found.by_pair.items()} == {
        k: (v.dtype, v.tolist(), v.shape) for k, v in RECORD.by_pair.items()
    }
    assert (found.inner, found.others) == (RECORD.inner, RECORD.others)
    assert decode(Record, *through_files(replace(RECORD, inner=None))).inner is None


@pytest.mark.parametrize(
    "edit",
    [
        lambda v: v.pop("share"),
        lambda v: v.update(more=1),
        lambda v: v.update(share="high"),
        lambda v: v.update(share=True),
        lambda v: v.update(share={"$number": "many"}),
        lambda v: v.update(interval=[0.1, None]),
        lambda v: v.update(words="x"),
        lambda v: v.update(words=[1]),
        lambda v: v.update(values=3),
        lambda v: v.update(values={"$tensor": "elsewhere"}),
        lambda v: v.update(rows=[[["n"]]]),
        lambda v: v["inner"].update(kind="c"),
        lambda v: v.update(others={}),
    ],
)
def test_what_the_class_does_not_say_is_refused(edit: Any) -> None:
    tensors, value = through_files(RECORD)
    edit(value)
    with pytest.raises(UsageError, match="not a Record as this version writes it"):
        decode(Record, tensors, value)
    with pytest.raises(UsageError):
        decode(Record, tensors, [value])


@dataclass
class Loose:
    value: int = 1


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (Loose(), "is a Loose, which is not frozen"),
        ({1, 2}, r"Record.rows\[0\] is a set"),
        (lambda: 1, "is a function"),
        (np.array(["a"]), "is a ndarray"),
        (torch.device("cpu"), "is a device"),
    ],
)
def test_what_cannot_be_stored_is_named_with_its_place(value: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        encode(replace(RECORD, rows=[value]))
