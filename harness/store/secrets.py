"""The secret of a run: what decides its shadow images, so that no part can have been made for them.

It is drawn by the system once for each run directory and kept there, so that a run that goes on has the same; another
run has another. Cells that depend on it have a digest of it in their keys. Shards, which work in a cache, have one in
common, which the run takes over that collects their work.
"""

from __future__ import annotations

import re
import secrets
import time
from contextlib import suppress
from pathlib import Path

from ..core.errors import UsageError
from ..core.files import read_file, why, write_atomic
from .cache import LOCKS, SECRETS
from .locks import Locks

DECIDES_NO_NUMBER = True

# In a run directory.
KEPT_IN = ".secret"
_FORM = re.compile(r"[0-9a-f]{64}")
_LIMIT = 128
_POLL = 0.05


def new_secret() -> str:
    """Return a new secret, from the system: 64 hexadecimal digits."""
    return secrets.token_hex(32)


def read_secret(path: Path) -> str:
    """Return the secret in a file; empty where there is none, or something else."""
    try:
        text = read_file(path, _LIMIT, follow=False).decode("ascii", "replace").strip()
    except (OSError, UsageError):
        return ""
    return text if _FORM.fullmatch(text) else ""


def write_secret(path: Path, secret: str) -> None:
    """Write a secret, for the user's own eyes; raises ``OSError``."""
    write_atomic(path, f"{secret}\n".encode())
    with suppress(OSError):
        path.chmod(0o600)


class RunSecret:
    """The secret that a run works with.

    Args:
        folder: the run directory.
        cache: the cache, in which shards have theirs.
        fresh: the run computes everything again, so that what is kept does not count.
        shard: it is one of several that share the work.
    """

    def __init__(self, folder: Path, cache: Path, fresh: bool, shard: bool) -> None:
        self._own, self._cache, self._folder = folder / KEPT_IN, cache, cache / SECRETS
        self._fresh, self._shard = fresh, shard
        self._taken: Path | None = None

    def find(self, name: str) -> str:
        """Return the secret: the run's own, that of its shards, or a new one, which is not written yet.

        Args:
            name: digest of what is run: shards and the run that collects have it in common.
        """
        if self._shard:
            return self._agreed(name)
        place = self._folder / name
        kept = "" if self._fresh else read_secret(self._own)
        pending = "" if kept or self._fresh else read_secret(place)
        self._taken = place if pending else None
        return kept or pending or new_secret()

    def keep(self, secret: str) -> str:
        """Keep a secret in the run directory, which this process holds; returns the one that counts.

        Another process may have finished the run since the secret was looked for.

        Raises:
            OSError: if it cannot be written.
        """
        if self._shard:
            return secret
        kept = "" if self._fresh else read_secret(self._own)
        if not kept:
            write_secret(self._own, secret)
        if self._taken is not None:
            with suppress(OSError):
                self._taken.unlink(missing_ok=True)
        return kept or secret

    def _agreed(self, name: str) -> str:
        """Return the secret of all shards: that of the first one."""
        place, locks = self._folder / name, Locks(self._cache / LOCKS)
        try:
            while (held := locks.take(f"secret-{name}")) is None:
                time.sleep(_POLL)
            with held:
                found = read_secret(place)
                if not found:
                    found = new_secret()
                    place.parent.mkdir(parents=True, exist_ok=True)
                    write_secret(place, found)
        except OSError as error:
            raise UsageError(
                f"{place} cannot be written ({why(error)}): shards meet in a cache that all of them share, --cache."
            ) from error
        return found
