"""`hf-transfer`: thin doors to the recipes and to what they made. Heavy imports wait until they are needed."""

import argparse
import csv
import re
import runpy
import sys
import time
from pathlib import Path
from typing import Any

from hf_transfer.cli.command import run_command
from hf_transfer.errors import UserError, unknown
from hf_transfer.package_files import shipped_folder
from hf_transfer.tasks import TASKS


def main() -> None:
    """Entry point of the console script."""
    run_command(_dispatch)


def _dispatch() -> None:
    parser = argparse.ArgumentParser(prog="hf-transfer", description=__doc__.splitlines()[0])
    doors = parser.add_subparsers(dest="door", required=True, metavar="COMMAND")
    run = doors.add_parser(
        "run", help="run a recipe: hf-transfer run image_classification --config my.yaml"
    )
    run.add_argument("recipe", help=", ".join(recipe_names()))
    run.add_argument(
        "flags", nargs=argparse.REMAINDER, help="the recipe's flags; --help lists them"
    )
    plan = doors.add_parser(
        "plan", help="print what a recipe would do, and its cost, without training"
    )
    plan.add_argument("recipe", help=", ".join(planned_recipes()))
    plan.add_argument(
        "flags", nargs=argparse.REMAINDER, help="the recipe's flags; --output_dir is not needed"
    )
    use = doors.add_parser("predict", help="sort pictures or texts with a model")
    use.add_argument("model", help="folder of a run, or Hub id")
    use.add_argument(
        "inputs",
        nargs="+",
        metavar="INPUT",
        help="pictures, folders of pictures, or texts; - reads lines",
    )
    use.add_argument(
        "--top_k",
        type=int,
        help="answers an input (default: 1; of several labels a row all above one half)",
    )
    _add_cache(doors)
    asked = parser.parse_args()
    if asked.door == "run":
        run_recipe(asked.recipe, asked.flags)
    elif asked.door == "plan":
        show_plan(asked.recipe, asked.flags)
    elif asked.door == "cache":
        show_cache(asked)
    else:
        predict_inputs(asked.model, asked.inputs, asked.top_k)


def _add_cache(doors: Any) -> None:
    store = doors.add_parser("cache", help="list or prune what frozen layers computed")
    store.add_argument(
        "--cache_dir", "--cache-dir", help="the store (default: hf_transfer/frozen below HF_HOME)"
    )
    store.add_argument(
        "--prune",
        action="store_true",
        help="remove leftovers and damaged entries, and what the flags below say",
    )
    store.add_argument("--all", action="store_true", help="remove every entry")
    store.add_argument(
        "--older_than",
        "--older-than",
        metavar="AGE",
        help="remove what was not used for 12h, 30d, 8w",
    )
    store.add_argument(
        "--until_below",
        "--until-below",
        metavar="SIZE",
        help="keep the last used, 500MB or 20GB of them",
    )
    store.add_argument(
        "--dry_run",
        "--dry-run",
        action="store_true",
        help="say what would be freed, remove nothing",
    )


def recipe_names() -> list[str]:
    """The recipes that can be run, by name."""
    return sorted(path.stem for path in shipped_folder("recipes").glob("*.py"))


def run_recipe(name: str, flags: list[str]) -> None:
    """Run a recipe as a program of its own, with these flags; a config of ours may be named without its folder."""
    if name not in recipe_names():
        raise unknown("recipe", name, recipe_names())
    path = shipped_folder("recipes") / f"{name}.py"
    sys.argv = [str(path), *(_find_config(word) for word in flags)]
    runpy.run_path(str(path), run_name="__main__")


def planned_recipes() -> list[str]:
    """The recipes that have a plan to show: those that are called as their task is."""
    return [name for name in recipe_names() if name.replace("_", "-") in TASKS]


def show_plan(name: str, flags: list[str]) -> None:
    """Print what a recipe would do with these flags, and at what cost; nothing is learned, nothing written."""
    if name not in recipe_names():
        raise unknown("recipe", name, recipe_names())
    if name not in planned_recipes():
        raise UserError(
            f"the recipe {name!r} has no plan to show",
            f"those that have one: {', '.join(planned_recipes())}",
        )
    from hf_transfer.cli.flags import parse_config
    from hf_transfer.studies.dry_run import preview

    nowhere = [
        "--output_dir",
        ".",
        "--overwrite_output_dir",
        "true",
    ]  # it is asked for, and nothing is put there
    config = parse_config(argv=[*map(_find_config, flags), *nowhere])
    print(preview(config, TASKS[name.replace("_", "-")]))


def predict_inputs(model: str, inputs: list[str], top_k: int | None) -> None:
    """Print a line an input and answer: input, label, probability (of a regression the number), separated by tabs."""
    from hf_transfer.inference import ask, load_pipeline

    if top_k is not None and top_k < 1:
        raise UserError(f"--top_k {top_k} is too small", "give 1 or more")
    classify, modality = load_pipeline(model)
    rows = csv.writer(sys.stdout, delimiter="\t", lineterminator="\n")
    for name, value in _read_inputs(inputs, modality):
        rows.writerows([name, label, figure] for label, figure in ask(classify, value, top_k))


def show_cache(asked: argparse.Namespace) -> None:
    """Print a line an entry: start of its key, size, rows, last use, what it is; or prune, and print what it freed."""
    from hf_transfer.store.entries import list_entries, prune, resolve_cache_dir, show_bytes

    folder = resolve_cache_dir(asked.cache_dir)
    if asked.prune:
        age = _measure("--older_than", asked.older_than, {"h": 3600, "d": 86_400, "w": 7 * 86_400})
        size = _measure(
            "--until_below", asked.until_below, {"MB": 10**6, "GB": 10**9, "TB": 10**12}
        )
        freed = prune(
            folder, older_than=age, until_below=size, everything=asked.all, dry_run=asked.dry_run
        )
        print(f"{'would free' if asked.dry_run else 'freed'} {show_bytes(freed)} in {folder}")
        return
    if asked.all or asked.older_than or asked.until_below or asked.dry_run:
        raise UserError(
            "--all, --older_than, --until_below and --dry_run say what --prune removes",
            "add --prune",
        )
    entries = list_entries(folder)
    for entry in entries:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.last_used))
        rows = "damaged" if entry.rows is None else f"{entry.rows} rows"
        about = " ".join(f"{name}={value}" for name, value in entry.about.items())
        print(
            f"{entry.key[:12]:12}  {show_bytes(entry.nbytes):>9}  {rows:>12}  {used}  {about}".rstrip()
        )
    print(
        f"{len(entries)} entries, {show_bytes(sum(entry.nbytes for entry in entries))} in {folder}"
    )


def _measure(flag: str, text: str | None, units: dict[str, int]) -> int | None:
    """`30d` -> seconds, `20GB` -> bytes."""
    if text is None:
        return None
    parts = re.fullmatch(r"(\d+)([A-Za-z]+)", text)
    if parts is None or parts[2] not in units:
        raise UserError(
            f"{flag} {text!r} is not understood",
            f"give a whole number and one of {', '.join(units)}",
        )
    return int(parts[1]) * units[parts[2]]


def _read_inputs(inputs: list[str], modality: str) -> list[tuple[str, object]]:
    """Pairs of a name to print and what the model reads."""
    words = [line.rstrip("\n") for line in sys.stdin] if inputs == ["-"] else inputs
    if modality == "text":
        return [(word, word) for word in words]
    from PIL import Image, UnidentifiedImageError

    found: list[tuple[str, object]] = []
    for path in [p for word in words for p in _files(Path(word))]:
        try:
            found.append((str(path), Image.open(path).convert("RGB")))
        except FileNotFoundError as error:
            raise UserError(
                f"no file {str(path)!r}", "this model sorts pictures: name files or folders"
            ) from error
        except (UnidentifiedImageError, OSError) as error:
            raise UserError(
                f"{str(path)!r} is not a picture that can be read", "leave it out or mend it"
            ) from error
    return found


def _files(path: Path) -> list[Path]:
    return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]


def _find_config(word: str) -> str:
    """`digits.yaml` -> the config of that name that we ship, unless there is such a file here."""
    shipped = shipped_folder("recipes") / "configs" / word
    return (
        str(shipped)
        if word.endswith(".yaml") and not Path(word).exists() and shipped.is_file()
        else word
    )
