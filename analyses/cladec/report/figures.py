"""ClaDec's galleries: originals beside what the sources decode."""

from __future__ import annotations

import torch
from torch import Tensor

from ...findings import Pictures
from ..attacked import Reading
from ..study import Study


def gallery(study: Study, tap: str) -> Pictures:
    """Originals, RefAE, ClaDec, their difference, and the random encoder at one tap, by the first seed."""
    first, reference, random = study.decoders[0], study.source("refae"), study.source("random")
    decoded = study.gallery[tap, first]
    rows: list[tuple[str, Tensor]] = [("original", study.images[: len(decoded)])]
    if reference is not None:
        rows.append((reference.name, study.gallery[tap, reference]))
    rows += [(s.name, study.gallery[tap, s]) for s in study.decoders]
    if reference is not None:
        rows.append(("|ClaDec − RefAE|", (decoded - study.gallery[tap, reference]).abs()))
    if random is not None:
        rows.append((random.name, study.gallery[tap, random]))
    caption = "Evaluate images, decoded by the first repetition; columns are true classes." + (
        f" How {first.name} differs from the RefAE is what ClaDec shows of the classifier: both share the blur."
        if reference is not None
        else ""
    )
    labels = [study.classes[int(c)] for c in study.labels[: len(decoded)]]
    images = torch.stack([images for _, images in rows]).clamp(0, 1)
    return Pictures(f"Decoded from {tap}", caption, images, [name for name, _ in rows], labels)


def attacked_gallery(study: Study, reading: Reading) -> Pictures:
    """Originals, turned images, and what ClaDec decodes from them at every tap."""
    turned, first = reading.turned, study.decoders[0]
    count = len(reading.shown[study.names[0], first])
    rows = [("original", turned.originals[:count]), (f"after {turned.label}", turned.images[:count])]
    rows += [(tap, reading.shown[tap, first]) for tap in study.names]
    labels = [
        f"{study.classes[a]} → {study.classes[b]}"
        for a, b in zip(turned.true[:count].tolist(), turned.reached[:count].tolist(), strict=True)
    ]
    images = torch.stack([images for _, images in rows]).clamp(0, 1)
    return Pictures(
        f"{turned.label}: decoded from every tap",
        f"Turned images and what {first.name} decodes of them (first repetition); columns: true class → class that the "
        "model sees now.",
        images, [name for name, _ in rows], labels,
    )  # fmt: skip
