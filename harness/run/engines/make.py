"""Making the engine that a caller chose, with as many workers as there are to be."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch

from ...core.errors import UsageError
from ...core.registry import ANALYSES, DATASETS, DETECTORS, MODELS, PERTURBATIONS
from ...store.run_directory import Store
from ...suite.instances import make_detector
from ..context import Context
from ..options import EngineChoice
from ..work import Compute, Engine
from .local import LocalEngine
from .processes import WorkersEngine

DECIDES_NO_NUMBER = True


def make_engine(
    choice: EngineChoice, context: Context, store: Store, here: Compute, on_message: Callable[[str], None], debug: bool
) -> Engine:
    """Return the engine that a caller chose.

    Args:
        choice: made by the caller.
        context: surroundings of the run's tasks.
        store: of the run.
        here: computes tasks in this process.
        on_message: called with sentences that a person should see.
        debug: stop at the first error: everything is computed here, where its traceback can be shown.

    Raises:
        UsageError: for several workers, where a part is known to this process alone; for a Ray cluster that cannot be
            used.
        AftershockError: if they cannot be started.
    """
    several = (choice.workers or 1) > 1
    if debug and several:
        on_message("--debug computes in this process alone, to show where an error was raised: --workers is not used.")
    if choice.name == "ray":
        if session := _of_this_session(context):
            raise UsageError(
                f"--engine ray: {session} is registered in this process alone; put its code into a file that the suite "
                "names under `plugins`, or use the local engine."
            )
        if debug:
            return LocalEngine(here)
        return _ray_engine(choice, context, store, on_message)
    if several and (session := _of_this_session(context)):
        raise UsageError(
            f"--workers {choice.workers}: {session} is registered in this process alone; put its code into a file "
            "that the suite names under `plugins`, or use one worker."
        )
    devices = (context.device,) if debug else _devices(choice.workers, context.device)
    if len(devices) == 1 or (not several and _of_this_session(context)):
        return LocalEngine(here)
    threads = max(1, torch.get_num_threads() // len(devices))
    return WorkersEngine(context, store.incoming(), devices, threads, on_message)


def _ray_engine(choice: EngineChoice, context: Context, store: Store, on_message: Callable[[str], None]) -> Engine:
    from .ray_cluster import connect

    threads = torch.get_num_threads() if "OMP_NUM_THREADS" in os.environ else None
    # Before Ray is imported, which decides on which interfaces it listens.
    connection = connect(choice.address)
    from .ray import RayEngine

    return RayEngine(context, store, connection, choice.workers, threads, on_message)


def _devices(workers: int | None, device: str) -> tuple[str, ...]:
    """The device of each worker: each graphics processor has one, and they take turns where there are more workers."""
    if os.name != "posix":
        if workers is not None and workers > 1:
            raise UsageError(f"--workers {workers}: several workers need Linux or macOS; use one.")
        return (device,)
    places = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if device == "cuda" else [device]
    count = workers or len(places)
    return tuple(places[i % len(places)] for i in range(count))


def _of_this_session(context: Context) -> str:
    """Name a part of the suite that was registered in this process; empty where there is none."""
    suite = context.suite
    named = [(DATASETS, suite.data), *((MODELS, part) for part in suite.models if part.name)]
    named += [(PERTURBATIONS, part) for part in suite.perturbations]
    named += [(ANALYSES, part) for part in suite.analyses]
    names = [(registry, part.name) for registry, part in named]
    # A detector may be made of others.
    names += [(DETECTORS, name) for part in suite.detectors for name in (part.name, *make_detector(part).made_of)]
    return next((f"the {registry.word} {name!r}" for registry, name in names if registry.is_of_session(name)), "")
