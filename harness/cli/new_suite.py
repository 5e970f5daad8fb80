"""Writes a commented suite for a user's own model and images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from ..core.errors import UsageError
from ..core.registry import DATASETS
from ..data.types import Dataset
from ..models.factories import model_factory
from ..run.model_check import check_models
from ..run.roots import data_root
from ..suite.problems import SuiteError
from ..suite.resolve import load_suite
from ..suite.schema import LABEL

# Sizes that classifiers of photographs take, after the images' own.
SIZES = (224, 32, 64, 28, 299)
FIT, TEST, ADAPTIVE = 4000, 1000, 100


def new_suite(name: str, model: str, images: Path, weights: Path | None = None, out: Path | None = None) -> Path:
    """Write a suite that is valid: its model is built and takes the images.

    Args:
        name: of the suite.
        model: ``FILE.py:function`` or ``package.module:function``, which gives the network.
        images: a folder with ``train/<class>/*`` and ``test/<class>/*``, or an ``.npz`` file.
        weights: of the network, where the function does not load them.
        out: the file; by default ``NAME.toml`` here.

    Returns:
        the file.

    Raises:
        UsageError: for a name that cannot be one, a file that exists, images that cannot be read, or a model that
            cannot be built or takes none of the sizes that were tried.
    """
    if not LABEL.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be a suite's name: start with a letter or digit, then letters, digits, '.', '_', '-'."
        )
    target = out or Path(f"{name}.toml")
    if target.exists():
        raise UsageError(f"{target} exists: choose another name, or another place with --out.")
    for path in filter(None, (images, weights)):
        if not path.exists():
            raise UsageError(f"There is no {path}: correct the path.")
    file, colon, function = model.rpartition(":")
    if not colon:
        raise UsageError(f"--model {model!r} must look like FILE.py:FUNCTION or package.module:FUNCTION.")
    factory = f"{_from(target, Path(file))}:{function}" if file.endswith(".py") else model
    model_factory(None, factory, target.parent)  # a wrong name is reported before anything is written
    skeleton = Template(files("aftershock.harness.cli.skeletons").joinpath("suite.toml.txt").read_text("utf-8"))
    wrong: SuiteError | None = None
    for keys, dataset in _candidates(images):
        test = len(dataset.test)
        calibrate = min(TEST, test // 2)
        evaluate = min(TEST, test - calibrate)
        given = {**keys, "path": _from(target, images)}
        text = skeleton.substitute(
            name=name, file=target.name, model=factory, images=images.name, train=len(dataset.train), test=test,
            fit=min(FIT, len(dataset.train)), calibrate=calibrate, evaluate=evaluate,
            adaptive=min(ADAPTIVE, evaluate), label=function,
            data="\n".join(f"{key} = {json.dumps(value)}" for key, value in given.items()),
            weights=f"weights = {json.dumps(_from(target, weights))}" if weights else "# weights = \"FILE\"",
        )  # fmt: skip
        try:
            _write(target, text)
            suite = load_suite(target)
            problems = check_models(suite, data_root()).problems
            if not problems:
                return target
            wrong = wrong or SuiteError(str(target), problems)
        except SuiteError as error:
            wrong = wrong or error
        target.unlink(missing_ok=True)
    raise wrong or UsageError(f"{images} holds no image.")


def _candidates(images: Path) -> Iterator[tuple[dict[str, Any], Dataset]]:
    """Ways to read the images, with the keys of the suite for each."""
    if images.is_file():
        yield {"name": "npz"}, DATASETS.get("npz")(Path(), path=images).load()
        return
    from PIL import Image, UnidentifiedImageError

    source = DATASETS.get("image-folder")(Path(), path=images, size=1)
    try:
        with Image.open(source.files[0]) as first:
            side, grey = min(first.size), first.mode in ("1", "L", "I", "I;16", "F")
    except (OSError, UnidentifiedImageError) as error:
        raise UsageError(f"The image {source.files[0]} cannot be read: {error}.") from error
    own = [side] if side <= max(SIZES) else []
    for size in dict.fromkeys([*own, *SIZES]):
        for channels in [True, False] if grey else [False]:
            keys = {"name": "image-folder", "size": size, **({"grey": True} if channels else {})}
            params = {key: value for key, value in keys.items() if key != "name"}
            yield keys, DATASETS.get("image-folder")(Path(), path=images, **params).load()


def _from(target: Path, path: Path) -> str:
    """Return a path as the suite names it: relative to its folder where it lies below that, else absolute."""
    whole, folder = path.expanduser().resolve(), target.parent.resolve()
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)


def _write(target: Path, text: str) -> None:
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({error.strerror}): choose another place, --out.") from error
