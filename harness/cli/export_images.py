"""``aftershock export --to npz`` and ``--to png``: perturbed images as files, a folder for each perturbation."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from ...reports.answers.names import model_of, perturbation_of
from ...reports.read.frames import only
from ..core.errors import AftershockError, UsageError
from ..run.gallery import ARRAYS, new_folder, write_arrays, write_pictures
from ..run.result import Run

_LONGEST = 80


def export_images(
    run: Run, to: Literal["npz", "png"], out: Path, perturbation: str | None, asked: dict[str, Any]
) -> str:
    """Write the images of one perturbation, or of each one that has some; return what was written, in sentences.

    Args:
        run: the run.
        to: arrays, or pictures with an index.
        out: a new folder.
        perturbation: its label; ``None`` for all.
        asked: the other arguments of :meth:`Run.images`.

    Raises:
        AftershockError: if nothing could be written.
    """
    tables = run.tables
    model = asked["model"] = model_of(tables, asked["model"])
    labels = [perturbation_of(tables, perturbation, asked["missed_by"])] if perturbation else list(
        dict.fromkeys(only(tables.perturbations, model=model)["perturbation"])
    )  # fmt: skip
    new_folder(out, run.folder)
    count, said = 0, []
    for place, label in enumerate(labels):
        try:
            found = run.images(label, **asked)
        except UsageError as error:
            if perturbation is not None:
                raise
            said.append(str(error))
            continue
        if not len(found):
            continue
        # Labels hold brackets and slashes; the number keeps apart what a file name cannot.
        folder = out / f"{place + 1:03d}-{re.sub(r'[^A-Za-z0-9]+', '-', label)[:_LONGEST].strip('-') or 'images'}"
        new_folder(folder, run.folder)
        if to == "png":
            write_pictures(found, folder)
        else:
            write_arrays(found, folder / ARRAYS)
        count += len(found)
        said += [found.note] if found.note else []
    if not count:
        raise AftershockError(" ".join(dict.fromkeys(said)) or "There are no such images.")
    return "\n".join([f"{count} images in {out}.", *dict.fromkeys(said)])
