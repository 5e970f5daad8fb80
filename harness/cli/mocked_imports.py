"""Libraries that are not imported but mocked, as documentation tools do: to read what parts declare, in a process that
computes nothing.

A mocked module has every attribute, and each is a class: it can be derived from, decorate a function and be called.
What a call returns can be kept and passed on; anything else that is done with it needs the library itself.
"""

from __future__ import annotations

import sys
from abc import ABCMeta
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FunctionType, ModuleType
from typing import Any, ClassVar

DECIDES_NO_NUMBER = True

_OPERATIONS = (
    "bool len iter next contains getitem setitem enter int float index lt le gt ge neg add radd sub rsub mul rmul "
    "truediv rtruediv floordiv mod pow matmul and or"
)


class NeedsLibraryError(RuntimeError):
    """Something was to be done with a mocked library that only the library itself can do."""


class Mocks(MetaPathFinder, Loader):
    """Finds mocked modules for all that is imported of some libraries.

    Args:
        libraries: names of top-level packages.

    Attributes:
        needed: something needed a library itself: what was found out is worth nothing.
    """

    def __init__(self, libraries: Sequence[str]) -> None:
        self.needed = False
        self._libraries = libraries

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """As every finder of modules."""
        return ModuleSpec(name, self, is_package=True) if name.partition(".")[0] in self._libraries else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """As every loader of modules."""
        return _Module(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """As every loader of modules."""
        vars(module)["_mocks"] = self

    def need(self) -> NeedsLibraryError:
        """Note that a library itself is needed."""
        self.needed = True
        return NeedsLibraryError("This needs a library that is mocked here.")


def mock_imports(*libraries: str) -> Mocks:
    """Mock libraries, none of which is imported yet, until this process ends."""
    mocks = Mocks(libraries)
    sys.meta_path.insert(0, mocks)
    return mocks


class _Module(ModuleType):
    _mocks: Mocks

    def __getattr__(self, name: str) -> Any:
        if _is_special(name):
            raise AttributeError(name)
        found = _mocked(f"{self.__name__}.{name}", self._mocks)
        setattr(self, name, found)
        return found


class _MockedClass(ABCMeta):
    _mocks: Mocks

    def __getattr__(cls, name: str) -> Any:
        # A class that derives from a mocked one has attributes of its own.
        if _is_special(name) or _Mocked not in cls.__bases__:
            raise AttributeError(name)
        return _mocked(f"{cls.__qualname__}.{name}", cls._mocks)

    def __call__(cls, *given: Any, **named: Any) -> Any:
        if _Mocked in cls.__bases__ and _decorates(given):
            return given[0]
        return super().__call__(*given, **named)


class _Mocked(metaclass=_MockedClass):
    """Base of the mocked attributes; an instance is what a call returned."""

    _mocks: ClassVar[Mocks]

    def __init__(self, *given: Any, **named: Any) -> None:
        pass

    def __call__(self, *given: Any, **named: Any) -> Any:
        if _decorates(given):
            return given[0]
        raise self._mocks.need()

    def __getattr__(self, name: str) -> Any:
        if _is_special(name):
            raise AttributeError(name)
        raise self._mocks.need()


def _refuse(self: _Mocked, *given: object) -> Any:
    raise self._mocks.need()


for _operation in _OPERATIONS.split():
    setattr(_Mocked, f"__{_operation}__", _refuse)


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _decorates(given: Sequence[Any]) -> bool:
    return len(given) == 1 and isinstance(given[0], FunctionType)


def _mocked(name: str, mocks: Mocks) -> _MockedClass:
    return _MockedClass(name, (_Mocked,), {"_mocks": mocks})
