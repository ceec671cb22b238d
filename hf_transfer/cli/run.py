"""`hf-transfer run RECIPE`: run a packaged recipe as a program of its own."""

import argparse
import runpy
import sys
from pathlib import Path
from typing import Any

from hf_transfer.errors import unknown
from hf_transfer.package_files import package_folder


def add_parser(subparsers: Any) -> None:
    """Add the command `run`."""
    parser = subparsers.add_parser(
        "run", help="run a recipe: hf-transfer run image_classification --config my.yaml"
    )
    parser.add_argument("recipe", help=", ".join(recipe_names()))
    parser.add_argument(
        "flags", nargs=argparse.REMAINDER, help="the recipe's flags; --help lists them"
    )
    parser.set_defaults(action=run_recipe)


def recipe_names() -> list[str]:
    """The names of the packaged recipes."""
    return sorted(path.stem for path in package_folder("recipes").glob("*.py"))


def run_recipe(arguments: argparse.Namespace) -> None:
    """Run the recipe in this process, with its own flags."""
    path = package_folder("recipes") / f"{find_recipe(arguments.recipe)}.py"
    sys.argv = [str(path), *map(find_config, arguments.flags)]
    runpy.run_path(str(path), run_name="__main__")


def find_recipe(name: str) -> str:
    """The recipe of this name, or of a task's. Raises UserError if there is none."""
    recipe = name.replace("-", "_")
    if recipe not in recipe_names():
        raise unknown("recipe", name, recipe_names())
    return recipe


def find_config(word: str) -> str:
    """`digits.yaml` -> the path of the packaged config of that name, if there is none here."""
    packaged = package_folder("recipes") / "configs" / word
    is_packaged = word.endswith(".yaml") and packaged.is_file() and not Path(word).exists()
    return str(packaged) if is_packaged else word
