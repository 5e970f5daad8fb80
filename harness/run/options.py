"""What a caller of a run chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..core.interrupts import Interrupt

if TYPE_CHECKING:
    from .runner import Event


@dataclass(frozen=True)
class Options:
    """Options of one call; what each means is told at :func:`aftershock.run`.

    Attributes:
        interrupt: knows of a Ctrl-C, which a part may have caught.
    """

    device: str
    limit: int | None
    only: str | None
    fresh: bool
    engine: str
    on_progress: Callable[[Event], None]
    on_message: Callable[[str], None]
    debug: bool
    interrupt: Interrupt
