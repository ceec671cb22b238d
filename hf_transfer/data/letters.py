"""builtin:letters: letters of five alphabets in many fonts and hands, as a cheap scanner sees them. Never a digit."""

import hashlib
import os
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont

Array = np.ndarray[Any, np.dtype[Any]]

# One class a shape: homoglyphs (Latin A, Greek Alpha, Cyrillic A) and case twins (o of O, but not a of A) are left out,
# as EMNIST's balanced split merges them (Cohen et al. 2017, arXiv:1702.05373).
LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghijmnqrty"
GREEK = "ΓΔΘΛΞΠΣΦΨΩαβγδεζηλμξπςσω"
CYRILLIC = "БДЖЗИЛЦЧШЩЪЫЬЭЮЯбђ"
ARMENIAN = "ԱԲԳԴԵԶԸԹԺԻԽԾԿՀՁՂՃՄՅՆՇՉՊՋՌՎՏՑՒՔՖաբգդեթիլխծկձղճմյշչռվփքֆ"
GEORGIAN = "აბგდევზთკლმნპჟრსტუფქღყშჩცწჭხჯჰ"
LETTERS = LATIN + GREEK + CYRILLIC + ARMENIAN + GEORGIAN

TRAIN_LETTERS, TEST_LETTERS, BLOCK = 50_000, 3_000, 500
MOST_PROCESSES = (
    6  # no more than there are blocks to test; each draws the glyphs again, in two seconds
)
FIELD = 48  # side of the distance fields that are bent
GLYPH = 32  # longest side of a letter in its field
SCAN = 32  # side of the black and white scan whose ink is counted
CELLS = 8  # side of the picture


def render_letters() -> DatasetDict:
    """50,000 train and 3,000 test pictures of 167 letters, columns `image` (8 x 8, mode L, 0..255) and `label`.

    Drawn once a machine, then read from the cache of `datasets`. Made as the UCI digits were: a black and white scan of
    32 x 32 whose ink is counted in blocks of 4 x 4. The same pictures come out of any number of processes.
    """
    features = Features({"image": Image(mode="L"), "label": ClassLabel(names=list(LETTERS))})
    return DatasetDict(
        {
            split: Dataset.from_generator(
                _draw_blocks,
                features=features,
                gen_kwargs={"seeds": [(part, block) for block in range(size // BLOCK)]},
                num_proc=min(os.cpu_count() or 1, MOST_PROCESSES),
                split=split,
                fingerprint=f"{_digest_letters()}-{split}",
            )
            for part, (split, size) in enumerate((("train", TRAIN_LETTERS), ("test", TEST_LETTERS)))
        }
    )


def _digest_letters() -> str:
    """16 hex digits that change with this module or with a library that draws."""
    digest = hashlib.sha256(Path(__file__).read_bytes())
    for library in ("pillow", "numpy", "scipy", "matplotlib", "fonttools", "datasets"):
        digest.update(f"{library}={version(library)};".encode())
    return digest.hexdigest()[:16]


def _draw_blocks(seeds: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for seed in seeds:
        pictures, labels = draw_letters(BLOCK, np.random.default_rng(seed))
        for picture, label in zip(pictures, labels, strict=True):
            yield {"image": PILImage.fromarray(picture), "label": int(label)}


def draw_letters(count: int, rng: np.random.Generator) -> tuple[Array, Array]:
    """Pictures (count, 8, 8), uint8, white ink on black, and their labels (count,): indices into LETTERS."""
    fields, owners = glyph_fields()
    labels = rng.integers(len(LETTERS), size=count)
    chosen = np.array([rng.choice(owners[label]) for label in labels])
    pen = rng.random(count) < 0.7
    # A pen's stroke has one width everywhere; a printed outline is only made a little thinner or thicker.
    reach = np.where(pen, rng.uniform(1.6, 3.5, count), rng.uniform(-0.2, 1.8, count))[
        :, None, None
    ]
    bent, pressure = _bend(fields[chosen, pen.astype(int)], rng)
    ink = bent < reach + pressure
    scans = _frame(ink, rng)
    blocks = _blur(scans, rng).reshape(count, CELLS, SCAN // CELLS, CELLS, SCAN // CELLS)
    return to_bytes(blocks.sum(axis=(2, 4))), labels


def to_bytes(ink: Array) -> Array:
    """Grey levels 0..255 of counts of ink 0..16."""
    return np.round(ink * (255 / 16)).astype(np.uint8)


def _blur(scans: Array, rng: np.random.Generator) -> Array:
    """The scans (n, 32, 32) seen through optics more or less out of focus, then black and white again."""
    from scipy.ndimage import uniform_filter

    focus, threshold = (
        rng.uniform(*bounds, (len(scans), 1, 1)) for bounds in ((0.3, 1.0), (0.4, 0.55))
    )
    soft = uniform_filter(scans.astype(np.float32), size=(1, 3, 3), mode="constant")
    return focus * scans + (1 - focus) * soft > threshold


def _bend(fields: Array, rng: np.random.Generator) -> tuple[Array, Array]:
    """The fields (n, 48, 48) slanted, turned, stretched and elastically distorted, and a smooth change of pressure.

    Elastic distortion after Simard, Steinkraus and Platt 2003, with a cubic spline over 5 x 5 random shifts.
    """
    from scipy.ndimage import map_coordinates

    count = len(fields)
    axis = np.linspace(-1, 1, FIELD)
    spline = _spline_weights()
    knots = rng.normal(size=(3, count, 5, 5))
    # Two steps: five times faster than one. No BLAS: its rounding depends on the number of threads.
    shifts = np.einsum("cnyj,xj->cnyx", np.einsum("yi,cnij->cnyj", spline, knots), spline)
    turn, slant, stretch = (
        rng.normal(0, 0.12, count),
        rng.normal(0, 0.25, count),
        rng.normal(0, 0.15, count),
    )
    strength = rng.uniform(0.03, 0.13, count)[:, None, None]
    y, x = axis[None, :, None] * 1.25, axis[None, None, :] * 1.25
    cos, sin, slant, wide = (
        value[:, None, None] for value in (np.cos(turn), np.sin(turn), slant, np.exp(stretch))
    )
    rows = cos * y + sin * x + strength * shifts[0]
    columns = (cos * x - sin * y + slant * y) * wide + strength * shifts[1]
    places = (np.stack((rows, columns)) + 1) * ((FIELD - 1) / 2)
    which = np.broadcast_to(np.arange(count)[:, None, None], rows.shape)
    bent = map_coordinates(fields, (which, *places), order=1, mode="nearest")
    return bent, 0.35 * shifts[2]


@lru_cache
def _spline_weights() -> Array:
    """Weights (48, 5): how much each of five knots counts at each of 48 places."""
    from scipy.interpolate import CubicSpline

    return np.asarray(
        CubicSpline(np.linspace(0, 1, 5), np.eye(5), bc_type="natural")(np.linspace(0, 1, FIELD))
    )


def _frame(ink: Array, rng: np.random.Generator) -> Array:
    """Scans (n, 32, 32) that the ink fills from top to bottom, as wide as the letter is, at most as wide as a scan."""
    top, height = _extent(np.any(ink, axis=2))
    left, width = _extent(np.any(ink, axis=1))
    tall = SCAN * rng.uniform(0.95, 1.03, len(ink))
    broad = np.clip(
        width * tall / height * np.exp(rng.normal(0, 0.1, len(ink))),
        8,
        rng.uniform(20, 30, len(ink)),
    )
    middle = SCAN / 2 + rng.normal(0, 1.0, len(ink))
    steps = np.arange(SCAN) + 0.5
    rows = (top + height / 2)[:, None] + (steps - SCAN / 2) * (height / tall)[:, None]
    columns = (left + width / 2)[:, None] + (steps - middle[:, None]) * (width / broad)[:, None]
    inside = (
        (rows[:, :, None] >= 0)
        & (rows[:, :, None] < FIELD)
        & (columns[:, None] >= 0)
        & (columns[:, None] < FIELD)
    )
    rows, columns = (places.clip(0, FIELD - 1).astype(int) for places in (rows, columns))
    return ink[np.arange(len(ink))[:, None, None], rows[:, :, None], columns[:, None]] & inside


def _extent(taken: Array) -> tuple[Array, Array]:
    """First taken place of each row and how many places there are up to the last one (at least 1)."""
    first = taken.argmax(axis=1)
    last = taken.shape[1] - 1 - taken[:, ::-1].argmax(axis=1)
    return first, last - first + 1


@lru_cache
def glyph_fields() -> tuple[Array, list[list[int]]]:
    """Distances (glyphs, 2, 48, 48) in pixels to the outline (negative inside) and to the skeleton of every glyph.

    Second value: which glyphs each of LETTERS owns, one a font.
    """
    from scipy.ndimage import distance_transform_edt as distance

    found = [(label, mask) for label, letter in enumerate(LETTERS) for mask in _draw_glyphs(letter)]
    masks = np.stack([mask for _, mask in found])
    bones = thin(masks)
    fields = [
        (distance(~mask) - distance(mask), distance(~bone))
        for mask, bone in zip(masks, bones, strict=True)
    ]
    owners: list[list[int]] = [[] for _ in LETTERS]
    for index, (label, _) in enumerate(found):
        owners[label].append(index)
    return np.array(fields, dtype=np.float32), owners


def _draw_glyphs(letter: str) -> Iterator[Array]:
    """Masks (48, 48) of a letter, one a font, in the middle, 32 pixels high or wide."""
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
    """The text fonts that matplotlib carries, each with the characters that it really has.

    Left out: symbol fonts (cmmi, cmsy, cmex, STIXNonUni, STIXSiz), whose letters are other signs; display fonts, which
    have no letters; LastResort, which has a box for every character.
    """
    from fontTools.ttLib import TTFont
    from matplotlib import get_data_path

    families = (
        "DejaVuSans",
        "DejaVuSerif",
        "STIXGeneral",
        "cmr10",
        "cmb10",
        "cmss10",
        "cmti10",
        "cmtt10",
    )
    paths = sorted(Path(get_data_path(), "fonts", "ttf").glob("*.ttf"))
    texts = [
        path for path in paths if path.stem.startswith(families) and "Display" not in path.stem
    ]
    return [
        (ImageFont.truetype(str(path), 96), frozenset(TTFont(path).getBestCmap())) for path in texts
    ]


def thin(masks: Array) -> Array:
    """Skeletons, one pixel wide, of masks (n, height, width).

    Source: T. Zhang and C. Suen, A fast parallel algorithm for thinning digital patterns, CACM 1984.
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
    """Tables (256,) of 1 where Zhang and Suen's first and second pass take a pixel with these neighbours away."""
    tables = np.zeros((2, 256), dtype=np.uint8)
    for code in range(256):
        ring = [code >> bit & 1 for bit in range(8)]
        rises = sum(ring[bit] < ring[(bit + 1) % 8] for bit in range(8))
        north, east, south, west = ring[::2]
        if 2 <= sum(ring) <= 6 and rises == 1:
            tables[0, code] = not (north and east and south) and not (east and south and west)
            tables[1, code] = not (north and east and west) and not (north and south and west)
    return tables[0], tables[1]
