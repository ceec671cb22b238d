"""Where the folders lie that a wheel carries inside the package and a checkout beside it."""

from pathlib import Path

PACKAGE = Path(__file__).parent


def package_folder(name: str) -> Path:
    """The folder `recipes` or `model_cards`, in the installed package or at the top of the checkout."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name
