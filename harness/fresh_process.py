"""Scores from a process that has done nothing else: no fit, no attack, no other detector's state.

A detector must give an image the same score wherever it is asked. The process is started once a run and kept; what it
is asked goes through files of tensors in a temporary folder (safetensors) and lines of JSON, so nothing is unpickled.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Self

import safetensors.torch
import torch
from torch import Tensor

from .errors import AftershockError
from .keys import canonical
from .trace import Need, TapInfo, Traces

_COMMAND = (sys.executable, "-c", "from aftershock.harness.fresh_process import serve; serve()")
_START = 120.0
# In the other process: why plugin files could not be loaded there.
_UNLOADED: list[str] = []


class ProcessEndedError(AftershockError):
    """The process ended, or was ended because it took too long, before it answered."""


class FreshProcess:
    """A process that scores traces with fitted detectors; started when it is first needed.

    Its environment is that of the moment when this object is made: what a fit left in it would be known there too.

    Args:
        plugins: files with registered parts, loaded there as they were here.
        threads: threads that it may use.
    """

    def __init__(self, plugins: Sequence[Path] = (), threads: int = 1) -> None:
        self._plugins, self._threads = tuple(plugins), threads
        self._environment = dict(os.environ)
        self._process: subprocess.Popen[str] | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._answered = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process and remove its folder."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
            self._process = None
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def score(
        self, name: str, params: Mapping[str, Any], tensors: Mapping[str, Tensor], state: Any, traces: Traces,
        repeats: int = 1, seconds: float = 60.0,
    ) -> Tensor:  # fmt: skip
        """Return the scores that a fitted detector gives there, float64 (repeats, n).

        Args:
            name: the detector's registry name.
            params: its parameters.
            tensors: of its fitted state, and
            state: the rest of it (:func:`aftershock.detectors.base.split_state`).
            traces: of n images, with views and input gradients.
            repeats: evaluations.
            seconds: how long all of them may take.

        Raises:
            AftershockError: if it gives no scores there, with the reason.
            ProcessEndedError: if the process did not answer.
        """
        arrays, described = pack_traces(traces)
        question = {
            "detector": name, "params": json.loads(canonical(dict(params))), "state": state, "traces": described,
            "repeats": repeats,
        }  # fmt: skip
        arrays |= {f"state/{k}": v.contiguous().clone() for k, v in tensors.items()}
        answer = self._ask(arrays, question, seconds)
        if "error" in answer:
            raise AftershockError(str(answer["error"]))
        return torch.tensor(answer["scores"], dtype=torch.float64).reshape(repeats, len(traces))

    def _ask(self, arrays: Mapping[str, Tensor], question: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        self.start()
        # It may still be importing what it needs.
        waits = seconds + (0 if self._answered else _START)
        assert self._process is not None and self._folder is not None  # noqa: S101 (for the type checker)
        path = Path(self._folder.name) / "question.safetensors"
        safetensors.torch.save_file(dict(arrays), path)
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None  # noqa: S101 (for the type checker)
        killer = threading.Timer(waits, self._process.kill)
        killer.start()
        try:
            stdin.write(json.dumps({**question, "file": str(path)}) + "\n")
            stdin.flush()
            line = stdout.readline()
        except OSError:
            line = ""
        finally:
            killer.cancel()
        if not line:
            status = self._process.wait()
            raise ProcessEndedError(f"the process that scored it ended (status {status})")
        self._answered = True
        found: dict[str, Any] = json.loads(line)
        return found

    def start(self) -> None:
        """Start the process, if it does not run; it gets ready while others work."""
        if self._process is not None and self._process.poll() is None:
            return
        self.close()
        self._answered = False
        self._folder = tempfile.TemporaryDirectory(prefix="aftershock-")
        environment = {
            **self._environment,
            "AFTERSHOCK_PLUGIN_FILES": json.dumps([str(p) for p in self._plugins]),
            "OMP_NUM_THREADS": str(self._threads),
            # Wherever this process found the package and its plugins, the other one does.
            "PYTHONPATH": os.pathsep.join(p or str(Path.cwd()) for p in sys.path),
        }
        self._process = subprocess.Popen(  # noqa: S603 (our own interpreter and module)
            _COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            encoding="utf-8", env=environment,
        )  # fmt: skip


def pack_traces(traces: Traces) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of traces by name, and JSON values that say how to put them together again."""
    tensors: dict[str, Tensor] = {}

    def walk(part: Traces, at: str) -> dict[str, Any]:
        whole = part.alone()
        tensors[f"{at}logits"] = whole.logits.contiguous().clone()
        codes: dict[str, list[str]] = {}
        for code, taps in whole.codes.items():
            codes[code] = list(taps)
            for number, rows in enumerate(taps.values()):
                tensors[f"{at}{code}/{number}"] = rows[:].contiguous().clone()
        for number, rows in enumerate(whole.gradient_rows.values()):
            tensors[f"{at}gradient/{number}"] = rows[:].contiguous().clone()
        views = {name: walk(view, f"{at}view{number}/") for number, (name, view) in enumerate(part.view_traces.items())}
        return {
            "at": at, "codes": codes, "gradients": list(whole.gradient_rows), "views": views,
            "taps": [[t.name, t.kind, list(t.shape)] for t in part.taps],
            "needs": [[n.representation, n.taps, n.statistic, n.units] for n in part.needs],
        }  # fmt: skip

    return tensors, walk(traces, "traces/")


def unpack_traces(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Traces:
    """Return the traces that :func:`pack_traces` described."""
    at = described["at"]
    needs = tuple(
        Need(representation, taps if isinstance(taps, str) else tuple(taps), statistic, units)
        for representation, taps, statistic, units in described["needs"]
    )
    return Traces(
        tensors[f"{at}logits"],
        tuple(TapInfo(name, kind, tuple(shape)) for name, kind, shape in described["taps"]),
        {
            code: {tap: tensors[f"{at}{code}/{number}"] for number, tap in enumerate(taps)}
            for code, taps in described["codes"].items()
        },
        needs,
        {name: unpack_traces(tensors, view) for name, view in described["views"].items()},
        {name: tensors[f"{at}gradient/{number}"] for number, name in enumerate(described["gradients"])},
    )


def serve() -> None:
    """Answer questions until standard input ends: the other process's main function."""
    # Whatever a detector prints must not end up among the answers.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    from .registry import load_plugin_file

    for path in json.loads(os.environ["AFTERSHOCK_PLUGIN_FILES"]):
        try:
            load_plugin_file(Path(path))
        except Exception as error:
            _UNLOADED.append(" ".join(str(error).split())[:300])
    _answer_all(sys.stdin, answers)


def _answer_all(questions: IO[str], answers: IO[str]) -> None:
    for line in questions:
        try:
            reply: dict[str, Any] = {"scores": _scores(json.loads(line))}
        except (Exception, SystemExit) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())[:400]
            reply = {"error": f"its file could not be loaded again: {_UNLOADED[0]}" if _UNLOADED else said}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def _scores(question: Mapping[str, Any]) -> list[list[float]]:
    from ..detectors.base import join_state
    from .params import bind
    from .registry import DETECTORS
    from .seeds import derive_seed, forked_rng

    tensors = safetensors.torch.load_file(question["file"])
    factory = DETECTORS.get(question["detector"])
    params, problems = bind(factory, question["params"])
    if problems:
        raise AftershockError("; ".join(problems.values()))
    detector = factory(**params)
    state = {name.removeprefix("state/"): value for name, value in tensors.items() if name.startswith("state/")}
    detector.load_state(join_state(state, question["state"]))
    traces = unpack_traces(tensors, question["traces"])
    found = []
    for number in range(question["repeats"]):
        # Drawn scores are the same in every run, whatever was asked before.
        with torch.no_grad(), forked_rng(derive_seed(0, "recheck", "process", number)):
            found.append(detector.score(traces).detach().double().cpu().tolist())
    return found
