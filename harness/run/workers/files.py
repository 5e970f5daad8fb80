"""Which files the code of a plugin opens: everything outside its distribution, its interpreter and its own folder.

An audit hook sees what Python opens, lists or starts; libraries that open files by themselves (safetensors, parts of
torch) are not seen. It is a record for the reader of a table, no fence.
"""

from __future__ import annotations

import os
import site
import sys
import sysconfig
import threading
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

# By audited event, which of its arguments is a path.
_EVENTS = {"open": 0, "os.listdir": 0, "os.scandir": 0, "os.open": 0, "subprocess.Popen": 0, "os.posix_spawn": 0,
           "os.exec": 0, "os.system": 0}  # fmt: skip
_SYSTEM = ("/usr/lib", "/usr/share", "/usr/local/lib", "/lib", "/lib64", "/etc", "/dev", "/sys", "/proc/self",
           "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/proc/sys")  # fmt: skip
# So many names are kept of one answer.
_MOST = 20


class FileWatch:
    """Records what is opened from :meth:`begin` on.

    Args:
        path: of the plugin's file, or
        name: of its distribution.
    """

    def __init__(self, path: str | None, name: str) -> None:
        own = [Path(path).parent.resolve()] if path else _of_distribution(name)
        # A plugin beside a suite must not read what else lies there: only Python files of its folder are its own.
        self._sources = tuple(str(folder) + os.sep for folder in own)
        # The import system lists the folders that it looks into.
        self._listed = {f"{folder}{os.sep}" for folder in (*own, *map(os.path.realpath, sys.path))}
        known = [*sysconfig.get_paths().values(), *site.getsitepackages(), site.getusersitepackages(),
                 sys.prefix, sys.base_prefix, str(Path(__file__).parents[3]), str(Path.cwd()),
                 # Named by its number once links are followed.
                 f"/proc/{os.getpid()}"]  # fmt: skip
        places = {os.path.realpath(place) for place in known if place} | {place for place in known if place}
        self._allowed = tuple(place.rstrip(os.sep) + os.sep for place in (*sorted(places), *_SYSTEM))
        self._opened: dict[str, None] = {}
        self._inside = threading.local()

    def begin(self) -> None:
        """Record from now on; there is no way to stop it."""
        sys.addaudithook(self._look)

    def opened(self) -> list[str]:
        """What was opened since the last call, each once."""
        found = list(self._opened)[:_MOST]
        self._opened.clear()
        return found

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        place = _EVENTS.get(event)
        if place is None or len(arguments) <= place or getattr(self._inside, "busy", False):
            return
        self._inside.busy = True
        try:
            self._note(arguments[place])
        finally:
            self._inside.busy = False

    def _note(self, what: Any) -> None:
        # A number is a descriptor that was opened, and seen, before.
        if isinstance(what, int) or what is None:
            return
        name = os.path.realpath(os.fsdecode(what)) if isinstance(what, str | bytes | os.PathLike) else repr(what)
        if f"{name}{os.sep}".startswith(self._allowed):
            return
        if name.endswith((".py", ".pyc")) and name.startswith(self._sources):
            return
        if f"{name}{os.sep}" in self._listed:
            return
        self._opened[name[:300]] = None


def _of_distribution(name: str) -> list[Path]:
    try:
        found = distribution(name) if name else None
    except PackageNotFoundError:
        found = None
    if found is None:
        return []
    return sorted({Path(str(found.locate_file(f))).resolve().parent for f in found.files or [] if f.suffix == ".py"})
