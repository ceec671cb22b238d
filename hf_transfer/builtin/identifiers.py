"""Python code with tags: what each name in the standard library's own sources stands for."""

import ast
import builtins
import hashlib
import io
import itertools
import keyword
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

# Modules whose functions and classes are rows. Those of the test split are others, so that no name
# is known from the same file. All are in Python alone, in every distribution.
TRAIN_MODULES = (
    "argparse", "ast", "bdb", "calendar", "cmd", "codecs", "configparser", "contextlib", "copy",
    "csv", "dataclasses", "difflib", "dis", "doctest", "enum", "fileinput", "fractions", "ftplib",
    "functools", "gettext", "glob", "gzip", "hashlib", "heapq", "inspect", "ipaddress", "locale",
    "mailbox", "mimetypes", "netrc", "optparse", "pathlib", "pdb", "pickle", "platform", "plistlib",
    "poplib", "pprint", "queue", "random", "reprlib", "sched", "selectors", "shelve", "shlex",
    "shutil", "smtplib", "socketserver", "statistics", "string", "subprocess",
)  # fmt: skip
TEST_MODULES = (
    "tarfile", "tempfile", "textwrap", "threading", "timeit", "tokenize", "trace", "traceback",
    "types", "typing", "weakref", "zipfile",
)  # fmt: skip
LIMITS = {"train": 1000, "test": 300}  # rows
MAX_WORDS = 60  # of a row
MIN_WORDS = 6
STRING = '"..."'  # in place of every string
TAGS = (
    "O", "keyword", "function", "class", "parameter", "local", "attribute", "import", "argument",
    "builtin", "global",
)  # fmt: skip
BUILTINS = frozenset(dir(builtins))
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
DEFINITIONS = (*FUNCTIONS, ast.ClassDef)
SKIPPED = (
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER, tokenize.ENCODING,
)  # fmt: skip

Place = tuple[int, int]  # line and column of a name
Row = tuple[tuple[str, ...], tuple[str, ...]]  # words and tags


def collect_identifiers() -> DatasetDict:
    """Functions, class headers and imports of the running Python's library, as words with tags.

    Columns: `tokens` and `tags`. The sources are parsed, never imported; docstrings and comments
    are left out. 1,000 training rows and 300 of other modules for the test; they differ somewhat
    between Python versions.
    """
    tags = List(ClassLabel(names=list(TAGS)))
    features = Features({"tokens": List(Value("string")), "tags": tags})
    splits = {}
    seen: set[tuple[str, ...]] = set()
    for split, modules in (("train", TRAIN_MODULES), ("test", TEST_MODULES)):
        rows = {row for module in modules for row in read_module(_source(module))}
        # By digest: a row that another patch release changes takes no other with it.
        ordered = sorted(rows, key=lambda row: hashlib.sha256(" ".join(row[0]).encode()).digest())
        chosen = [row for row in ordered if row[0] not in seen][: LIMITS[split]]
        seen.update(words for words, _ in chosen)
        columns = {"tokens": [list(words) for words, _ in chosen]}
        columns["tags"] = [list(tags) for _, tags in chosen]
        splits[split] = Dataset.from_dict(columns, features)
    return DatasetDict(splits)


def read_module(source: str) -> Iterator[Row]:
    """The rows of a module: each function that defines no other, class header and import.

    Those with a name that the syntax tree gives no place (`except ... as name`) are left out.
    """
    tree = ast.parse(source)
    lines = list(io.StringIO(source))  # str.splitlines would also end one at a form feed
    names = Names(tree)
    for node in ast.walk(tree):
        first, last = _extent(node)
        skipped = _docstring(node)
        others = "import" if isinstance(node, ast.Import | ast.ImportFrom) else None
        pairs = []
        before = ""
        for token in _tokens("".join(lines[first - 1 : last])) if first else ():
            place = (token.start[0] + first - 1, len(token.line[: token.start[1]].encode()))
            if token.type not in SKIPPED and place != skipped:
                tag = _tag(token, before, names.places.get(place, others))
                pairs.append((STRING if token.type == tokenize.STRING else token.string, tag))
                before = token.string
        if MIN_WORDS <= len(pairs) <= MAX_WORDS and all(tag for _, tag in pairs):
            words, tags = zip(*pairs, strict=True)
            yield words, tags


class Names:
    """What the names of a module stand for: `places` has the tag of each."""

    def __init__(self, tree: ast.Module) -> None:
        self.places: dict[Place, str] = {}
        self.module: dict[str, str] = {}  # what is defined outside functions
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                for alias in node.names:
                    self.module[(alias.asname or alias.name).partition(".")[0]] = "import"
        for node in tree.body:
            if isinstance(node, DEFINITIONS):
                self.module[node.name] = "class" if isinstance(node, ast.ClassDef) else "function"
            for each in ast.walk(node) if isinstance(node, ast.Assign | ast.AnnAssign) else ():
                if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                    self.module.setdefault(each.id, "global")
        self._visit(tree, {})

    def _visit(self, node: ast.AST, scope: dict[str, str]) -> None:
        """Tag the names below a node; `scope` has the parameters and locals of functions around."""
        if isinstance(node, ast.Name):
            self.places[node.lineno, node.col_offset] = self._tag_of(node.id, scope)
        elif isinstance(node, ast.arg):
            self.places[node.lineno, node.col_offset] = "parameter"
        elif isinstance(node, ast.Attribute):
            width = len(node.attr.encode())
            self.places[node.end_lineno or 0, (node.end_col_offset or 0) - width] = "attribute"
        elif isinstance(node, ast.keyword) and node.arg:
            self.places[node.lineno, node.col_offset] = "argument"
        if isinstance(node, (*FUNCTIONS, ast.Lambda)):
            scope = {**scope, **_scope_of(node)}
        for child in ast.iter_child_nodes(node):
            self._visit(child, scope)

    def _tag_of(self, name: str, scope: dict[str, str]) -> str:
        usual = "builtin" if name in BUILTINS else "global"
        return scope.get(name) or self.module.get(name) or usual


def _scope_of(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> dict[str, str]:
    """The parameters and locals of a function."""
    scope: dict[str, str] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            scope.setdefault(node.id, "local")
    for node in ast.walk(function.args):
        if isinstance(node, ast.arg):
            scope[node.arg] = "parameter"
    return scope


def _extent(node: ast.AST) -> tuple[int, int]:
    """First and last line of a row; (0, 0) for what is none."""
    if isinstance(node, FUNCTIONS):
        inner = itertools.islice(ast.walk(node), 1, None)
        # Formatted strings are one token up to Python 3.11, and several from 3.12 on.
        if any(isinstance(each, (*DEFINITIONS, ast.JoinedStr)) for each in inner):
            return 0, 0
        return node.lineno, node.end_lineno or 0
    if isinstance(node, ast.ClassDef):
        return node.lineno, node.body[0].lineno - 1
    if isinstance(node, ast.Import | ast.ImportFrom):
        return node.lineno, node.end_lineno or 0
    return 0, 0


def _docstring(node: ast.AST) -> Place | None:
    """Where the docstring of a function begins, or None."""
    if isinstance(node, FUNCTIONS) and ast.get_docstring(node) is not None:
        return node.body[0].lineno, node.body[0].col_offset
    return None


def _tag(token: tokenize.TokenInfo, before: str, found: str | None) -> str | None:
    """The tag of a token behind another one; `found` is what its name stands for."""
    if token.type != tokenize.NAME:
        return "O"
    if keyword.iskeyword(token.string):
        return "keyword"
    return {"def": "function", "class": "class"}.get(before, found)


def _tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    """The tokens of some lines; that the body of a class is cut off behind them is no error."""
    try:
        yield from tokenize.generate_tokens(io.StringIO(source).readline)
    except (tokenize.TokenError, IndentationError):
        return


def _source(module: str) -> str:
    library = Path(sysconfig.get_path("stdlib"))
    package = library / module / "__init__.py"
    path = package if package.is_file() else library / f"{module}.py"
    return path.read_text(encoding="utf-8")
