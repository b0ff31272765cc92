"""Images of any file and mode as RGB, the hostile ones refused."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from observe.errors import InputError

MAX_PIXELS = 89_478_485
"""Pixels of the largest image that is decoded; Pillow's bound for a likely decompression bomb."""
MAX_ASPECT = 200
"""Sides of an image at most differ by this factor; Qwen2.5-VL's image processor takes no more."""


class ImageTooLarge(InputError):
    """An image that is not decoded: too many pixels, or a side that is too long."""


def read_image(path: Path) -> Image.Image:
    """The image of a file as RGB; of an animation the first frame.

    Raises InputError naming the file when it is missing, no image, cut short, or (ImageTooLarge)
    too large.
    """
    return _decode(path, str(path))


def decode_image(data: bytes, name: str) -> Image.Image:
    """`read_image` of what a file holds; ``name`` stands for the file in errors."""
    return _decode(io.BytesIO(data), name)


def _decode(file: Path | io.BytesIO, name: str) -> Image.Image:
    try:
        with Image.open(file) as opened:
            _check_size(opened, name)
            return to_rgb(opened)
    except (InputError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageTooLarge(
            f"{name}: not a readable image (DecompressionBombError: {error}); scale it down"
        ) from None
    except Exception as error:  # Decoders of damaged bytes raise whatever they stumble over.
        raise InputError(
            f"{name}: not a readable image ({type(error).__name__}: {error}); "
            "replace it or remove its question"
        ) from None


def to_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode as RGB, upright.

    Turned as its EXIF orientation says; what is transparent lies on white; 16 bits become the
    upper 8 of them. Raises ValueError for modes without a fixed range of brightness.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        image = _eight_bits(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("floating-point pixels have no fixed range; save it with 8 or 16 bits")
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("32-bit pixels have no fixed range; save it with 8 or 16 bits")
    # Mode I also holds images of 8 bits.
    if image.mode.startswith("I;16") or values.max() > 255:
        values = values >> 8
    return Image.fromarray(values.astype(np.uint8))


def _check_size(image: Image.Image, where: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageTooLarge(
            f"{where}: {width} x {height} pixels; images of more than {MAX_PIXELS} are not read: "
            "scale it down"
        )
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageTooLarge(
            f"{where}: {width} x {height} pixels; one side is more than {MAX_ASPECT} times the "
            "other: cut it"
        )
