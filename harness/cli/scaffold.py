"""Writes a small installable plugin package that works at once."""

from __future__ import annotations

import keyword
import re
import sys
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from string import Template

from ..core.errors import UsageError
from ..core.registry import REGISTRIES, PartKind

NAME = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")


@dataclass(frozen=True)
class _Kind:
    """What differs between the packages of the kinds.

    Attributes:
        words: what a person calls the kind.
        entry: how a suite names the part, with ``$name``.
        is_class: the part is a class, else a function.
    """

    words: str
    entry: str
    is_class: bool = True


_KINDS: dict[PartKind, _Kind] = {
    "detector": _Kind("detector", '[[detectors]] with name = "$name"'),
    "perturbation": _Kind("perturbation", '[[perturbations]] with name = "$name"', is_class=False),
    "analysis": _Kind("analysis", '[[analyses]] with name = "$name"'),
    "model": _Kind("model", '[[models]] with name = "$name"', is_class=False),
    "dataset": _Kind("data set", '[data] with name = "$name"', is_class=False),
}
# Where each file of the skeleton goes; KIND and MODULE become the kind and the module's name.
_FILES = {
    "pyproject.toml.txt": "pyproject.toml",
    "README.md.txt": "README.md",
    "KIND.py.txt": "MODULE.py",
    "test_KIND.py.txt": "test_MODULE.py",
}


def new_package(kind: PartKind, name: str, out: Path | None = None) -> tuple[Path, str]:
    """Write the package.

    Args:
        kind: of the part.
        name: of the part and the package: lower-case letters and digits, with hyphens between.
        out: where; by default a folder of that name here.

    Returns:
        the folder, and how a suite names the part.

    Raises:
        UsageError: for a name that cannot be one or is taken, or a folder that is not empty.
    """
    about = _KINDS[kind]
    article = "an" if kind == "analysis" else "a"
    if not NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be {article} {about.words}'s name: lower-case letters and digits, with hyphens between."
        )
    module = name.replace("-", "_")
    folder = out or Path(name)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UsageError(f"{folder} exists and is not an empty folder: choose another place, --out.")
    if keyword.iskeyword(module) or module in sys.stdlib_module_names or find_spec(module) is not None:
        raise UsageError(f"{name!r} cannot be the name of a package, there is a module of that name: choose another.")
    registry = next(r for r in REGISTRIES.values() if r.word == kind)
    if name in registry.names():
        raise UsageError(f"There is {article} {about.words} {name!r} already: choose another name.")
    class_name = "".join(part.capitalize() for part in name.split("-"))
    values = {
        "name": name,
        "kind": kind,
        "kinds": registry.kind,
        "words": about.words,
        "article": article.capitalize(),
        "module": module,
        "class_name": class_name,
        "attribute": class_name if about.is_class else module,
        "title": name.replace("-", " ").capitalize(),
        "check": f"{kind} {name}" if kind != "detector" else name,
    }
    values["entry"] = Template(about.entry).substitute(values)
    values["table"] = values["entry"].replace(" with ", "\n")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in _FILES.items():
            skeleton = files("aftershock.harness.cli.skeletons").joinpath(source.replace("KIND", kind))
            text = Template(skeleton.read_text(encoding="utf-8")).substitute(values)
            (folder / target.replace("MODULE", module)).write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{folder} cannot be written ({error.strerror}): choose another place, --out.") from error
    return folder, values["entry"]
