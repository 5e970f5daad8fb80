"""What runs in a worker of the local engine: it computes one task after the other until its owner ends."""

from __future__ import annotations

import os
import pickle
import queue
import signal
import sys
import threading
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from ...core.memory import return_large_blocks
from ..context import Context
from ..work import Result
from .elsewhere import Failure, Shares, opened, results_of

DECIDES_NO_NUMBER = True

# Shares are told no more often than that, in seconds.
_OFTEN = 0.25


@dataclass(frozen=True, eq=False)
class Opening:
    """The first message to a worker.

    Attributes:
        context: surroundings of the tasks.
        threads: that it may compute with.
        place: a folder on the run directory's file system, for the artifacts that it gives away.
    """

    context: Context
    threads: int
    place: Path


@dataclass(frozen=True)
class Ready:
    """The run is open, and tasks are computed."""


@dataclass(frozen=True)
class Said:
    """A sentence that a person should see."""

    text: str


@dataclass(frozen=True)
class Share:
    """The share of the present task that is done."""

    share: float


def send(connection: Connection, value: object) -> None:
    """Send a value by itself: ``Connection.send`` would send tensors as names of memory that both share."""
    connection.send_bytes(pickle.dumps(value))


def receive(connection: Connection) -> Any:
    """Return the next value; raises ``EOFError`` or ``OSError`` where there is none."""
    # From our own process, over a connection that no other process has.
    return pickle.loads(connection.recv_bytes())  # noqa: S301


def main() -> None:
    """Serve the owner, to whom the descriptor is connected that the first argument names."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return_large_blocks()
    owner = Connection(int(sys.argv[1]))
    inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(owner, inbox), daemon=True).start()
    serve(owner, inbox)


def _listen(owner: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    """Take messages; end the process with its owner, whatever is being computed."""
    try:
        while True:
            inbox.put(receive(owner))
    except BaseException:
        # Processes of plugins notice that this one has ended, and end themselves.
        os._exit(1)


def serve(owner: Connection, inbox: queue.SimpleQueue[Any]) -> None:
    """Open what the first message says, and answer every task after it with results or a failure."""
    opening: Opening = inbox.get()
    torch.set_num_threads(opening.threads)

    def give(result: Result) -> Result:
        return replace(result, artifact=result.artifact.given(opening.place / result.key))

    def tell_share(share: float) -> None:
        send(owner, Share(share))

    try:
        with opened(opening.context, lambda text: send(owner, Said(text))) as compute:
            send(owner, Ready())
            while True:
                send(owner, results_of(compute, inbox.get(), Shares(tell_share, _OFTEN), give))
    except Exception as error:
        send(owner, Failure.of(error, fatal=True))
