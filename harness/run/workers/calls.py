"""Whose code makes a call: the plugin's own, or a library's that it uses."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path
from types import FrameType

DECIDES_NO_NUMBER = True

PLUGIN = "plugin"
# The import system: a module is imported that makes the call.
IMPORT = "import"
_PACKAGE = f"{Path(__file__).resolve().parents[3]}{os.sep}"


class Callers:
    """Knows the standard library and the places of installed libraries.

    Args:
        own: folders of the plugin's own modules.
    """

    def __init__(self, own: tuple[str, ...]) -> None:
        paths = sysconfig.get_paths()
        self._own = own
        self._libraries = tuple({f"{os.path.realpath(paths[name])}{os.sep}" for name in ("purelib", "platlib")})
        self._standard = tuple({f"{os.path.realpath(paths[name])}{os.sep}" for name in ("stdlib", "platstdlib")})

    def caller(self) -> str:
        """Return who called, of those outside the standard library: :data:`PLUGIN`, :data:`IMPORT`, or a library.

        A library is given by its file below the place of libraries, as ``torch/utils/data/dataloader.py``; this
        package is ``aftershock``.
        """
        frame: FrameType | None = sys._getframe(1)
        while frame is not None:
            name = frame.f_code.co_filename
            if name.startswith("<frozen importlib"):
                return IMPORT
            if name != __file__ and not name.startswith(("<frozen", str(Path(__file__).parent / "files.py"))):
                real = os.path.realpath(name)
                if not real.startswith(self._standard) or real.startswith(self._libraries):
                    return self._named(real)
            frame = frame.f_back
        return PLUGIN

    def _named(self, file: str) -> str:
        if file.startswith(_PACKAGE):
            return "aftershock"
        # An environment may lie in the plugin's folder, and an installed plugin among the libraries.
        place = max((place for place in (*self._own, *self._libraries) if file.startswith(place)), key=len, default="")
        return file.removeprefix(place) if place in self._libraries else PLUGIN
