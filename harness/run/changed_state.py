"""What finished cells say about state that code of others left changed."""

from __future__ import annotations

from ..core.process_state.guard import CHANGED, CHANGED_FLAG
from ..evaluation.finished import Finished


def changed_state(finished: Finished) -> list[str]:
    """Return a sentence for each part that changed the process while its cells were computed."""
    found: dict[str, dict[str, None]] = {}
    for cell in finished.plan.cells.values():
        if cell.key not in finished.summary.done:
            continue
        values = finished.store.values(cell.key)
        flags = (f.removeprefix(f"{CHANGED_FLAG}:") for f in values.get("flags", ()) if f.startswith(CHANGED_FLAG))
        names = dict.fromkeys([*values.get(CHANGED, ()), *flags])
        if names:
            found.setdefault(cell.name.part or f"The model {cell.name.model}", {}).update(names)
    return [f"{part} changed the process ({', '.join(names)}): undone each time." for part, names in found.items()]
