"""Writing a site: files that are whole or not there, nothing through links, and no page of an earlier site left over.

``files.json`` lists what a report wrote, with digests. A later report removes what it does not make again and nobody
has changed since; files of others stay.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from ...harness.core.errors import UsageError
from ...harness.core.files import (
    MIB,
    file_digest,
    is_regular,
    parse_json,
    read_if_there,
    refuse_links_on_the_way,
    write_atomic,
    write_problem,
)
from ..read.run_directory import mapping

MANIFEST = "files.json"
_LIMIT = 64 * MIB
# The list may come from an untrusted source: nothing in it leads out of the site, or to a hidden file.
_PATH = re.compile(r"(?:[A-Za-z0-9_-][A-Za-z0-9._-]*/){0,3}[A-Za-z0-9_-][A-Za-z0-9._-]*")


def write_site(out: Path, files: Mapping[str, bytes], runs: Sequence[Path]) -> None:
    """Write the files of a site, the front page last.

    Args:
        out: the site's folder, made if need be.
        files: content by path from there.
        runs: the run directories; one may come from anybody, and nothing is written through a link in it.

    Raises:
        UsageError: if a folder of the site is a link, or cannot be written.
        AftershockError: if the disk is full or broken; each file is then the old one, the new one, or not there.
    """
    refuse_links_on_the_way(out, runs)
    folders = sorted({parent for path in files for parent in Path(path).parents if parent.parts})
    for folder in folders:
        if (out / folder).is_symlink():
            raise UsageError(f"{out / folder} is a link: remove it, or choose another folder for the report.")
    before = listed_files(out)
    digests = {path: hashlib.sha256(content).hexdigest() for path, content in sorted(files.items())}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for folder in folders:
            (out / folder).mkdir(parents=True, exist_ok=True)
        for path, content in sorted(files.items(), key=lambda file: file[0] == "index.html"):
            write_atomic(out / path, content)
        write_atomic(out / MANIFEST, json.dumps(digests, indent=0).encode())
        for path, digest in before.items():
            if path not in files:
                _remove(out, path, digest)
    except OSError as error:
        raise write_problem(out, error, "choose another folder for the report") from error


def listed_files(out: Path) -> dict[str, str]:
    """Return the digests of the files that a report wrote into a folder, by path; empty where that is not known."""
    try:
        content = read_if_there(out / MANIFEST, _LIMIT)
        found = mapping(None if content is None else parse_json(content, out / MANIFEST))
    except UsageError:
        return {}
    return {path: digest for path, digest in found.items() if isinstance(digest, str) and _PATH.fullmatch(path)}


def site_files(out: Path) -> list[Path]:
    """Return the files of a site that :func:`write_site` wrote; files of others in its folders are not among them."""
    own = [out / path for path in (*listed_files(out), MANIFEST)]
    return [file for file in own if is_regular(file)]


def _remove(out: Path, path: str, digest: str) -> None:
    """Remove a file of an earlier report, and its folder with the last one; what was changed since stays."""
    file = out / path
    inside = [parent for parent in file.parents if parent != out and out in parent.parents]
    if any(parent.is_symlink() for parent in inside) or not is_regular(file) or file_digest(file) != digest:
        return
    file.unlink()
    for parent in inside:
        with suppress(OSError):
            parent.rmdir()
