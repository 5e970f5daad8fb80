"""What a cell is called: fields, and one text made of them for people and ``--only``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

DECIDES_NO_NUMBER = True


@dataclass(frozen=True)
class CellName:
    """The name of a cell; its text is the fields that are set, divided by slashes, and is never parsed.

    Attributes:
        dataset: name of the data set.
        model: label of the model.
        seed: seed of the run.
        kind: what the cell does: model, trace, variant, rehearsal, perturb, check, shadowed, radius, false-alarm,
            past-all, rounded, control, fit, score, analysis, view or gradient; of an analysis that is part of every run
            its name (propagation), and what it learns (encoders).
        part: label of the perturbation, detector or analysis that it is about; of a trace the perturbation whose images
            are traced (``none`` for clean ones); empty for a cell of the model itself.
        extra: name of the view or of the gradient.
        source: which images: a set, a perturbation's label, or what was made of them (``control:pgd``).
        start: the first row of the set, where a cell covers a chunk of it.
        code: code of the traces, or ``logits``.
    """

    dataset: str
    model: str
    seed: int
    kind: str
    part: str = ""
    extra: str = ""
    source: str = ""
    start: int | None = None
    code: str = ""

    def __str__(self) -> str:
        fields = (self.dataset, self.model, self.seed, self.kind, self.part, self.extra, self.source, self.start)
        return "/".join(str(field) for field in (*fields, self.code) if field not in ("", None))

    def as_json(self) -> dict[str, str | int | None]:
        """Return all fields by name."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> CellName:
        """Return the name that :meth:`as_json` gave.

        Raises:
            TypeError: for a field that is missing, unknown, or of another type.
        """
        name = cls(**value)
        texts = (name.dataset, name.model, name.kind, name.part, name.extra, name.source, name.code)
        whole = (name.seed, 0 if name.start is None else name.start)
        if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in whole):
            raise TypeError("a field of a cell's name has another type")
        return name
