"""Writes a small installable plugin package that works at once."""

from __future__ import annotations

import keyword
import re
import sys
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from ..core.errors import UsageError
from ..core.registry import DETECTORS, PACKAGE

_NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
# Where each file of the skeleton goes; MODULE becomes the module's name.
_FILES = {
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "detector.py.txt": "MODULE.py",
    "test_detector.py.txt": "test_MODULE.py",
}


def new_detector(name: str, out: Path | None = None) -> Path:
    """Write the package.

    Args:
        name: of the detector and the package: lower-case letters and digits, with hyphens between.
        out: where; by default a folder of that name here.

    Returns:
        the folder.

    Raises:
        UsageError: for a name that cannot be one or is taken, or a folder that is not empty.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be a detector's name: lower-case letters and digits, with hyphens between.")
    module = name.replace("-", "_")
    folder = out or Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder: choose another place, --out.")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or find_spec(module) is not None:
        raise UsageError(f"{name!r} cannot be the name of a package, there is a module of that name: choose another.")
    if name in DETECTORS.names():
        raise UsageError(f"There is a detector {name!r} already: choose another name.")
    values = {
        "name": name,
        "module": module,
        "class_name": "".join(part.capitalize() for part in name.split("-")),
        "title": name.replace("-", " ").capitalize(),
        "version": version(PACKAGE),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in _FILES.items():
            text = files("aftershock.harness.cli.skeletons").joinpath(source).read_text(encoding="utf-8")
            (folder / target.replace("MODULE", module)).write_text(Template(text).substitute(values), encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}): choose another place, --out.") from error
    return folder
