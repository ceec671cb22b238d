"""Pixels: what an image file holds, as the 8 bits per channel that image processors take."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

Mode = Literal["RGB", "L"]
PIXELS_VERSION = 2  # of what read_image does: cached activations of another version do not serve

SIXTEEN_BITS = "16-bit grey"
FLOATING_POINT = "floating-point grey"
TRANSPARENT = "transparent"
WHITE = (255, 255, 255, 255)
LARGEST_16_BITS = 65535
TO_8_BITS = 257  # 65535 / 255: an 8-bit grey level that was stored in 16 bits comes back exactly


def read_image(image: Image.Image, mode: Mode = "RGB") -> Image.Image:
    """An image as people see it: turned by its EXIF tag, in 8 bits per channel, opaque.

    Grey levels of 16 bits are scaled, where `Image.convert` clips them to white; floating-point
    ones from 0 to 1 too. Transparent pixels are laid on white, where `Image.convert` shows the
    colour below them, mostly black. Raises ValueError for levels beyond 16 bits, whose range no
    file tells.
    """
    # Only where it is turned: a transposed image is a copy, and its palette is lost in some modes.
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
