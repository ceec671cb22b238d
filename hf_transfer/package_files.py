"""Folders that are inside the package in a wheel, and beside it in a checkout."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def package_folder(name: str) -> Path:
    """Folder `recipes` or `model_cards`, in the installed package or at the top of the checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name
