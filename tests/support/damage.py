"""The types of what the tests of damaged files share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

# Damages a file.
Operation = Callable[[Path], None]
# Changes one field of a JSON file.
Edit = Callable[[], None]
# Lists what can be edited in a JSON file, or in the entry of a key of a run directory, by the names of the fields.
Edits = Callable[[Path, str], list[tuple[str, Edit]]]
# Tells in what one run directory differs from another one of the same suite.
Differences = Callable[[Path, Path], list[str]]
