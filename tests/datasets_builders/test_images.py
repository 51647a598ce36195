from __future__ import annotations

import hashlib
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from datasets_builders import images


def encoded(image: Image.Image, format: str = "PNG", **kwargs: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **kwargs)
    return buffer.getvalue()


@pytest.fixture
def rgb() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_come_back_as_they_were(rgb: np.ndarray, format: str) -> None:
    decoded = images.decode_image(encoded(Image.fromarray(rgb), format))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, rgb)


def test_grey_is_repeated(rgb: np.ndarray) -> None:
    decoded = images.decode_image(encoded(Image.fromarray(rgb[:, :, 0])))
    np.testing.assert_array_equal(decoded, np.repeat(rgb[:, :, :1], 3, axis=2))


def test_transparency_is_dropped(rgb: np.ndarray) -> None:
    rgba = np.dstack([rgb, np.full(rgb.shape[:2], 10, np.uint8)])
    np.testing.assert_array_equal(images.decode_image(encoded(Image.fromarray(rgba))), rgb)


def test_palette_is_looked_up() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert images.decode_image(encoded(image)).tolist() == [[[0, 0, 0], [200, 100, 50]]]


def test_sixteen_bits_keep_the_high_byte() -> None:
    values = np.array([[0, 255, 256, 40_000, 65_535]], np.uint16)
    data = encoded(Image.fromarray(values))
    expected = np.repeat((values // 256).astype(np.uint8)[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(images.decode_image(data), expected)
    stored, size = images.plain_bytes(data)
    assert size == (5, 1)
    # What any other software makes of the stored bytes is the same.
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(stored)).convert("RGB")), expected)


def test_sixteen_bit_colour_keeps_the_high_byte() -> None:
    """Pillow cannot write 16-bit colour, so the PNG is put together by hand."""
    values = np.array([[[0, 300, 65_535], [256, 40_000, 511]]], ">u2")

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header)
    data += chunk(b"IDAT", zlib.compress(b"\0" + values.tobytes())) + chunk(b"IEND", b"")
    np.testing.assert_array_equal(images.decode_image(data), (values // 256).astype(np.uint8))


def test_exif_orientation_is_applied(rgb: np.ndarray) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown rotated by 90 degrees clockwise
    data = encoded(Image.fromarray(rgb), "PNG", exif=exif)
    np.testing.assert_array_equal(images.decode_image(data), np.rot90(rgb, -1))
    stored, size = images.plain_bytes(data)
    assert (stored, size) == (data, (5, 7))


def test_original_bytes_are_kept(rgb: np.ndarray) -> None:
    data = encoded(Image.fromarray(rgb), "JPEG", quality=80)
    assert images.plain_bytes(data) == (data, (7, 5))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a JPEG"),
        (b"no picture", "not a JPEG"),
        (encoded(Image.new("F", (2, 2)), "TIFF"), "32 bit"),
        (encoded(Image.new("RGB", (64, 64)), "GIF"), "not a JPEG"),
    ],
)
def test_unusable_bytes_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(images.ImageError, match=reason):
        images.decode_image(data)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "BMP", "WEBP", "TIFF"])
def test_every_truncation_is_noticed(format: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), format)
    for share in (0.05, 0.3, 0.6, 0.9):
        with pytest.raises(images.ImageError):
            images.decode_image(data[: int(len(data) * share)])


@pytest.mark.parametrize("side", [8_000, 30_000])
def test_decompression_bombs_are_refused_before_decoding(side: int) -> None:
    row = zlib.compress(b"\0" * 100)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    with pytest.raises(images.ImageError, match=r"over the limit|exceeds limit"):
        images.decode_image(bomb)


def test_masks_keep_their_values_and_have_one_channel(rgb: np.ndarray) -> None:
    values = np.array([[0, 1, 2], [3, 255, 0]], np.uint8)
    np.testing.assert_array_equal(images.decode_mask(images.encode_png(values)), values)
    np.testing.assert_array_equal(
        images.decode_mask(encoded(Image.fromarray(values > 0))), (values > 0) * 255
    )
    with pytest.raises(images.ImageError, match="one channel"):
        images.decode_mask(encoded(Image.fromarray(rgb)))


def test_digest_of_png_is_of_pixels_and_of_jpeg_is_of_bytes(rgb: np.ndarray) -> None:
    image = Image.fromarray(rgb)
    fast, small = encoded(image, compress_level=0), encoded(image, compress_level=9)
    assert fast != small
    assert images.image_digest(fast) == images.image_digest(small)
    changed = rgb.copy()
    changed[0, 0, 0] ^= 1
    assert images.image_digest(encoded(Image.fromarray(changed))) != images.image_digest(fast)
    assert images.image_digest(encoded(Image.fromarray(rgb.reshape(7, 5, 3)))) != images.image_digest(fast)
    jpeg = encoded(image, "JPEG")
    assert images.image_digest(jpeg) == hashlib.sha256(jpeg).hexdigest()
