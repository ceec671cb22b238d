import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hf_transfer.data.pixels import image_kind, read_image

GREY = np.arange(256, dtype=np.uint8).reshape(16, 16)
CLEAR = (0, 0, 0, 0)


def _stored(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return Image.open(io.BytesIO(file.getvalue()))


def _palette() -> Image.Image:
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


DEEP: dict[str, Callable[[], Image.Image]] = {
    "a PNG of 16 bits": lambda: _stored(Image.fromarray(GREY.astype(np.uint16) * 257), "PNG"),
    "a TIFF of 16 bits": lambda: _stored(Image.fromarray(GREY.astype(np.uint16) * 257), "TIFF"),
    "a TIFF of 32 bits": lambda: _stored(Image.fromarray(GREY.astype(np.int32) * 257), "TIFF"),
    "floating point": lambda: _stored(Image.fromarray((GREY / 255).astype(np.float32)), "TIFF"),
}
CLEAR_IMAGES: dict[str, Callable[[], Image.Image]] = {
    "RGBA": lambda: _stored(Image.new("RGBA", (16, 16), CLEAR), "PNG"),
    "grey and alpha": lambda: _stored(Image.new("LA", (16, 16), (0, 0)), "PNG"),
    "a palette": lambda: _stored(_palette(), "PNG", transparency=0),
    "a GIF": lambda: _stored(_palette(), "GIF", transparency=0),
    "a WebP": lambda: _stored(Image.new("RGBA", (16, 16), CLEAR), "WEBP"),
    "a transparent grey": lambda: _stored(Image.new("L", (16, 16), 0), "PNG", transparency=0),
    "a transparent colour": lambda: _stored(
        Image.new("RGB", (16, 16), (1, 2, 3)), "PNG", transparency=(1, 2, 3)
    ),
    "1 bit": lambda: _stored(Image.new("1", (16, 16), 0), "PNG", transparency=0),
}
PLAIN: dict[str, Callable[[], Image.Image]] = {
    "RGB": lambda: _stored(Image.new("RGB", (16, 16), (9, 8, 7)), "PNG"),
    "grey": lambda: _stored(Image.fromarray(GREY), "PNG"),
    "1 bit": lambda: _stored(Image.new("1", (16, 16), 1), "PNG"),
    "CMYK": lambda: _stored(Image.new("CMYK", (16, 16), (9, 8, 7, 6)), "JPEG"),
    "a palette": lambda: _stored(_palette(), "PNG"),
}


@pytest.mark.parametrize("case", DEEP)
def test_grey_levels_of_more_bits_are_scaled_to_those_of_8(case: str) -> None:
    image = DEEP[case]()
    assert np.array_equal(np.asarray(read_image(image, "L")), GREY)
    assert np.array_equal(np.asarray(read_image(image))[..., 0], GREY)


@pytest.mark.parametrize("case", CLEAR_IMAGES)
def test_transparent_pixels_are_white(case: str) -> None:
    assert read_image(CLEAR_IMAGES[case]()).getpixel((3, 3)) == (255, 255, 255)


@pytest.mark.parametrize("case", PLAIN)
def test_other_images_are_converted_as_pillow_does(case: str) -> None:
    for mode in ("RGB", "L"):
        assert read_image(PLAIN[case](), mode).tobytes() == PLAIN[case]().convert(mode).tobytes()


def test_an_image_that_its_tag_turns_is_turned() -> None:
    image = Image.fromarray(GREY[:4])
    tags = Image.Exif()
    tags[0x0112] = 6
    turned = read_image(_stored(image, "PNG", exif=tags), "L")
    assert np.array_equal(np.asarray(turned), np.rot90(GREY[:4], -1))


@pytest.mark.parametrize(
    "levels",
    [
        np.full((4, 4), 70000, np.int32),
        np.full((4, 4), 1.5, np.float32),
        np.full((4, 4), np.nan, np.float32),
    ],
)
def test_levels_whose_range_no_file_tells_are_refused(levels: np.ndarray) -> None:
    with pytest.raises(ValueError, match="grey levels"):
        read_image(Image.fromarray(levels))


@pytest.mark.parametrize(
    ("images", "kinds"),
    [
        (DEEP, {"16-bit grey", "floating-point grey"}),
        (CLEAR_IMAGES, {"transparent"}),
        (PLAIN, {None}),
    ],
)
def test_the_kind_names_what_pillow_alone_shows_otherwise(
    images: dict[str, Callable[[], Image.Image]], kinds: set[str | None]
) -> None:
    assert {image_kind(image()) for image in images.values()} == kinds
