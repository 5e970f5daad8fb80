"""Opens plugins in processes of their own, when a name is looked up; heavy modules wait until that happens."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ...core.registry import Origin

if TYPE_CHECKING:
    from ...suite.resolved import LimitsPart

DECIDES_NO_NUMBER = True


class Host:
    """See :class:`aftershock.harness.core.registry.PluginHost`."""

    def open_file(self, path: Path) -> Origin:
        """Open a local file."""
        from .plugins import open_plugin_file

        return open_plugin_file(path)

    def open_distribution(self, origin: Origin, kind: str, name: str) -> None:
        """Open an installed distribution."""
        from .plugins import open_distribution

        open_distribution(origin, kind, name)

    def allow(self, limits: LimitsPart) -> None:
        """Let every process use what the limits of a suite say."""
        from .pool import POOL
        from .process import Allowance

        POOL.allow(Allowance.of(limits))
