"""Images of many small cells as PNG: from the page's white to dark blue, written by zlib alone."""

import struct
import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8

from crosspatch.core.errors import BadInput
from crosspatch.draw.colour import STEPS, diverging

LEVELS = 64  # colours of an image: more cannot be told apart beside one another, and fewer bits pack better
CLEAR = LEVELS  # the index of what is not there: the page shows through
Colour = tuple[int, int, int]


def raster_png(values: Float[np.ndarray, "row column"], low: float, high: float) -> bytes:
    """Draw an array, row 0 at the top: white at `low` and below, dark blue at `high` and above, nothing for NaN.

    Lightness falls evenly in between, so that the image can be read in grey. Raises BadInput for an empty array.
    """
    return png(shades(values, low, high), ramp(), clear=CLEAR)


def ramp() -> list[Colour]:
    """Give the colours from weak to strong: the positive half of the scale of heat maps, in finer steps."""
    stops = np.array([tuple(bytes.fromhex(diverging(level)[1:])) for level in range(STEPS + 1)], dtype=np.float64)
    places = np.linspace(0, STEPS, LEVELS)
    red, green, blue = (np.interp(places, np.arange(STEPS + 1), stops[:, i]).round().astype(int) for i in range(3))
    return [(int(r), int(g), int(b)) for r, g, b in zip(red, green, blue, strict=True)]


def shades(values: Float[np.ndarray, "row column"], low: float, high: float) -> UInt8[np.ndarray, "row column"]:
    """Give each value its place on the ramp; NaN gets CLEAR."""
    room = high - low if high > low else 1.0
    levels = np.clip((values.astype(np.float64) - low) / room, 0, 1) * (LEVELS - 1)
    return np.where(np.isnan(levels), CLEAR, np.nan_to_num(levels).round()).astype(np.uint8)


def pooled(values: Float[np.ndarray, "row column"], most: int) -> Float[np.ndarray, "row columns"]:
    """Keep at most so many columns, each the largest of those that it stands for: a narrow peak is not lost."""
    columns = values.shape[1]
    if columns <= most:
        return values
    return np.fmax.reduceat(values, np.arange(most) * columns // most, axis=1)


def png(pixels: UInt8[np.ndarray, "row column"], palette: Sequence[Colour], *, clear: int | None = None) -> bytes:
    """Write indices into a palette of up to 256 colours as a PNG; the index `clear` is transparent.

    Raises BadInput for an image without pixels, which the format does not know.
    """
    rows, columns = pixels.shape
    if not pixels.size:
        raise BadInput(f"an image of {rows} × {columns} pixels cannot be written: give one pixel at least.")
    lines = np.zeros((rows, columns + 1), dtype=np.uint8)  # each line begins with its filter, 0 for none
    lines[:, 1:] = pixels
    colours = list(palette) + [(255, 255, 255)] * (0 if clear is None else clear + 1 - len(palette))
    parts = [
        _chunk(b"IHDR", struct.pack(">IIBBBBB", columns, rows, 8, 3, 0, 0, 0)),
        _chunk(b"PLTE", bytes(part for colour in colours for part in colour)),
        b"" if clear is None else _chunk(b"tRNS", b"\xff" * clear + b"\x00"),
        _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
        _chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _chunk(kind: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(kind + content)
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)
