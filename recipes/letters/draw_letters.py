"""Draw the letters that builtin:letters-resnet was pre-trained on, and save them as a DatasetDict.

python recipes/letters/draw_letters.py --output_dir out/letters

50,000 training and 3,000 test images of 167 letters of five alphabets, in many fonts and hands, as
a cheap scanner sees them; never a digit. Columns: `image` (8 x 8, mode L, 0..255) and `label`.
Takes 15 seconds on one core. Needs fonttools, matplotlib (for its fonts) and scipy.
"""

import argparse
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

from hf_transfer import UserError, run_command

Array = np.ndarray[Any, np.dtype[Any]]

# One class per shape: homoglyphs (Latin A, Greek Alpha, Cyrillic A) and case twins (o of O, but not
# a of A) are left out, as EMNIST's balanced split merges them (Cohen et al. 2017,
# arXiv:1702.05373).
LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghijmnqrty"
GREEK = "ΓΔΘΛΞΠΣΦΨΩαβγδεζηλμξπςσω"
CYRILLIC = "БДЖЗИЛЦЧШЩЪЫЬЭЮЯбђ"
ARMENIAN = "ԱԲԳԴԵԶԸԹԺԻԽԾԿՀՁՂՃՄՅՆՇՉՊՋՌՎՏՑՒՔՖաբգդեթիլխծկձղճմյշչռվփքֆ"
GEORGIAN = "აბგდევზთკლმნპჟრსტუფქღყშჩცწჭხჯჰ"
LETTERS = LATIN + GREEK + CYRILLIC + ARMENIAN + GEORGIAN

# Text fonts that matplotlib carries. Left out: symbol fonts (cmmi, cmsy, cmex, STIXNonUni,
# STIXSiz), whose letters are other signs; display fonts, which have no letters; LastResort, which
# has a box for every character.
FAMILIES = (
    "DejaVuSans",
    "DejaVuSerif",
    "STIXGeneral",
    "cmr10",
    "cmb10",
    "cmss10",
    "cmti10",
    "cmtt10",
)

SPLITS = {"train": 50_000, "test": 3_000}
BLOCK = 500  # images from one seed
FIELD = 48  # side of the distance fields that are bent
GLYPH = 32  # longest side of a letter in its field
SCAN = 32  # side of the black and white scan whose ink is counted
CELLS = 8  # side of the image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, required=True, help="A folder that is new.")
    folder = parser.parse_args().output_dir
    if folder.exists():
        raise UserError(f"{str(folder)!r} exists already", "remove it, or name another folder")
    if find_spec("fontTools") is None:
        raise UserError(
            "letters are drawn with fonttools, matplotlib and scipy; fonttools is not installed",
            "pip install 'hf-transfer-learning[letters]'",
        )
    # Under its name only once it is complete.
    partial = folder.with_name(f"{folder.name}.partial")
    DatasetDict({split: draw_split(split) for split in SPLITS}).save_to_disk(partial)
    partial.rename(folder)


def draw_split(split: str) -> Dataset:
    """Images and labels of a split: the same ones at every call, each block from a seed of its own.

    Made as the UCI digits were: the ink of a black and white scan of 32 x 32 is counted in blocks
    of 4 x 4.
    """
    images: list[PILImage.Image] = []
    labels: list[int] = []
    for block in range(SPLITS[split] // BLOCK):
        seed = (list(SPLITS).index(split), block)
        pixels, drawn = draw_letters(BLOCK, np.random.default_rng(seed))
        images += map(PILImage.fromarray, pixels)
        labels += drawn.tolist()
    features = Features({"image": Image(mode="L"), "label": ClassLabel(names=list(LETTERS))})
    return Dataset.from_dict({"image": images, "label": labels}, features)


def draw_letters(count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Images (count, 8, 8), uint8, white on black, and labels (count,): indices into LETTERS."""
    fields, owners = glyph_fields()
    labels = rng.integers(len(LETTERS), size=count)
    chosen = np.array([rng.choice(owners[label]) for label in labels])
    pen = rng.random(count) < 0.7
    # A pen's stroke has one width everywhere; an outline is only made a little thinner or thicker.
    stroke = rng.uniform(1.6, 3.5, count)
    outline = rng.uniform(-0.2, 1.8, count)
    reach = np.where(pen, stroke, outline)[:, None, None]
    bent, pressure = _bend(fields[chosen, pen.astype(int)], rng)
    scans = _blur(_frame(bent < reach + pressure, rng), rng)
    blocks = scans.reshape(count, CELLS, SCAN // CELLS, CELLS, SCAN // CELLS)
    ink = blocks.sum(axis=(2, 4))  # 0..16
    return np.round(ink * (255 / 16)).astype(np.uint8), labels


def _blur(scans: Array, rng: np.random.Generator) -> Array:
    """Scans (n, 32, 32) seen through optics more or less out of focus, black and white again."""
    from scipy.ndimage import uniform_filter

    focus = rng.uniform(0.3, 1.0, (len(scans), 1, 1))
    threshold = rng.uniform(0.4, 0.55, (len(scans), 1, 1))
    soft = uniform_filter(scans.astype(np.float32), size=(1, 3, 3), mode="constant")
    return focus * scans + (1 - focus) * soft > threshold


def _bend(fields: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """Distorted fields (n, 48, 48), and a smooth change of pressure (n, 48, 48).

    Turned, slanted, stretched and elastically distorted after Simard, Steinkraus and Platt 2003,
    with a cubic spline over 5 x 5 random shifts.
    """
    from scipy.ndimage import map_coordinates

    count = len(fields)
    axis = np.linspace(-1, 1, FIELD)
    spline = _spline_weights()
    knots = rng.normal(size=(3, count, 5, 5))
    # Two steps: five times faster than one. No BLAS: its rounding depends on the number of threads.
    shifts = np.einsum("cnyj,xj->cnyx", np.einsum("yi,cnij->cnyj", spline, knots), spline)
    turn = rng.normal(0, 0.12, count)[:, None, None]
    slant = rng.normal(0, 0.25, count)[:, None, None]
    stretch = rng.normal(0, 0.15, count)[:, None, None]
    strength = rng.uniform(0.03, 0.13, count)[:, None, None]
    y = axis[None, :, None] * 1.25
    x = axis[None, None, :] * 1.25
    rows = np.cos(turn) * y + np.sin(turn) * x + strength * shifts[0]
    columns = np.cos(turn) * x - np.sin(turn) * y + slant * y
    columns = columns * np.exp(stretch) + strength * shifts[1]
    places = (np.stack((rows, columns)) + 1) * ((FIELD - 1) / 2)
    which = np.broadcast_to(np.arange(count)[:, None, None], rows.shape)
    bent = map_coordinates(fields, (which, *places), order=1, mode="nearest")
    return bent, 0.35 * shifts[2]


@lru_cache
def _spline_weights() -> Array:
    """Weights (48, 5): how much each of five knots counts at each of 48 places."""
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(np.linspace(0, 1, 5), np.eye(5), bc_type="natural")
    return np.asarray(spline(np.linspace(0, 1, FIELD)))


def _frame(ink: Array, rng: np.random.Generator) -> Array:
    """Scans (n, 32, 32) that the ink fills from top to bottom, at most as wide as a scan."""
    count = len(ink)
    top, height = _extent(np.any(ink, axis=2))
    left, width = _extent(np.any(ink, axis=1))
    tall = SCAN * rng.uniform(0.95, 1.03, count)
    broad = width * tall / height * np.exp(rng.normal(0, 0.1, count))
    broad = np.clip(broad, 8, rng.uniform(20, 30, count))
    middle = SCAN / 2 + rng.normal(0, 1.0, count)
    steps = np.arange(SCAN) + 0.5
    rows = (top + height / 2)[:, None] + (steps - SCAN / 2) * (height / tall)[:, None]
    columns = (left + width / 2)[:, None] + (steps - middle[:, None]) * (width / broad)[:, None]
    row_inside = (rows >= 0) & (rows < FIELD)
    column_inside = (columns >= 0) & (columns < FIELD)
    rows = rows.clip(0, FIELD - 1).astype(int)
    columns = columns.clip(0, FIELD - 1).astype(int)
    scans = ink[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None]]
    return scans & row_inside[:, :, None] & column_inside[:, None]


def _extent(taken: Array) -> tuple[Array, Array]:
    """First taken place of each row, and the number of places up to the last one (at least 1)."""
    first = taken.argmax(axis=1)
    last = taken.shape[1] - 1 - taken[:, ::-1].argmax(axis=1)
    return first, last - first + 1


@lru_cache
def glyph_fields() -> tuple[Array, list[list[int]]]:
    """Distance fields of all glyphs, and the glyphs (indices) of each of LETTERS, one per font.

    Shape (glyphs, 2, 48, 48): distance in pixels to the outline (negative inside), and to the
    skeleton.
    """
    from scipy.ndimage import distance_transform_edt as distance

    masks: list[Array] = []
    owners: list[list[int]] = []
    for letter in LETTERS:
        drawn = list(_draw_glyphs(letter))
        owners.append(list(range(len(masks), len(masks) + len(drawn))))
        masks += drawn
    fields = [
        (distance(~mask) - distance(mask), distance(~bone))
        for mask, bone in zip(masks, thin(np.stack(masks)), strict=True)
    ]
    return np.array(fields, dtype=np.float32), owners


def _draw_glyphs(letter: str) -> Iterator[Array]:
    """Masks (48, 48) of a letter, one per font, in the middle, 32 pixels high or wide."""
    for font, characters in _open_fonts():
        if ord(letter) not in characters:
            continue
        left, top, right, bottom = font.getbbox(letter)
        page = PILImage.new("L", (int(right - left), int(bottom - top)))
        ImageDraw.Draw(page).text((-left, -top), letter, font=font, fill=255)
        scale = GLYPH / max(page.size)
        width, height = (max(round(side * scale), 2) for side in page.size)
        page = page.resize((width, height), PILImage.Resampling.BOX)
        field = PILImage.new("L", (FIELD, FIELD))
        field.paste(page, ((FIELD - width) // 2, (FIELD - height) // 2))
        yield np.asarray(field) >= 96


@lru_cache
def _open_fonts() -> list[tuple[ImageFont.FreeTypeFont, frozenset[int]]]:
    """The fonts of FAMILIES, each with the characters that it really has."""
    from fontTools.ttLib import TTFont
    from matplotlib import get_data_path

    fonts = []
    for path in sorted(Path(get_data_path(), "fonts", "ttf").glob("*.ttf")):
        if path.stem.startswith(FAMILIES) and "Display" not in path.stem:
            characters = frozenset(TTFont(path).getBestCmap())
            fonts.append((ImageFont.truetype(str(path), 96), characters))
    return fonts


def thin(masks: Array) -> Array:
    """Skeletons, one pixel wide, of masks (n, height, width).

    Source: T. Zhang and C. Suen, A fast parallel algorithm for thinning digital patterns,
    CACM 1984.
    """
    bones = masks.astype(np.uint8)
    while True:
        before = bones.sum()
        for removable in _removable_codes():
            bones = bones & ~removable[_neighbour_codes(bones)]
        if bones.sum() == before:
            return bones.astype(bool)


def _neighbour_codes(bones: Array) -> Array:
    """For every pixel a byte whose bit k is the k-th neighbour, clockwise from north."""
    padded = np.pad(bones, ((0, 0), (1, 1), (1, 1)))
    height, width = bones.shape[1:]
    codes = np.zeros_like(bones)
    for bit, (y, x) in enumerate(((0, 1), (0, 2), (1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0))):
        codes |= padded[:, y : y + height, x : x + width] << bit
    return codes


@lru_cache
def _removable_codes() -> tuple[Array, Array]:
    """Tables (256,), by code of the neighbours: 1 if Zhang and Suen's pass removes the pixel.

    One table for the first pass and one for the second.
    """
    tables = np.zeros((2, 256), dtype=np.uint8)
    for code in range(256):
        ring = [code >> bit & 1 for bit in range(8)]
        rises = sum(ring[bit] < ring[(bit + 1) % 8] for bit in range(8))
        north, east, south, west = ring[::2]
        if 2 <= sum(ring) <= 6 and rises == 1:
            tables[0, code] = not (north and east and south) and not (east and south and west)
            tables[1, code] = not (north and east and west) and not (north and south and west)
    return tables[0], tables[1]


if __name__ == "__main__":
    run_command(main)
