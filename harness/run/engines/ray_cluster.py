"""Connecting to a Ray cluster: one that only its owner can use, or a new one on this machine.

Whoever reaches a cluster without authentication can run any code on it. Such a cluster is refused unless it listens on
the loopback interface alone. A driver that has a token does not notice that the cluster asks for none, so another
process tries to connect without one.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from ...core.errors import UsageError, text_of

DECIDES_NO_NUMBER = True

# Ray's own variables.
_ADDRESS, _MODE = "RAY_ADDRESS", "RAY_AUTH_MODE"
_TOKENS = ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
# Read when Ray is imported: without clusters, everything that it starts listens on the loopback interface alone. The
# name speaks of the systems where that is the default.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
# Connecting takes about a second; an address that does not answer is given up after that many.
_PATIENCE = 30.0
_CONNECT = """
import logging, os, sys
import ray
ray.init(sys.argv[1], log_to_driver=False, logging_level=logging.CRITICAL)
print("connected", *{n["NodeManagerAddress"] for n in ray.nodes() if n["Alive"]}, flush=True)
ray.shutdown()
os._exit(0)
"""
_REFUSED = re.compile(r"InvalidAuthToken|Unauthenticated|AuthenticationError")
_HOW = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to one secret,"


@dataclass(frozen=True)
class Connection:
    """A connection of this process to a cluster.

    Attributes:
        close: ends it, and the cluster if it was started for it.
    """

    close: Callable[[], None]


def connect(address: str | None) -> Connection:
    """Connect this process to a Ray cluster; a program that is connected already stays so.

    Args:
        address: ``host:port`` of its head, or ``auto`` for the one of this machine; ``None`` for that of
            ``RAY_ADDRESS``, else for a new one, which ends with the connection.

    Raises:
        UsageError: if nothing answers there, it refuses this process, or anybody can use it.
    """
    address = address or os.environ.get(_ADDRESS) or "local"
    if address is not None and "://" in address:
        raise UsageError(
            f"--ray-address {address}: Ray's client is not supported. Start the run on a node of the cluster (or with "
            "`ray job submit`) and give HOST:PORT or auto."
        )
    if "ray" not in sys.modules and address == "local":
        with _variable(_CLUSTERS, "0"):
            return _started()
    import ray

    if ray.is_initialized():
        _require_authentication(ray.get_runtime_context().gcs_address, _addresses(ray.nodes()))
        return Connection(lambda: None)
    if address == "local":
        return _started()
    token, none = _Attempt(address, os.environ), _Attempt(address, _without_token())
    try:
        listening = token.connected()
        if listening is None:
            raise UsageError(
                f"The Ray cluster at {address} refuses this program's token: {_HOW} as on its nodes, and try again."
                if token.refused
                else f"No Ray cluster answers at {address}: start the run on one of its nodes and give HOST:PORT as "
                "`ray start` shows it."
            )
        if not all(map(_is_loopback, listening)):
            _refuse_open(address, listening, none)
    finally:
        token.close()
        none.close()
    _init(address)
    return Connection(_quiet(ray.shutdown))


def _started() -> Connection:
    """Start a cluster on this machine."""
    import ray

    with _variable("RAY_USAGE_STATS_ENABLED", "0"):
        _init("local", include_dashboard=False)
    try:
        _require_authentication(ray.get_runtime_context().gcs_address, _addresses(ray.nodes()))
    except UsageError:
        ray.shutdown()
        raise
    return Connection(_quiet(ray.shutdown))


def _init(address: str, **more: Any) -> None:
    """Connect; what Ray does to this process's signals is undone."""
    import ray

    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **more)
    except (ConnectionError, RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        what = "could not be started here" if address == "local" else f"at {address} cannot be used"
        raise UsageError(f"A Ray cluster {what}: {text_of(error)}") from error
    finally:
        if main and before is not None:
            signal.signal(signal.SIGTERM, before)


def _quiet(close: Callable[[], None]) -> Callable[[], None]:
    """Let Ray print nothing until the connection is closed; return what closes it.

    It writes the last lines of a lost node's log to standard output, whatever logging it was told to do. What a person
    has to know of that is told where the task is tried again.
    """
    import ray

    held = vars(ray._private.worker)
    before = held.get("print_to_stdstream")
    if before is None:
        return close
    held["print_to_stdstream"] = lambda *given, **named: None

    def closed() -> None:
        try:
            close()
        finally:
            held["print_to_stdstream"] = before

    return closed


def _require_authentication(address: str, listening: frozenset[str]) -> None:
    """Refuse a cluster that anybody can use."""
    if all(map(_is_loopback, listening)):
        return
    none = _Attempt(address, _without_token())
    try:
        _refuse_open(address, listening, none)
    finally:
        none.close()


def _refuse_open(address: str, listening: frozenset[str], without_token: _Attempt) -> None:
    if without_token.connected() is None and without_token.refused:
        return
    raise UsageError(
        f"The Ray cluster at {address} listens on {', '.join(sorted(listening))} and asks for no token, so whoever "
        f"reaches it can run code there: {_HOW} before `ray start` on each node, and for this program."
    )


class _Attempt:
    """Another process's attempt to connect, which begins at once.

    Attributes:
        refused: it was refused for its token.
    """

    def __init__(self, address: str, environment: Mapping[str, str]) -> None:
        self.refused = False
        self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and program)
            [sys.executable, "-c", _CONNECT, address], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        self._timer = threading.Timer(_PATIENCE, self._process.kill)
        self._timer.daemon = True
        self._timer.start()

    def connected(self) -> frozenset[str] | None:
        """Wait; return the addresses of the cluster's nodes, or ``None`` if it did not connect."""
        for line in self._process.stdout or ():
            if line.startswith("connected"):
                return frozenset(line.split()[1:])
            if _REFUSED.search(line):
                # It would try again and again.
                self.refused = True
                return None
        return None

    def close(self) -> None:
        """End the process."""
        self._timer.cancel()
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _without_token() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in _TOKENS}
    return {**kept, _MODE: "disabled"}


def _addresses(nodes: list[Mapping[str, Any]]) -> frozenset[str]:
    return frozenset(str(node["NodeManagerAddress"]) for node in nodes if node["Alive"])


def _is_loopback(address: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(address).is_loopback
    return False


@contextmanager
def _variable(name: str, value: str) -> Iterator[None]:
    """Set a variable of the environment within a block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = before
