"""The suites that come with the package, and the weights that they need."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

DECIDES_NO_NUMBER = True


def builtin_suites() -> dict[str, Path]:
    """Return the suites that come with the package, by name."""
    folder = Path(str(files(__name__)))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}
