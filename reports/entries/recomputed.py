"""What others computed again: a list that the keeper of a board keeps, beside the entries and not among them.

A contributor cannot mark an entry of their own: the list names entries by the sha256 of their files, and lies where
only the keeper writes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from ...harness.core.errors import UsageError
from ...harness.core.files import MIB, parse_strict_json, read_if_there, write_atomic
from .schema import Claims, Digest, Entry, Metrics, Text
from .verify import Disagreement

DECIDES_NO_NUMBER = True

# Another machine's last digits move images that lie at the threshold, and searches end a little elsewhere.
_IMAGES_APART, _PRICE_APART, _SHARE_APART = 2.0, 0.05, 0.05


class Recomputed(BaseModel):
    """Who computed an entry again, and by how much its robust accuracy differed."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)
    by: Text
    date: Text
    robust_accuracy_at_fpr_5: Annotated[float, Field(ge=0, le=1)] | None = None


_LIST = TypeAdapter(dict[Digest, list[Recomputed]])


@dataclass(frozen=True)
class Marks:
    """By the sha256 of an entry's file, who computed it again."""

    by_digest: Mapping[str, Sequence[Recomputed]]

    def of_digest(self, digest: str) -> Sequence[Recomputed]:
        """Return the marks of an entry by the sha256 of its file, in hex."""
        return self.by_digest.get(digest, ())

    def with_mark(self, digest: str, mark: Recomputed) -> Marks:
        """Return the marks with one more, of the entry whose file has this sha256, in hex."""
        others = [m for m in self.by_digest.get(digest, ()) if m.by != mark.by]
        return Marks({**self.by_digest, digest: [*others, mark]})

    def write(self, path: Path) -> None:
        """Write the list."""
        plain = {d: [m.model_dump() for m in marks] for d, marks in sorted(self.by_digest.items())}
        write_atomic(path, (json.dumps(plain, indent=1, ensure_ascii=False) + "\n").encode())


def read_marks(path: Path) -> Marks:
    """Return the list in a file; empty where there is none.

    Raises:
        UsageError: if it cannot be read.
    """
    content = read_if_there(path, 16 * MIB)
    if content is None:
        return Marks({})
    try:
        return Marks(_LIST.validate_python(parse_strict_json(content, path)))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise UsageError(f"{path}: {'.'.join(map(str, first['loc']))[:120]}: {first['msg'][:200]}.") from error


def differences(stated: Entry, found: Entry) -> list[Disagreement]:
    """Return where an entry and one that was computed again are too far apart to be about the same thing.

    Shares may differ by two images or five hundredths, prices by five hundredths of themselves; what must be equal is
    equal: the protocol, the number of images, and whether there is a number at all.
    """
    apart: list[Disagreement] = []
    for name in ("dataset", "model", "detector"):
        apart += _unequal(name, getattr(stated, name), getattr(found, name))
    apart += _unequal("protocol.digest", stated.protocol.digest, found.protocol.digest)
    apart += _unequal("part", *(entry.part and entry.part.model_dump() for entry in (stated, found)))
    apart += _unequal("metrics.n_images", stated.metrics.n_images, found.metrics.n_images)
    images = max(found.metrics.n_images, 1)
    for where, kind in (("metrics", Metrics), ("claims", Claims)):
        for name in kind.model_fields:
            a, b = (getattr(getattr(entry, where), name) for entry in (stated, found))
            if name in ("n_images", "robust_accuracy_low", "robust_accuracy_high", "seed_sd"):
                continue
            if isinstance(a, str) or isinstance(b, str):
                if name in ("not_ranked_reason", "surrogate"):
                    apart += _unequal(f"{where}.{name}", a, b)
            elif not _near(name, a, b, images):
                apart += [Disagreement(f"{where}.{name}", f"{a}", f"{b} was found")]
    return apart


def _unequal(field: str, stated: object, found: object) -> list[Disagreement]:
    return [] if stated == found else [Disagreement(field, str(stated)[:80], f"{str(found)[:80]} was found")]


def _near(name: str, a: float | None, b: float | None, images: int) -> bool:
    if a is None or b is None:
        return a is b
    if name.startswith("n_") or name == "robust_accuracy_is_upper_bound":
        return abs(a - b) <= max(_IMAGES_APART, _SHARE_APART * images) if name.startswith("n_") else a == b
    if name.startswith(("price", "r0", "rd")):
        return math.isclose(a, b, rel_tol=_PRICE_APART)
    return abs(a - b) <= max(_SHARE_APART, _IMAGES_APART / images)
