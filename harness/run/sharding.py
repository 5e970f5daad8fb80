"""Several processes, on as many machines as there are, that work through one suite by way of a shared cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.content_keys import FileDigests
from ..core.errors import AftershockError, UsageError
from ..core.interrupts import contained, listening
from ..store.cache import SHARDS
from .options import EngineChoice, Options, Shard

if TYPE_CHECKING:
    from ..suite.resolved import Suite
    from .events import Event


@dataclass(frozen=True)
class ShardRun:
    """What became of a shard.

    Attributes:
        computed: how many cells it computed; all others came from the cache.
        failed: reasons of cells that failed, by name.
        skipped: reasons of cells that cannot work here, by name.
    """

    computed: int
    failed: Mapping[str, str]
    skipped: Mapping[str, str]


def parse_shard(text: str) -> Shard:
    """Return the shard of ``i/n``.

    Raises:
        UsageError: for anything else, and unless 1 <= i <= n.
    """
    found = re.fullmatch(r"\s*([0-9]{1,9})\s*/\s*([0-9]{1,9})\s*", text)
    index, count = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= index <= count:
        raise UsageError(f"--shard {text!r}: write i/n with i from 1 to n, as in 1/4.")
    return Shard(index, count)


def run_shard(
    suite: str | Path | Mapping[str, Any] | Suite,
    shard: str,
    *,
    data: Path | str | None = None,
    device: str = "auto",
    plugins: Sequence[Path | str] = (),
    limit: int | None = None,
    only: str | None = None,
    cache: Path | str | None = None,
    workers: int | None = None,
    on_progress: Callable[[Event], None] = lambda event: None,
    on_message: Callable[[str], None] = lambda text: None,
    debug: bool = False,
) -> ShardRun:
    """Compute cells of a suite into the shared cache, beside n - 1 others that do the same; no tables are made.

    Every shard begins with cells of its own and goes on with whatever no other one is computing, until all cells are
    there. A shard that never starts, or ends early, costs time alone. :func:`aftershock.run` with the same cache
    makes the tables in the end.

    Args:
        suite: like that of :func:`aftershock.run`, as are the options.
        shard: ``i/n``, with i from 1 to n.

    Raises:
        UsageError: for a mistake in the suite or the options, and for a cache that cannot be written.
    """
    from ..core.process_state import guarded
    from ..suite.resolve import load_suite
    from ..suite.resolved import Suite
    from .computing import computed_run
    from .roots import cache_root, data_root

    part, root, shared = parse_shard(shard), data_root(data), cache_root(cache)
    files = tuple(Path(p).expanduser().absolute() for p in plugins)
    with listening() as interrupt, contained(), interrupt.told(), _place(shared) as place:
        options = Options(
            device, limit, only, False, EngineChoice(workers=workers), on_progress, on_message, debug, interrupt, part
        )  # fmt: skip
        with guarded():
            loaded = suite if isinstance(suite, Suite) else load_suite(suite, files)
        digests = FileDigests(shared / "digests.json")
        with computed_run(loaded, place, root, shared, digests, options) as (_, computed):
            return ShardRun(len(computed.finished.summary.computed), computed.failed, computed.skipped)


@contextmanager
def _place(cache: Path) -> Iterator[Path]:
    """Hold a run directory of a shard's own, on the cache's file system, so that cells are linked."""
    from .workers.folder import WorkFolder

    try:
        folder = WorkFolder(cache / SHARDS)
    except AftershockError as error:
        raise UsageError(
            f"{cache} cannot be written: shards meet in a cache that all of them share, --cache ({error})."
        ) from error
    try:
        yield folder.place
    finally:
        folder.remove()
