"""Pixels: what an image file holds, as the 8 bits per channel that image processors take."""

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.Image import DecompressionBombError

from hf_transfer.errors import one_line

Mode = Literal["RGB", "L"]
PIXELS_VERSION = 2  # of what read_image does: cached activations of another version do not serve

SIXTEEN_BITS = "16-bit grey"
FLOATING_POINT = "floating-point grey"
TRANSPARENT = "transparent"
WHITE = (255, 255, 255, 255)
LARGEST_16_BITS = 65535
UPRIGHT = 1  # value of the EXIF tag
# How Pillow refuses a damaged file, by its format.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, RuntimeError, struct.error, EOFError),
    *(IndexError, NotImplementedError, DecompressionBombError),
)
NO_IMAGE = "no image"
READER = datasets.Image()
TO_8_BITS = 257  # 65535 / 255: an 8-bit grey level that was stored in 16 bits comes back exactly


@dataclass(frozen=True)
class OpenedImage:
    """An image file as read_image reads it; or None, and the reason, which names no file."""

    image: Image.Image | None = None
    reason: str | None = None
    kind: str | None = None  # as image_kind tells

    @property
    def size(self) -> int:
        """The number of its pixels."""
        return self.image.width * self.image.height if self.image else 0


def open_image(stored: Mapping[str, Any] | None, mode: Mode = "RGB") -> OpenedImage:
    """The image of a row as stored: a dict with the bytes, or else the path, of a file."""
    if stored is None or (stored["bytes"] is None and stored["path"] is None):
        return OpenedImage(reason=NO_IMAGE)
    try:
        content = image_bytes(stored)
    except FileNotFoundError:
        return OpenedImage(reason="the image's file is missing")
    except OSError as error:
        # The complete text of the error would name the path.
        return OpenedImage(reason=f"the image's file cannot be read: {error.strerror}")
    if not content:
        return OpenedImage(reason="the image's file is empty")
    try:
        decoded = READER.decode_example({"bytes": content, "path": None})
        return OpenedImage(read_image(decoded, mode), kind=image_kind(decoded))
    except UnidentifiedImageError:
        # The text of the error holds an address in memory, which differs between processes.
        return OpenedImage(reason="the image cannot be read: its format is not known")
    except DAMAGE as error:
        return OpenedImage(reason=f"the image cannot be read: {one_line(error)}")


def image_bytes(stored: Mapping[str, Any]) -> bytes:
    """The content of an image file as stored in a row. Raises OSError."""
    content: bytes | None = stored["bytes"]
    return Path(stored["path"]).read_bytes() if content is None else content


def read_image(image: Image.Image, mode: Mode = "RGB") -> Image.Image:
    """An image as people see it: turned by its EXIF tag, in 8 bits per channel, opaque.

    Grey levels of 16 bits are scaled, where `Image.convert` clips them to white; floating-point
    ones from 0 to 1 too. Transparent pixels are laid on white, where `Image.convert` shows the
    colour below them, mostly black. Raises ValueError for levels beyond 16 bits, whose range no
    file tells.
    """
    # Only where it is turned: otherwise it would be copied, and lose its palette in some modes.
    if image.getexif().get(ExifTags.Base.Orientation, UPRIGHT) != UPRIGHT:
        image = ImageOps.exif_transpose(image)
    scale = _SCALES.get(image.mode)
    if scale:
        image = Image.fromarray(scale(np.asarray(image)))
    elif _is_transparent(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, WHITE), image)
    return image if image.mode == mode else image.convert(mode)


def image_kind(image: Image.Image) -> str | None:
    """What a plain `Image.convert("RGB")` shows otherwise than read_image; None if nothing."""
    if image.mode == "F":
        return FLOATING_POINT
    if image.mode in _SCALES:
        return SIXTEEN_BITS
    return TRANSPARENT if _is_transparent(image) else None


def _is_transparent(image: Image.Image) -> bool:
    """Whether an image can have transparent pixels: an alpha channel, or a transparent colour."""
    return image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info


def _scale_integers(levels: np.ndarray) -> np.ndarray:
    largest = int(levels.max(initial=0))
    if largest > LARGEST_16_BITS or levels.min(initial=0) < 0:
        raise ValueError(f"grey levels up to {largest}, more than 16 bits hold")
    return np.rint(levels / TO_8_BITS).astype(np.uint8)


def _scale_numbers(levels: np.ndarray) -> np.ndarray:
    largest = float(levels.max(initial=0))
    if not (np.isfinite(levels).all() and levels.min(initial=0) >= 0 and largest <= 1):
        raise ValueError("floating-point grey levels that are not between 0 and 1")
    return np.rint(levels * 255).astype(np.uint8)


_SCALES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    **dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N", "I"), _scale_integers),
    "F": _scale_numbers,
}
