"""What the code of a plugin opens outside its distribution, its interpreter and its own folder, and what it starts.

An audit hook sees what Python opens, lists or starts, in forks of the process as well; libraries that open files by
themselves (safetensors, parts of torch) are not seen, nor what other programs do. It is a record for the reader of a
table, no fence.
"""

from __future__ import annotations

import mmap
import os
import site
import sys
import sysconfig
import threading
import zlib
from pathlib import Path
from typing import Any

from ...core.content_keys import distribution_files
from .calls import PLUGIN, Callers

# By audited event, which of its arguments is a path.
_OPENING = {"open": 0, "os.listdir": 0, "os.scandir": 0, "os.open": 0}
# By audited event, which of its arguments is an address.
_CONNECTING = {"socket.connect": 1, "socket.bind": 1, "socket.sendto": 1}
_LOADING = "ctypes.dlopen"
# By audited event, which of its arguments is a program; None for a copy of the process itself.
_STARTING = {"subprocess.Popen": 0, "os.posix_spawn": 0, "os.exec": 0, "os.spawn": 1, "os.system": 0,
             "os.fork": None, "os.forkpty": None}  # fmt: skip
# Programs by which libraries learn about the machine.
_QUERIES = frozenset(("uname", "ldconfig", "lscpu", "nproc", "getconf", "sysctl", "sw_vers", "nvidia-smi"))
# Parts of torch that start processes of their own: workers that load data, and compilers.
_STARTERS = ("torch/utils/data/", "torch/_inductor/", "torch/_dynamo/", "torch/utils/cpp_extension", "aftershock")
# They pass tensors over local sockets.
_CONNECTORS = (*_STARTERS, "torch/multiprocessing/")
_SYSTEM = ("/usr/lib", "/usr/share", "/usr/local/lib", "/lib", "/lib64", "/etc", "/dev", "/sys", "/proc/self",
           "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/filesystems", "/proc/sys")  # fmt: skip
# /dev/shm is how processes share what they know.
_SHARED = "/dev/shm/"  # noqa: S108 (nothing is made there)
# Maximum number of names kept of one answer, and of bytes of each.
_MOST, _LONGEST = 20, 400
# Notes that are kept at most, in memory that forks of the process share.
_SLOTS, _SLOT = 128, 1024


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
        self._compiled = (*self._sources, f"{Path.cwd()}{os.sep}")
        self._callers = Callers(self._sources)
        self._notes = mmap.mmap(-1, _SLOTS * _SLOT)
        self._inside = threading.local()

    def begin(self) -> None:
        """Record from now on; there is no way to stop it."""
        sys.addaudithook(self._look)

    def opened(self) -> list[str]:
        """Return what was opened since the last call, each once."""
        return self._taken(b"o")

    def started(self) -> list[str]:
        """Return which programs were started since the last call, each once; ``fork`` for copies of the process."""
        return self._taken(b"s")

    def _look(self, event: str, arguments: tuple[Any, ...]) -> None:
        kinds = ((_OPENING, self._see_opening), (_STARTING, self._see_starting), (_CONNECTING, self._see_connecting))
        see = next((see for events, see in kinds if event in events), None)
        see = self._see_loading if event == _LOADING else see
        if see is None or getattr(self._inside, "busy", False):
            return
        self._inside.busy = True
        try:
            see(event, arguments)
        finally:
            self._inside.busy = False

    def _see_opening(self, event: str, arguments: tuple[Any, ...]) -> None:
        what = arguments[_OPENING[event]]
        # A number is a descriptor that was opened, and seen, before.
        if isinstance(what, int) or what is None:
            return
        name = os.path.realpath(os.fsdecode(what)) if isinstance(what, str | bytes | os.PathLike) else repr(what)
        if f"{name}{os.sep}".startswith(self._allowed) and not name.startswith(_SHARED):
            return
        if name.endswith((".py", ".pyc")) and name.startswith(self._sources):
            return
        if f"{name}{os.sep}" in self._listed:
            return
        self._note(b"o", name)

    def _see_starting(self, event: str, arguments: tuple[Any, ...]) -> None:
        place = _STARTING[event]
        program = "fork" if place is None else arguments[place]
        if event == "subprocess.Popen" and program is None:
            program = arguments[1][0]
        name = os.fsdecode(program) if isinstance(program, str | bytes | os.PathLike) else repr(program)
        folder, _, last = name.rpartition(os.sep)
        query = last in _QUERIES and folder in ("", "/bin", "/sbin", "/usr/bin", "/usr/sbin")
        if not query and not self._callers.caller().startswith(_STARTERS):
            self._note(b"s", name)

    def _see_connecting(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._callers.caller().startswith(_CONNECTORS):
            self._note(b"o", f"connection to {arguments[_CONNECTING[event]]}")

    def _see_loading(self, event: str, arguments: tuple[Any, ...]) -> None:
        # Libraries load others when they are imported; a plugin that calls the system's can open files unseen.
        name = str(arguments[0] if arguments else None)
        own = os.sep in name and os.path.realpath(name).startswith(self._compiled)
        if not own and self._callers.caller() == PLUGIN:
            self._note(b"o", f"library {name}")

    def _note(self, kind: bytes, name: str) -> None:
        """Keep a name; the same from several processes goes to one place, so that none waits for another."""
        text = kind + name.encode("utf-8", "replace")[:_LONGEST]
        start = zlib.crc32(text) % _SLOTS * _SLOT
        self._notes[start : start + len(text) + 1] = text + b"\0"

    def _taken(self, kind: bytes) -> list[str]:
        found: list[str] = []
        for start in range(0, len(self._notes), _SLOT):
            if self._notes[start : start + 1] == kind and len(found) < _MOST:
                text = self._notes[start + 1 : start + _SLOT].partition(b"\0")[0]
                found.append(text.decode("utf-8", "replace"))
                self._notes[start : start + 1] = b"\0"
        return found


def _of_distribution(name: str) -> list[Path]:
    """Return the folders of a distribution's modules, those of the source tree where it is installed editable."""
    return sorted({file.resolve().parent for file in distribution_files(name)}) if name else []
