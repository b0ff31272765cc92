"""Images of any mode and state: seen as a person sees them, or refused with their name."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from observe.data.images import MAX_PIXELS, read_image, to_rgb
from observe.errors import InputError

RED, WHITE, BLACK = (255, 0, 0), (255, 255, 255), (0, 0, 0)


def saved(folder, image, name="image.png", **options):
    path = folder / name
    image.save(path, **options)
    return read_image(path)


def colour(image, at=(0, 0)):
    assert image.mode == "RGB"
    return image.getpixel(at)


def palette(transparent):
    image = Image.new("RGB", (4, 4), RED).quantize(2)
    if transparent:
        image.info["transparency"] = image.getpixel((0, 0))
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("L", (4, 4), 7), (7, 7, 7)),
        (Image.new("1", (4, 4), 1), WHITE),
        (Image.new("LA", (4, 4), (0, 0)), WHITE),
        (Image.new("LA", (4, 4), (0, 255)), BLACK),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), RED),
        (palette(False), RED),
        (palette(True), WHITE),
        (Image.fromarray(np.full((4, 4), 65535, np.uint16)), WHITE),
        (Image.fromarray(np.full((4, 4), 128 << 8, np.uint16)), (128, 128, 128)),
        (Image.fromarray(np.full((4, 4), 100, np.uint16)), BLACK),
    ],
)
def test_odd_modes_are_seen_as_they_look(tmp_path, image, expected):
    assert colour(saved(tmp_path, image)) == expected


def test_cmyk_is_seen_as_it_looks(tmp_path):
    seen = colour(saved(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "image.jpg"))
    assert np.allclose(seen, RED, atol=12)


def test_a_photograph_is_upright(tmp_path):
    image = Image.new("RGB", (8, 4), BLACK)
    image.putpixel((0, 0), RED)
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn it clockwise by a quarter.
    upright = saved(tmp_path, image, exif=exif)
    assert upright.size == (4, 8)
    assert colour(upright, (3, 0)) == RED


def test_of_an_animation_the_first_frame_counts(tmp_path):
    frames = [Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLACK)]
    for name in ("image.gif", "image.png", "image.webp"):
        seen = saved(
            tmp_path, frames[0], name, save_all=True, append_images=frames[1:], duration=100
        )
        assert np.allclose(colour(seen), RED, atol=6), name


def test_an_rgb_image_is_left_as_it_is():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(image))


def png_of(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 100))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not a readable image"),
        (b"GIF89a", "not a readable image"),
        (b"<svg></svg>", "not a readable image"),
        (png_of(64, 64), "not a readable image"),
        (png_of(100_000, 100_000), "not a readable image (DecompressionBombError"),
        (png_of(10_000, 10_000), f"10000 x 10000 pixels; images of more than {MAX_PIXELS}"),
        (png_of(5, 5000), "5 x 5000 pixels; one side is more than 200 times"),
    ],
)
def test_what_is_no_image_is_refused_with_its_name(tmp_path, data, words):
    path = tmp_path / "image.png"
    path.write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["image.png", "image.jpg", "image.gif", "image.webp"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_file_cut_short_is_refused_with_its_name(tmp_path, name, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    path = tmp_path / name
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(InputError, match="not a readable image"):
        read_image(path)


@pytest.mark.parametrize(
    "array", [np.full((4, 4), 0.5, np.float32), np.full((4, 4), 1 << 20, np.int32)]
)
def test_pixels_without_a_fixed_range_are_refused(tmp_path, array):
    path = tmp_path / "image.tiff"
    Image.fromarray(array).save(path)
    with pytest.raises(InputError, match=r"image\.tiff: .*no fixed range; save it with 8"):
        read_image(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.png: not a readable image \(FileNotFoundError"):
        read_image(tmp_path / "none.png")
