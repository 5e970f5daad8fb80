"""What image files hold that their pixels, as they are read, do not show: no pixel is changed, but it is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

DECIDES_NO_NUMBER = True

# Maximum number of files that are examined, evenly spaced, and of 16-bit files that are decoded.
_FILES, _DECODED = 5000, 50
_EXIF_ORIENTATION = 0x0112
# Samples of 12 bits.
_TWELVE_BITS = 4095


def image_notes(path: Path, files: Sequence[Path]) -> tuple[str, ...]:
    """Return sentences about orientation, transparency, further frames and depths of samples, with counts.

    Args:
        path: of the data set, for the reader.
        files: that are read; the headers of at most 5,000 of them are looked at.
    """
    count = min(_FILES, len(files))
    found: Counter[str] = Counter()
    depths: Counter[str] = Counter()
    wide: list[Path] = []
    for place in range(count):
        file = files[place * len(files) // count]
        seen, depth = _of_file(file)
        found.update(seen)
        if depth:
            depths[depth] += 1
        if depth == "16":
            wide.append(file)
    if wide and _twelve_bits(wide):
        found["twelve"] = len(wide)
    where = f"Of {count} image files" + (f" that were looked at, of {len(files)}" if count < len(files) else "")
    texts = {
        "turned": "{} have an orientation in their EXIF data; they are read as they are stored: rotate the "
        "files if the model was trained on rotated images.",
        "alpha": "{} have an alpha channel or a transparent colour, which is dropped: colours below it appear.",
        "frames": "{} hold several frames, of which the first is read.",
        "twelve": "{} have 16 bits, of which those that were decoded use 12 at most: they are divided by 65535, and "
        "look nearly black. Multiply them by 16.",
    }
    notes = [f"{where} of {path}, {text.format(found[key])}" for key, text in texts.items() if found[key]]
    if len(depths) > 1:
        parts = ", ".join(f"{n} have {depth} bits per sample" for depth, n in sorted(depths.items()))
        notes.append(f"{where} of {path}, {parts}: each is scaled to [0, 1] by its own range.")
    return tuple(notes)


def _of_file(file: Path) -> tuple[list[str], str]:
    """What one file's header tells, by key, and its bits per sample; nothing of a file that cannot be read."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            seen = {
                "turned": _orientation(image) not in (0, 1),
                "alpha": image.mode.lower() in ("rgba", "la", "pa") or "transparency" in image.info,
                "frames": getattr(image, "n_frames", 1) > 1,
            }
            return [key for key, holds in seen.items() if holds], _depth(image)
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError):
        # Reading its pixels raises the error.
        return [], ""


def _orientation(image: PillowImage) -> int:
    # Pillow rotates TIFF itself; what stands behind the pixels of a PNG would be read together with them.
    if image.format == "TIFF" or (image.format == "PNG" and "exif" not in image.info):
        return 1
    found = image.getexif().get(_EXIF_ORIENTATION, 1)
    return found if isinstance(found, int) else 1


def _depth(image: PillowImage) -> str:
    """Bits per sample, as text."""
    if image.mode == "1":
        return "1"
    if image.mode.startswith("F"):
        return "32"
    # Colour of 16 bits is told by the decoder alone.
    tiles = getattr(image, "tile", None)
    raw = str(tiles[0][3]) if tiles else ""
    return "16" if image.mode.startswith("I") or ";16" in raw else "8"


def _twelve_bits(files: Sequence[Path]) -> bool:
    """Whether no sample of some files of 16 bits is above 4095."""
    import numpy as np
    from PIL import Image

    for file in files[:: max(1, len(files) // _DECODED)]:
        try:
            with Image.open(file) as image:
                # Pillow reads colours of 16 bits by their upper byte, in which 12 bits leave 15 at most.
                most = _TWELVE_BITS if image.mode.startswith("I") else _TWELVE_BITS >> 8
                if int(np.asarray(image).max()) > most:
                    return False
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue
    return True
