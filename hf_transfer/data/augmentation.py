"""Random augmentation of images: names -> transforms of kornia, for whole batches on any device.

They move pixels and leave colours as they are, so that they apply to normalised images too.
"""

from collections.abc import Callable

import torch
from datasets import Dataset
from torch import nn

from hf_transfer.data.encode import Encoder
from hf_transfer.errors import UserError, unknown
from hf_transfer.tasks import Task

Size = tuple[int, int]  # height, width
Augment = Callable[[torch.Tensor], torch.Tensor]


def make_augmentation(name: str, size: Size) -> Augment | None:
    """Function of pixel_values (batch, channels, *size) that augments each image; None for `none`.

    Shape, dtype and device stay. All draws come from torch's global generator, so that its seed and
    state decide them. Raises UserError for an unknown name, and where kornia is not installed.
    """
    if name == "none":
        return None
    if name not in AUGMENTATIONS:
        raise unknown("value of --augmentation", name, ["none", *AUGMENTATIONS])
    try:
        transforms = AUGMENTATIONS[name](size)
    except ModuleNotFoundError as error:
        raise UserError(
            f"--augmentation {name} needs kornia, which is not installed",
            "pip install hf-transfer-learning[augmentation]",
        ) from error

    def augment(pixels: torch.Tensor) -> torch.Tensor:
        # In half precision the coordinates of an image of 224 pixels would be off by a pixel.
        return transforms(pixels.float()).to(pixels.dtype)

    return augment


def fit_augmentation(name: str, encoder: Encoder, rows: Dataset) -> Augment | None:
    """Augmentation for images of the size that the encoder makes of `rows`; None for `none`.

    Raises UserError if the encoder makes no images.
    """
    if name == "none":
        return None
    pixels = encoder.collate([rows[0]]).get("pixel_values")
    # Some models take a list of patches, whose positions are no longer known.
    if pixels is None or pixels.ndim != 4:
        raise UserError(
            f"--augmentation {name} is for images, and this model takes none", "leave it out"
        )
    height, width = pixels.shape[-2:]
    return make_augmentation(name, (height, width))


def require_augmentation(name: str, task: Task) -> None:
    """Raise UserError for an unknown name, a task without images, or if kornia is not installed."""
    if name != "none" and not task.has_images:
        raise UserError(f"--augmentation {name} is for images, not for {task.name}", "leave it out")
    make_augmentation(name, (1, 1))


def _light(size: Size) -> nn.Module:
    """Small rotations, shifts and changes of scale: a digit stays that digit, and text is legible.

    Pixels from outside repeat the border: most documents have one background, and no value is black
    once images are normalised.
    """
    from kornia.augmentation import RandomAffine

    return RandomAffine(
        degrees=10.0, translate=(0.1, 0.1), scale=(0.9, 1.1), padding_mode="border", p=1.0
    )


def _photo(size: Size) -> nn.Module:
    """Random crop at full size, flipped in half of the cases (Szegedy et al. 2015, section 6).

    At least 35 % of the area, not their 8 %, as fastai's imagenette baseline: the image has its
    final size already, and the crop is enlarged.
    """
    from kornia.augmentation import RandomHorizontalFlip, RandomResizedCrop

    # "resample" takes the batch as a tensor; "slice", the default, goes from image to image.
    crop = RandomResizedCrop(size, scale=(0.35, 1.0), cropping_mode="resample", p=1.0)
    return nn.Sequential(crop, RandomHorizontalFlip(p=0.5))


AUGMENTATIONS: dict[str, Callable[[Size], nn.Module]] = {"light": _light, "photo": _photo}
