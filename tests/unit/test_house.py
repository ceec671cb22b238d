"""The form of the package: sizes, names and tables that DESIGN and CONTRIBUTING promise."""

import ast
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import hf_transfer
from tests.conftest import ROOT

PACKAGE = ROOT / "hf_transfer"
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
PROBLEM_TYPES = {"single_label_classification", "multi_label_classification", "regression"}


def _lines(path: Path) -> int:
    return path.read_text(encoding="utf-8").count("\n")


def _functions() -> list[tuple[str, ast.FunctionDef]]:
    found = [
        (f"{path.relative_to(PACKAGE)}:{node.name}", node)
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    ]
    assert len(found) > 500
    return found


def test_no_file_has_over_400_lines_and_no_folder_over_a_fifth_of_the_package() -> None:
    sizes: Counter[str] = Counter()
    for path in FILES:
        assert _lines(path) <= 400, path
        sizes[path.relative_to(PACKAGE).parts[0]] += _lines(path)
    assert len(sizes) > 15
    large = {name: n for name, n in sizes.items() if n > 0.2 * sizes.total()}
    assert not large


def test_no_function_has_over_45_lines_or_over_6_parameters() -> None:
    for name, node in _functions():
        parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        own = [each for each in parameters if each.arg not in ("self", "cls")]
        assert len(own) <= 6, name
        assert (node.end_lineno or 0) - node.lineno < 45, name


def test_no_comprehension_stands_inside_a_comprehension() -> None:
    seen = 0
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, COMPREHENSIONS):
                seen += 1
                inner = [each for each in ast.walk(node) if isinstance(each, COMPREHENSIONS)]
                assert len(inner) == 1, f"{path}:{node.lineno}"
    assert seen > 100


def test_any_two_recipes_share_at_most_60_percent_of_their_lines() -> None:
    pages = {}
    for path in sorted((ROOT / "recipes").glob("*.py")):
        pages[path.stem] = Counter(filter(str.strip, path.read_text().splitlines()))
    pairs = list(itertools.combinations(pages, 2))
    assert len(pairs) >= 10
    for one, other in pairs:
        shared = (pages[one] & pages[other]).total()
        assert shared <= 0.6 * min(pages[one].total(), pages[other].total()), (one, other)


def test_all_tables_by_modality_have_the_same_rows() -> None:
    from hf_transfer.cli.predict import OPENERS, READERS
    from hf_transfer.data.encode import ENCODERS
    from hf_transfer.readers.folders import FILE_FEATURES, SUFFIXES
    from hf_transfer.tasks import MODALITIES, TASKS

    for table in (ENCODERS, SUFFIXES, READERS):
        assert table.keys() == MODALITIES.keys()
    assert OPENERS.keys() == FILE_FEATURES.keys() <= MODALITIES.keys()
    assert {task.modality for task in TASKS.values()} == MODALITIES.keys()


def test_editors_see_the_names_that_are_imported_at_first_use() -> None:
    tree = TREES[PACKAGE / "__init__.py"]
    block = next(node for node in tree.body if isinstance(node, ast.If))
    shown = {
        alias.name: str(node.module).removeprefix("hf_transfer.")
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert len(shown) > 40
    assert shown == hf_transfer._MODULES
    assert (PACKAGE / "py.typed").is_file()


@pytest.mark.parametrize("name", sorted(hf_transfer._MODULES))
def test_every_public_name_can_be_imported(name: str) -> None:
    assert getattr(hf_transfer, name) is not None


def test_all_tables_by_problem_type_have_the_same_rows() -> None:
    tables: dict[str, Any] = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Dict):
                keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
                if keys & PROBLEM_TYPES:
                    tables[f"{path.name}:{node.lineno}"] = keys
    assert len(tables) >= 5
    for place, keys in tables.items():
        assert keys == PROBLEM_TYPES, place


def test_no_two_test_files_have_one_name() -> None:
    names = Counter(path.name for path in ROOT.glob("tests/**/test_*.py"))
    assert len(names) > 80
    assert [name for name, count in names.items() if count > 1] == []
