"""The process of a plugin: it imports the plugin and answers questions about its parts.

Whatever a part prints, changes or breaks stays here. A question is answered with what it asked for, or with the
exception that stopped it.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.errors import AftershockError
from ..workers.channel import Channel, ChannelError, Message, error_message
from ..workers.files import FileWatch
from .kinds import KINDS
from .router import Answers

# How torch says that there is no more.
_NO_MEMORY = "can't allocate memory"


def serve(connection: int) -> None:
    """Answer until the owner is gone.

    Args:
        connection: descriptor of the socket on which it asks.
    """
    channel = Channel(socket.socket(fileno=connection), folder=str(Path.cwd()))
    # Not among what a part may read as the arguments of its program.
    sys.argv = ["aftershock"]
    opening = channel.receive().values
    source = opening["source"]
    watch = FileWatch(source["path"], source["distribution"])
    answers = Answers(channel, source, KINDS)
    memory = float(opening["memory"])
    _limit_memory(memory)
    watch.begin()
    _answer(channel, watch, lambda: Message({"parts": answers.load()}), memory)
    while True:
        try:
            asked = channel.receive()
        except ChannelError:
            return
        answers.prepare(asked)
        _answer(channel, watch, lambda asked=asked: answers.answer(asked), memory)  # type: ignore[misc]  # bound now, not later


def _answer(channel: Channel, watch: FileWatch, make: Callable[[], Message], memory: float) -> None:
    from ...core.clock import Stopwatch
    from ...core.process_state import ARITHMETIC, guarded

    clock = Stopwatch()
    try:
        with guarded(ARITHMETIC) as changes:
            message = make()
        # A part that leaves something without a form on the wire is told so, like any other fault of it.
        values = {
            **message.values,
            "spent": [clock.seconds, clock.imported],
            "files": watch.opened(),
            "programs": watch.started(),
            "changed": changes.all,
        }
        channel.send(Message(values, message.tensors))
    except ChannelError:
        raise
    except BaseException as error:
        # Whatever stopped the part, there is memory to say so.
        _allow_memory()
        channel.send(Message(_error(error, memory)))
        _limit_memory(memory)


def _error(error: BaseException, memory: float) -> dict[str, Any]:
    if isinstance(error, SystemExit):
        text, types = f"it tried to end the program (sys.exit({error.code!r}))", ["UsageError"]
    else:
        text, types = error_message(error)
        if isinstance(error, MemoryError) or _NO_MEMORY in text:
            text = f"{text} (memory = {memory / 2**30:g} under [limits] in the suite, in GiB)".strip()
    try:
        trace = "".join(traceback.format_exception(error))[-8000:]
    except Exception:
        # Its texts, causes or groups cannot be written.
        trace = "".join(traceback.format_tb(error.__traceback__))[-8000:]
    return {"error": text, "types": types, "notes": [f"In the process of the plugin:\n{trace}"]}


def _allow_memory() -> None:
    """Take the limit of memory back."""
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    except (ImportError, ValueError, OSError):
        return


def _limit_memory(size: float) -> None:
    """Let allocations fail beyond a size, so that a part gets an exception before the owner ends the process."""
    import torch

    try:
        import resource

        pages = [int(n) for n in Path("/proc/self/statm").read_text(encoding="ascii").split()[:3]]
    except (ImportError, OSError, ValueError):
        return
    if torch.cuda.is_available():
        # Its drivers reserve addresses without using them.
        return
    addresses, resident, shared = (n * os.sysconf("SC_PAGE_SIZE") for n in pages)
    # The owner counts what is private, of which there is some already.
    rest = max(0, int(size) - (resident - shared))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    try:
        resource.setrlimit(resource.RLIMIT_AS, (addresses + rest, hard))
    except (ValueError, OSError) as error:
        raise AftershockError(f"memory = {size / 2**30:g} GiB cannot be had here ({error})") from error
