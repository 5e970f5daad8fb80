"""What a caller of a run chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, get_args

from ..core.errors import UsageError
from ..core.interrupts import Interrupt
from ..core.registry import did_you_mean

if TYPE_CHECKING:
    from .events import Event


EngineName = Literal["local", "ray"]


@dataclass(frozen=True)
class EngineChoice:
    """What a caller chose.

    Attributes:
        name: of the engine.
        workers: processes that compute; ``None`` for as many as help.
        address: of a Ray cluster; ``None`` for that of ``RAY_ADDRESS``, else for a new one on this machine.

    Raises:
        UsageError: for an unknown name, less than one worker, an address for another engine than Ray, and where Ray is
            not installed.
    """

    name: str = "local"
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        names = list(get_args(EngineName))
        if self.name not in names:
            raise UsageError(
                f"There is no engine {self.name!r}{did_you_mean(self.name, names)}; there are 'local' and 'ray'."
            )
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers {self.workers}: give at least 1.")
        if self.address is not None and self.name != "ray":
            raise UsageError(f"--ray-address {self.address} goes with --engine ray.")
        if self.name == "ray" and find_spec("ray") is None:
            raise UsageError("--engine ray needs Ray, which is not installed: run `pip install 'aftershock[ray]'`.")


@dataclass(frozen=True)
class Shard:
    """Which of several processes this is that share a cache: number ``index`` (from 1) of ``count``."""

    index: int
    count: int

    def owns(self, group: str) -> bool:
        """Return whether a group of cells, by its key, is one that this process begins with."""
        return int(group[:15], 16) % self.count == self.index - 1


@dataclass(frozen=True)
class Options:
    """Options of one call; what each means is told at :func:`aftershock.run`.

    Attributes:
        interrupt: knows of a Ctrl-C, which a part may have caught.
        shard: which of several processes this is.

    Raises:
        UsageError: for a limit of less than one image.
    """

    device: str
    limit: int | None
    only: str | None
    fresh: bool
    engine: EngineChoice
    on_progress: Callable[[Event], None]
    on_message: Callable[[str], None]
    debug: bool
    interrupt: Interrupt
    shard: Shard | None = None

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"--limit {self.limit}: give at least 1 image.")
