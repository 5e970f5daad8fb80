"""What a hook is: an object whose methods are called with what a run tells."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DECIDES_NO_NUMBER = True

GROUP = "aftershock.hooks"


class Hook:
    """Base of hooks; override what is needed. A class without arguments, named by an entry point in the group
    ``aftershock.hooks`` of an installed distribution.

    Its code runs in a process of its own, so that it can change nothing in a run; a hook that raises, ends its process
    or falls behind is left out of the rest, with one warning. Facts are JSON values.
    """

    def run_started(self, facts: Mapping[str, Any]) -> None:
        """Take note of the start.

        Args:
            facts: ``suite`` (its name), ``folder`` and ``seeds``.
        """

    def cell_finished(self, facts: Mapping[str, Any]) -> None:
        """Take note of a cell that is over.

        Args:
            facts: ``cell`` (its name), ``status`` (``done``, ``kept`` for one that was there, ``failed`` or
                ``skipped``), ``reason``, ``finished`` and ``total`` (numbers of cells), ``seconds_left``.
        """

    def row_ready(self, facts: Mapping[str, Any]) -> None:
        """Take note of a row of the leaderboard, at the end of a run.

        Args:
            facts: its columns by name (docs/files.md).
        """

    def run_finished(self, facts: Mapping[str, Any]) -> None:
        """Take note of the end.

        Args:
            facts: ``folder``, ``status`` (``done`` or ``failed``), ``computed``, ``failed`` and ``skipped`` (numbers of
                cells), ``seconds``.
        """


EVENTS = ("run_started", "cell_finished", "row_ready", "run_finished")
