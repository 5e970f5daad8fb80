"""Files of run directories, caches and guards, which may come from anybody: read with care, and written whole or not.

A file is read only when it is a regular file below a size limit. Its kind is asked for before it is opened, because a
named pipe would wait for ever and a device has no end; a link out of the folder that it belongs to is not followed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import secrets
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import AftershockError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

DECIDES_NO_NUMBER = True

KIB, MIB, GIB = 2**10, 2**20, 2**30
# What one file of tensors may hold: the weights of torchvision's largest classifier take 2.6 GiB.
TENSORS_LIMIT = 4 * GIB
# The names, types and shapes of a file's tensors; 16 MiB hold some 100,000 of them.
HEADER_LIMIT = 16 * MIB

_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
_APPEND = (
    os.O_WRONLY | os.O_APPEND | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    | getattr(os, "O_NOFOLLOW", 0)
)  # fmt: skip
# A disk that is full or broken, as against a place without write permission.
_BROKEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}
_LEFT = "*.[0-9]*.tmp"


class RefusedFileError(UsageError):
    """A file that is not read: of another kind than a regular file, too large, damaged, or outside its folder."""


def is_file(path: Path) -> bool:
    """Return whether a path that a person wrote is a file; a name that cannot be one (too long, no access) is none."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def open_file(path: Path, limit: int, within: Path | None = None, follow: bool = True) -> BufferedReader:
    """Open a regular file for reading; nothing else is opened even for a moment.

    Args:
        path: the file.
        limit: its largest size in bytes.
        within: the folder that it belongs to: a link that leads out of it is refused.
        follow: ``False`` to refuse every link in the file's own place.

    Raises:
        FileNotFoundError: where there is nothing.
        RefusedFileError: for anything but a regular file of at most ``limit`` bytes in its folder.
        OSError: if it cannot be opened.
    """
    target = path
    if within is not None:
        # os.path.realpath, unlike Path.resolve, does not raise where links form a loop.
        target = Path(os.path.realpath(path))
        if not target.is_relative_to(os.path.realpath(within)):
            raise RefusedFileError(f"{path} leads out of its folder: replace the link by the file itself.")
    try:
        if not follow:
            # The place itself: ``target`` is what a link there leads to.
            _check(path, path.lstat(), limit)
        _check(path, target.stat(follow_symlinks=follow), limit)
        opened = os.open(target, _FLAGS | (0 if follow else getattr(os, "O_NOFOLLOW", 0)))
    except FileNotFoundError:
        if path.is_symlink():
            raise _irregular(path) from None
        raise
    except ValueError as error:
        raise RefusedFileError(f"{path} cannot name a file ({error}).") from error
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _irregular(path) from None
        raise
    stream = os.fdopen(opened, "rb")
    try:
        # It may have been replaced since it was asked about.
        _check(path, os.fstat(opened), limit)
    except BaseException:
        stream.close()
        raise
    return stream


def _check(path: Path, facts: os.stat_result, limit: int) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise _irregular(path)
    if facts.st_size > limit:
        raise _too_large(path, limit)


def _irregular(path: Path) -> RefusedFileError:
    return RefusedFileError(f"{path} is not a regular file: remove it or run the suite again.")


def _too_large(path: Path, limit: int) -> RefusedFileError:
    size = f"{limit // MIB} MiB" if limit >= MIB else f"{limit} bytes"
    return RefusedFileError(f"{path} is larger than {size}, more than is read there.")


def read_file(path: Path, limit: int, within: Path | None = None, follow: bool = True) -> bytes:
    """Return a file's bytes; arguments and errors are those of :func:`open_file`."""
    with open_file(path, limit, within, follow) as stream:
        size = os.fstat(stream.fileno()).st_size
        content = stream.read(size + 1)
        if len(content) > size:
            # Some files are longer than their size says.
            content += stream.read(limit + 1 - len(content))
    if len(content) > limit:
        raise _too_large(path, limit)
    return content


def read_if_there(path: Path, limit: int, within: Path | None = None) -> bytes | None:
    """Return a file's bytes, or ``None`` where there is nothing; otherwise like :func:`read_file`."""
    try:
        return read_file(path, limit, within)
    except (FileNotFoundError, NotADirectoryError):
        return None


def parse_json(content: bytes, path: Path) -> Any:
    """Return the JSON value of a file's content.

    Raises:
        RefusedFileError: if it is none, or nested too deeply.
    """
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RefusedFileError(f"{path} is not valid JSON ({str(error)[:200]}).") from error


def parse_strict_json(content: bytes, path: Path, depth: int = 32) -> Any:
    """Return the JSON value of a file from anybody: as the standard has it, with each name of an object once.

    Args:
        content: UTF-8.
        path: for the message.
        depth: how deep lists and objects may be nested.

    Raises:
        RefusedFileError: like :func:`parse_json`, for ``NaN`` and infinite numbers, for a name that an object has
            twice, and for more nesting.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            count = Counter(name for name, _ in pairs)
            twice = next(name for name in found if count[name] > 1)
            raise ValueError(f"an object has the name {twice[:40]!r} twice")
        return found

    def none(constant: str) -> Any:
        raise ValueError(f"it holds {constant}, which is no number of JSON")

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"it holds {text[:40]}, more than a number can be")
        return value

    try:
        value = json.loads(content.decode(), object_pairs_hook=once, parse_constant=none, parse_float=number)
        _check_depth(value, depth)
    except (ValueError, RecursionError) as error:
        raise RefusedFileError(f"{path} is not valid JSON ({str(error)[:200]}).") from error
    return value


def _check_depth(value: Any, left: int) -> None:
    if left < 0:
        raise ValueError("it is nested too deeply")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _check_depth(inner, left - 1)


def file_digest(path: Path, limit: int = 64 * GIB, within: Path | None = None) -> str:
    """Return the sha256 of a file's bytes, in hex; errors are those of :func:`open_file`."""
    with open_file(path, limit, within) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_regular(path: Path) -> bool:
    """Return whether a path itself is a regular file; a link is none, and so is what cannot be asked about."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


@contextmanager
def open_tensors(
    path: Path, limit: int = TENSORS_LIMIT, within: Path | None = None, follow: bool = True
) -> Iterator[Any]:
    """Open a safetensors file; its header is measured before it is read.

    Yields:
        the open file, as of ``safetensors.safe_open`` for torch.

    Raises:
        FileNotFoundError: where there is nothing.
        RefusedFileError: like :func:`open_file`, and for a file that is not in safetensors format.
    """
    from safetensors import SafetensorError, safe_open

    with open_file(path, limit, within, follow) as stream:
        header = int.from_bytes(stream.read(8), "little")
        if header > HEADER_LIMIT:
            raise RefusedFileError(f"{path} cannot be read as safetensors: its header is too large.")
        try:
            opened = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise RefusedFileError(f"{path} is damaged ({' '.join(str(error).split())[:200]}).") from error
        with opened as tensors:
            yield tensors


def read_tensors(
    path: Path, limit: int = TENSORS_LIMIT, within: Path | None = None, follow: bool = True
) -> dict[str, Tensor]:
    """Return all tensors of a safetensors file by name; arguments and errors are those of :func:`open_tensors`."""
    with open_tensors(path, limit, within, follow) as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a mapping)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Make a file beside its final name, which it takes when the block ends well: a reader sees all or nothing.

    Yields:
        the name to make it under, where nothing lies; a link at ``path`` is replaced, not followed.
    """
    # Processes in two containers may have one number.
    temporary = path.with_name(f"{path.name}.{os.getpid()}{secrets.randbelow(10**9):09}.tmp")
    # What lies there is not written through, were it a link.
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        # Also where all went well: renaming one name of a file onto another name of the same file leaves both.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, by :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def append(path: Path, data: bytes) -> os.stat_result:
    """Write to the end of a regular file that exists; return what it was before: its size is where the bytes begin.

    What could not be written whole is taken back, unless the process is killed. The file is closed again, so that who
    opens it after this call, on another machine perhaps, sees what was written.

    Raises:
        FileNotFoundError: where there is nothing.
        OSError: if it cannot be written, is a link or no regular file.
    """
    opened = os.open(path, _APPEND)
    try:
        facts = os.fstat(opened)
        try:
            written = os.write(opened, data)
            while written < len(data):
                written += os.write(opened, data[written:])
        except BaseException:
            os.ftruncate(opened, facts.st_size)
            raise
    finally:
        os.close(opened)
    return facts


def sync(paths: Iterable[Path]) -> None:
    """Have files and folders written to the disk, so that a power cut does not lose them.

    Several at once: a file system writes its journal once for all that wait for it. What is gone meanwhile, and what
    the system cannot do (folders on Windows), is left out.
    """
    waiting = [*paths]
    if waiting:
        with ThreadPoolExecutor(min(8, len(waiting))) as threads:
            list(threads.map(_sync, waiting))


def _sync(path: Path) -> None:
    with suppress(OSError):
        opened = os.open(path, os.O_RDWR if os.name == "nt" else _FLAGS)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def remove_leftovers(folder: Path) -> None:
    """Remove what a killed process left of :func:`replacing` in a folder."""
    for leftover in folder.glob(_LEFT):
        if not leftover.is_dir():
            leftover.unlink(missing_ok=True)


def refuse_links_below(folder: Path, parts: Sequence[str]) -> None:
    """Refuse a folder in which something that will be written or deleted is a link, before anything is touched.

    Args:
        folder: it may itself be a link, because its user named it.
        parts: the names in it that are ours, with all below them.

    Raises:
        UsageError: for the first link, and for a folder that stands where a file belongs.
    """
    waiting = [folder / part for part in parts]
    while waiting:
        path = waiting.pop()
        if path.is_symlink():
            raise UsageError(
                f"{path} is a link, and what is written there would land elsewhere: remove it, or choose another "
                "directory, --out."
            )
        if not path.is_dir():
            continue
        if Path(path.name).suffix in (".json", ".txt", ".lock", ".safetensors", ".csv", ".gz", ".html", ".js", ".css"):
            raise UsageError(f"{path} is a folder where a file belongs: remove it, or choose another directory, --out.")
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_symlink() or entry.is_dir(follow_symlinks=False):
                    waiting.append(Path(entry.path))


def refuse_links_on_the_way(path: Path, roots: Sequence[Path]) -> None:
    """Refuse a target that a link leads to another folder.

    Args:
        path: what will be written; links on the way to one of the roots are the user's own, and followed.
        roots: run directories, perhaps from an untrusted source.

    Raises:
        UsageError: if the target or a folder on the way to it is a link that lies in one of the roots.
    """
    inside = [os.path.realpath(root) for root in roots]
    whole = path.absolute()
    for step in (*reversed(whole.parents), whole):
        if step.is_symlink() and any(Path(os.path.realpath(step.parent)).is_relative_to(root) for root in inside):
            raise UsageError(f"{step} is a link: remove it, or choose another place to write to.")


def why(error: OSError) -> str:
    """Return what the system says of a failed call, with the file that it is about."""
    text = os.strerror(error.errno) if error.errno else str(error)
    name = error.filename2 or error.filename
    return f"{text}: {Path(os.fsdecode(name)).name}" if isinstance(name, str | bytes) and name else text


def write_problem(place: Path, error: OSError, advice: str) -> AftershockError:
    """Return what to tell a person whose files could not be written: a full disk is not a wrong command.

    Args:
        place: the folder or file that was to be written.
        error: why not.
        advice: what to do where the place is wrong.
    """
    if error.errno in _BROKEN:
        return AftershockError(f"{place} could not be written ({why(error)}): free some space and try again.")
    return UsageError(f"{place} cannot be written ({why(error)}): {advice}.")
