"""`hf-transfer plan RECIPE`: print what a run would do, and its cost, without training."""

import argparse
import sys
from typing import Any

from hf_transfer.cli.command import output_may_end
from hf_transfer.cli.run import find_config, find_recipe, recipe_names
from hf_transfer.errors import UserError
from hf_transfer.tasks import TASKS


def add_parser(subparsers: Any) -> None:
    """Add the command `plan`."""
    parser = subparsers.add_parser(
        "plan", help="print what a recipe would do, and its cost, without training"
    )
    parser.add_argument("recipe", help=", ".join(plannable_recipes()))
    parser.add_argument(
        "flags", nargs=argparse.REMAINDER, help="the recipe's flags; --output_dir is not needed"
    )
    parser.set_defaults(action=print_plan)


def print_plan(arguments: argparse.Namespace) -> None:
    """Print the plan of a recipe with these flags; nothing is learned, nothing is written."""
    recipe = find_recipe(arguments.recipe)
    if recipe not in plannable_recipes():
        raise UserError(
            f"the recipe {recipe!r} has no plan to show",
            f"those that have one: {', '.join(plannable_recipes())}",
        )
    from hf_transfer.cli.flags import read_config
    from hf_transfer.preflight import preflight
    from hf_transfer.studies.dry_run import dry_run

    sys.argv[0] = f"hf-transfer plan {recipe}"  # as --help shows it
    config = read_config(
        recipe.replace("_", "-"), argv=[*map(find_config, arguments.flags)], writes=False
    )
    preflight(config, writes=False)
    plan = dry_run(config)
    with output_may_end():
        print(plan)


def plannable_recipes() -> list[str]:
    return [name for name in recipe_names() if name.replace("_", "-") in TASKS]
