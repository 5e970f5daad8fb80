"""The other process's main function: it imports one plugin and answers questions about its parts.

Whatever a part prints, changes or breaks stays here. A question is answered with what it asked for, or with the
exception that stopped it.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...core.errors import AftershockError
from ..workers.channel import Channel, ChannelError, Message, told
from ..workers.files import FileWatch
from ..workers.usage import SIGN, end_all

_SECONDS_BETWEEN_LOOKS = 1.0


def main() -> None:
    """Answer until the owner is gone; then nothing is left of this process, what it started, and its folder."""
    folder, sign = Path.cwd(), os.environ.get(SIGN, "")
    threading.Thread(target=_end_with, args=(os.getppid(), folder, sign), daemon=True).start()
    channel = Channel(socket.socket(fileno=int(sys.argv[1])), folder=str(folder))
    # Not among what a part may read as the arguments of its program.
    sys.argv = ["aftershock"]
    opening = channel.receive().values
    source = opening["source"]
    from .kinds import KINDS
    from .router import Answers

    watch = FileWatch(source["path"], source["distribution"])
    answers = Answers(channel, source, KINDS)
    _limit_memory(float(opening["memory"]))
    watch.begin()
    _answer(channel, watch, lambda: Message({"parts": answers.load()}))
    while True:
        try:
            asked = channel.receive()
        except ChannelError:
            break
        _answer(channel, watch, lambda asked=asked: answers.answer(asked))  # type: ignore[misc]  # bound now, not later
    _end(folder, sign)


def _answer(channel: Channel, watch: FileWatch, make: Callable[[], Message]) -> None:
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
            "changed": changes.all,
        }
        channel.send(Message(values, message.tensors))
    except ChannelError:
        raise
    except BaseException as error:
        channel.send(Message(_error(error)))


def _error(error: BaseException) -> dict[str, Any]:
    if isinstance(error, SystemExit):
        text, types = f"it tried to end the program (sys.exit({error.code!r}))", ["UsageError"]
    else:
        text, types = told(error)
    try:
        trace = "".join(traceback.format_exception(error))[-8000:]
    except Exception:
        # Its texts, causes or groups cannot be written.
        trace = "".join(traceback.format_tb(error.__traceback__))[-8000:]
    return {"error": text, "types": types, "notes": [f"In the process of the plugin:\n{trace}"]}


def _end_with(owner: int, folder: Path, sign: str) -> None:
    """End this process when its owner is gone, whatever a part is doing here."""
    while os.getppid() == owner:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    _end(folder, sign)


def _end(folder: Path, sign: str) -> None:
    end_all(os.getpid(), sign)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


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


if __name__ == "__main__":
    main()
