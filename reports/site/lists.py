"""Lists of all models, detectors and perturbations: where their pages are, and what each is in a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .detector_pages import Standing
from .pages import INDEX, Pages
from .parts import Part

LISTS = (("Models", "models"), ("Detectors", "detectors"), ("Perturbations", "perturbations"))
Paths = tuple[Mapping[str, str], Mapping[str, Part]]


def add_lists(
    pages: Pages, standings: Sequence[Standing], detectors: Paths, perturbations: Paths, without: int
) -> None:
    """Make the list of every kind of page.

    Args:
        pages: takes them.
        standings: the models.
        detectors: their pages, and what is known of them, by label.
        perturbations: the same.
        without: how many detectors have no page.
    """
    models = [(s.page, s.title, s.group.accuracy and f"clean accuracy {s.group.accuracy}",
               " ".join(board.headline["sentence"] for board in s.boards)) for s in standings]  # fmt: skip
    pages.add(f"models/{INDEX}", "list.html", title="Models", heads=("Model", "Accuracy", "Verdict"), entries=models,
              left_out=0)  # fmt: skip
    for (title, folder), (paths, parts) in zip(LISTS[1:], (detectors, perturbations), strict=True):
        found = [(path, label, part.summary, part.paper) for label, path in paths.items()
                 if (part := parts.get(label) or Part(label))]  # fmt: skip
        pages.add(f"{folder}/{INDEX}", "list.html", title=title, heads=(title[:-1], "What it is", "Paper"),
                  entries=found, left_out=without if folder == "detectors" else 0)  # fmt: skip
