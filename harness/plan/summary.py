"""What working through a plan came to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

DECIDES_NO_NUMBER = True


@dataclass
class Summary:
    """What a run came to, by cell key."""

    done: set[str] = field(default_factory=set)
    computed: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    @property
    def ended(self) -> dict[str, str]:
        """Reasons of all cells that were not finished."""
        return self.failed | self.skipped

    def then(self, later: Summary, cells: Iterable[str]) -> Summary:
        """What this and a later pass over other cells came to, of the cells of a plan that replaced this one's."""
        planned = set(cells)
        return Summary(
            (self.done | later.done) & planned,
            (self.computed | later.computed) & planned,
            {k: v for k, v in (self.failed | later.failed).items() if k in planned},
            {k: v for k, v in (self.skipped | later.skipped).items() if k in planned},
        )
