"""Check that no module imports upwards or in a circle: the contracts in ``pyproject.toml``, by import-linter.

    python tests/check_layers.py

The repository's root is the package ``aftershock``, whatever the checkout's folder is called. import-linter looks the
package up by name, so it is given a copy of the sources under that name; nothing in them is executed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]


def sources() -> Iterator[Path]:
    """The modules at the root, and the rooms beside them."""
    for path in sorted(ROOT.iterdir()):
        if path.suffix == ".py" or (path / "__init__.py").is_file():
            yield path


def main() -> int:
    """Return 0 if all contracts are kept."""
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or shutil.which("lint-imports")
    if command is None:
        print("There is no lint-imports here: pip install import-linter")
        return 2
    with TemporaryDirectory() as place:
        package = Path(place) / "aftershock"
        package.mkdir()
        for path in sources():
            if path.is_dir():
                shutil.copytree(path, package / path.name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(path, package)
        # It looks in its working directory first.
        done = subprocess.run([command, "--no-cache", "--no-logo", str(ROOT / "pyproject.toml")], cwd=place)
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
