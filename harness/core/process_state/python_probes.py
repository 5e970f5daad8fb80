"""The state of the interpreter, of the process, and of NumPy.

The functions are taken when this module is imported, so that replacements made later are not used.
"""

from __future__ import annotations

import decimal
import gc
import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from .probe import Probe, identical

DECIDES_NO_NUMBER = True

_SIGNALS = tuple(sorted(signal.valid_signals()))
_TIMERS = tuple(getattr(signal, n) for n in ("ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF") if hasattr(signal, n))
_SYS = ("stdin", "stdout", "stderr", "displayhook", "excepthook", "unraisablehook", "argv", "dont_write_bytecode")
_PATHS = ("path", "meta_path", "path_hooks")
_WARNINGS = ("showwarning", "formatwarning")
_CONTEXT = ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")


def _read_directory() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109 (the function as the system has it)
    except OSError:
        return None


def _write_directory(found: str | None) -> None:
    if found is not None:
        with suppress(OSError):
            os.chdir(found)


def _read_mask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _read_environment() -> dict[str, str]:
    return dict(os.environ)


def _write_environment(found: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(found):
        del os.environ[name]
    for name, value in found.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


def _read_handlers() -> list[Any]:
    return [signal.getsignal(number) for number in _SIGNALS]


def _write_handlers(found: Sequence[Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number, before in zip(_SIGNALS, found, strict=True):
        # None: it was not set from Python, and cannot be.
        if before is not None and signal.getsignal(number) is not before:
            with suppress(OSError, ValueError):
                signal.signal(number, before)


def _read_timers() -> list[tuple[float, float]]:
    return [signal.getitimer(which) for which in _TIMERS]


def _write_timers(found: Sequence[tuple[float, float]]) -> None:
    for which, before, now in zip(_TIMERS, found, _read_timers(), strict=True):
        if bool(before[0]) != bool(now[0]):
            signal.setitimer(which, *before)


def _same_timers(one: Sequence[tuple[float, float]], other: Sequence[tuple[float, float]]) -> bool:
    return [bool(value) for value, _ in one] == [bool(value) for value, _ in other]


class _Descriptors:
    """Copies of the standard streams' descriptors: what they lead to can be found again after they were closed."""

    def __init__(self) -> None:
        self.copies: list[int | None] = []
        for number in range(3):
            try:
                self.copies.append(os.dup(number))
            except OSError:
                self.copies.append(None)

    def __del__(self) -> None:
        for copy in self.copies:
            if copy is not None:
                with suppress(OSError):
                    os.close(copy)

    @property
    def kept(self) -> list[int]:
        """The numbers that lead where they led."""
        return [n for n, copy in enumerate(self.copies) if _leads_to(n) == (None if copy is None else _leads_to(copy))]


def _leads_to(descriptor: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(descriptor)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _write_descriptors(found: _Descriptors) -> None:
    for number in set(range(3)) - set(found.kept):
        copy = found.copies[number]
        with suppress(OSError):
            if copy is None:
                os.close(number)
            else:
                os.dup2(copy, number)


class _DescriptorsProbe(Probe):
    def changed(self, before: Any) -> list[str]:
        return [] if len(before.kept) == len(before.copies) else [self.name]


def _attributes(name: str, owner: Any, names: Sequence[str]) -> Probe:
    """Return attributes of a module, compared by identity."""

    def write(found: Sequence[Any]) -> None:
        for name, value in zip(names, found, strict=True):
            setattr(owner, name, value)

    return Probe(name, lambda: [getattr(owner, name) for name in names], write, "disturbs", identical)


def _write_tracing(found: Sequence[Any]) -> None:
    sys.settrace(found[0])
    sys.setprofile(found[1])


def _read_paths() -> list[list[Any]]:
    return [list(getattr(sys, name)) for name in _PATHS]


def _write_paths(found: Sequence[list[Any]]) -> None:
    for name, value in zip(_PATHS, found, strict=True):
        getattr(sys, name)[:] = value


def _write_filters(found: Sequence[Any]) -> None:
    warnings.filters[:] = found  # type: ignore[index]  # a list, whatever the stubs say
    warnings._filters_mutated()  # type: ignore[attr-defined]  # the registries of what was said already


def _read_logging() -> tuple[Any, ...]:
    root = logging.getLogger()
    return root.level, root.manager.disable, tuple(root.handlers)


def _write_logging(found: tuple[Any, ...]) -> None:
    root = logging.getLogger()
    root.setLevel(found[0])
    logging.disable(found[1])
    root.handlers[:] = found[2]


def _read_decimal() -> list[Any]:
    context = decimal.getcontext()
    return [getattr(context, name) for name in _CONTEXT]


def _write_decimal(found: Sequence[Any]) -> None:
    decimal.setcontext(decimal.Context(**dict(zip(_CONTEXT, found, strict=True))))


_set_locale, _read_numpy_state, _write_numpy_state = locale.setlocale, np.random.get_state, np.random.set_state

PROBES = (
    Probe("tracing", lambda: [sys.gettrace(), sys.getprofile()], _write_tracing, "disturbs", identical),
    _DescriptorsProbe("standard descriptors", _Descriptors, _write_descriptors, "disturbs"),
    _attributes("streams", sys, _SYS),
    _attributes("exception hook of threads", threading, ("excepthook",)),
    Probe("working directory", _read_directory, _write_directory, "disturbs"),
    Probe("file mode mask", _read_mask, os.umask, "disturbs"),
    Probe("environment", _read_environment, _write_environment, "disturbs"),
    Probe("signal handlers", _read_handlers, _write_handlers, "disturbs", identical),
    Probe("timers", _read_timers, _write_timers, "disturbs", _same_timers),
    Probe("blocked signals", lambda: signal.pthread_sigmask(signal.SIG_BLOCK, ()),
          lambda found: signal.pthread_sigmask(signal.SIG_SETMASK, found), "disturbs"),
    Probe("import path", _read_paths, _write_paths, "disturbs"),
    Probe("warnings", lambda: list(warnings.filters), _write_filters, "disturbs", identical),
    _attributes("display of warnings", warnings, _WARNINGS),
    Probe("logging", _read_logging, _write_logging, "disturbs"),
    Probe("locale", lambda: _set_locale(locale.LC_ALL), lambda found: _set_locale(locale.LC_ALL, found)),
    Probe("decimal context", _read_decimal, _write_decimal),
    Probe("garbage collection", gc.isenabled, lambda found: gc.enable() if found else gc.disable(), "disturbs"),
    Probe("recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, "disturbs"),
    Probe("floating point errors of NumPy", np.geterr, lambda found: np.seterr(**found), "disturbs"),
    Probe("print options of NumPy", np.get_printoptions, lambda found: np.set_printoptions(**found), "disturbs"),
    Probe("random state of NumPy", _read_numpy_state, _write_numpy_state, "none", lambda a, b: False),
    Probe("random state of Python", random.getstate, random.setstate, "none"),
)  # fmt: skip
