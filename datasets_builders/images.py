"""How an image file becomes pixels: the one place that decides it.

The rule, for every reader of the project: EXIF orientation is applied (annotations refer to what viewers
show); grey is repeated over three channels; a palette is looked up; transparency is dropped; CMYK is
converted; of 16-bit values the high byte is kept. 32-bit integer and floating-point images are refused.
"""

from __future__ import annotations

import hashlib
import io
import struct

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 50_000_000
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


class ImageError(ValueError):
    """Bytes that are no usable image; the message says why."""


def _open(data: bytes) -> tuple[Image.Image, bool]:
    """Decodes a file, with EXIF orientation applied; also tells whether 16-bit values were reduced to 8."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as file:
            if file.width * file.height > MAX_PIXELS:
                raise ImageError(f"{file.width} x {file.height} pixels is over the limit of {MAX_PIXELS}")
            file.load()
            image: Image.Image = ImageOps.exif_transpose(file)
    except ImageError:
        raise
    except Image.UnidentifiedImageError as error:
        raise ImageError(f"not a {', '.join(FORMATS)} image") from error
    except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
        # The decoders of Pillow report broken files through all of these.
        raise ImageError(f"truncated or damaged ({error})") from error
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)), True
    if image.mode in ("I", "F"):
        raise ImageError(f"{image.mode!r} pixels (32 bit) have no defined range")
    return image, False


def decode_image(data: bytes) -> np.ndarray:
    """Decodes an image file.

    Args:
        data: The file's bytes: JPEG, PNG, BMP, TIFF or WebP, of at most `MAX_PIXELS` pixels.

    Returns:
        uint8 array (height, width, 3), RGB.

    Raises:
        ImageError: The bytes are truncated, damaged, of another format, or too large.
    """
    return np.asarray(_open(data)[0].convert("RGB"))


def decode_mask(data: bytes) -> np.ndarray:
    """Decodes a mask file to its stored values, uint8 (height, width).

    Raises:
        ImageError: As `decode_image`, or the file is not single-channel.
    """
    image, _ = _open(data)
    if image.mode == "1":
        image = image.convert("L")
    if image.mode not in ("L", "P"):
        raise ImageError(f"a mask must have one channel, this has mode {image.mode!r}")
    return np.asarray(image)


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 pixels (height, width[, 3]) as PNG."""
    buffer = io.BytesIO()
    # On noisy metal higher levels take four times as long and save nothing.
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def plain_bytes(data: bytes) -> tuple[bytes, tuple[int, int]]:
    """Returns the bytes to store for an image, and its (width, height) once decoded.

    These are the original bytes, except where other software would decode them to other pixels than
    `decode_image` does (16-bit images): then an 8-bit PNG of the decoded pixels.

    Raises:
        ImageError: As `decode_image`.
    """
    image, was_deep = _open(data)
    return (encode_png(np.asarray(image.convert("RGB"))) if was_deep else data), image.size


def image_digest(data: bytes) -> str:
    """Returns the sha256 that stands for an image in a dataset's fingerprint.

    PNG files stand for their pixels, because compressed bytes differ between zlib builds; every other format
    stands for its bytes, because decoded pixels differ between JPEG decoders.
    """
    if not data.startswith(_PNG_SIGNATURE):
        return hashlib.sha256(data).hexdigest()
    pixels = decode_image(data)
    return hashlib.sha256(f"{pixels.shape}:".encode() + pixels.tobytes()).hexdigest()
