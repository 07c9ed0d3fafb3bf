"""Images as PNG: every pixel comes back, weak is light and strong is dark, and what is not there is clear."""

import struct
import zlib

import numpy as np
import pytest

from crosspatch.core.errors import BadInput
from crosspatch.draw import pooled, raster_png
from crosspatch.draw.raster import CLEAR, LEVELS, png, ramp, shades


def decoded(content):
    """Read a PNG of palette colours without filters by the format's own rules: indices, palette, opacity."""
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(content):
        (size,) = struct.unpack(">I", content[place : place + 4])
        kind, body = content[place + 4 : place + 8], content[place + 8 : place + 8 + size]
        assert struct.unpack(">I", content[place + 8 + size : place + 12 + size])[0] == zlib.crc32(kind + body)
        chunks[kind], place = body, place + 12 + size
    assert next(iter(chunks)) == b"IHDR"
    assert list(chunks)[-1] == b"IEND"
    columns, rows, *format_ = struct.unpack(">IIBBBBB", chunks[b"IHDR"])
    assert format_ == [8, 3, 0, 0, 0]
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(rows, columns + 1)
    assert not lines[:, 0].any()
    palette = np.frombuffer(chunks[b"PLTE"], np.uint8).reshape(-1, 3)
    opacity = np.frombuffer(chunks.get(b"tRNS", b""), np.uint8)
    return lines[:, 1:], palette, opacity


def test_pixels_and_palette_come_back():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 7, (5, 11)).astype(np.uint8)
    palette = [tuple(map(int, colour)) for colour in rng.integers(0, 256, (7, 3))]
    found, colours, opacity = decoded(png(pixels, palette))
    np.testing.assert_array_equal(found, pixels)
    np.testing.assert_array_equal(colours, palette)
    assert not opacity.size


def test_what_is_not_there_is_clear_and_nothing_else_is():
    values = np.array([[0.0, 1.0, np.nan], [0.5, np.inf, -np.inf]])
    pixels, palette, opacity = decoded(raster_png(values, 0.0, 1.0))
    assert pixels.tolist() == [[0, LEVELS - 1, CLEAR], [round(0.5 * (LEVELS - 1)), LEVELS - 1, 0]]
    assert len(palette) == LEVELS + 1
    assert opacity.tolist() == [255] * LEVELS + [0]


def test_the_ramp_goes_evenly_from_white_to_dark():
    colours = np.array(ramp(), dtype=float)
    assert colours[0].tolist() == [255, 255, 255]
    linear = ((colours / 255 + 0.055) / 1.055) ** 2.4
    lightness = 116 * np.cbrt(linear @ [0.2126, 0.7152, 0.0722]) - 16
    steps = -np.diff(lightness)
    assert (steps > 0).all()
    assert lightness[-1] < 30
    assert steps.max() < 3 * np.median(steps)


def test_equal_values_are_white():
    assert not shades(np.full((2, 2), 3.0), 3.0, 3.0).any()


def test_pooling_keeps_each_peak():
    values = np.zeros((2, 1500))
    values[0, 777], values[1, 1499] = 1.0, 2.0
    few = pooled(values, 860)
    assert few.shape == (2, 860)
    assert few.max(axis=1).tolist() == [1.0, 2.0]
    assert np.flatnonzero(few[0]).item() == pytest.approx(777 * 860 / 1500, abs=1)
    assert pooled(values, 1500) is values
    holes = np.where(np.arange(10)[None] < 5, np.nan, 1.0)
    assert np.isnan(pooled(holes, 4)[0, :2]).all()
    assert pooled(holes, 4)[0, 2:].tolist() == [1.0, 1.0]


def test_an_image_without_pixels_is_refused():
    with pytest.raises(BadInput, match="0 × 3 pixels"):
        raster_png(np.zeros((0, 3)), 0.0, 1.0)
