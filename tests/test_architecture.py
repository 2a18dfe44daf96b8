"""The rooms of the house, held by reading the imports; and what the package must not contain."""

import ast
import re
from pathlib import Path

import pytest

import llamarec_lkg


PACKAGE = Path(__file__).resolve().parents[1] / "llamarec_lkg"
# an import goes to a room further down, or stays in its own
ROOMS = [
    "cli",
    "cli_arguments",
    "serving",
    "training",
    "ranking",
    "retrieval",
    "hub",
    "graph",
    "evaluation",
    "data",
    "utils",
]
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
# a file over 400 lines has its reason here
LONG = {
    "ranking/processing_llamarec_lkg.py": "what a list is checked for and what it becomes stand together",
}


def name_of(path):
    return path.relative_to(PACKAGE).as_posix()


def room_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path):
    """Absolute dotted names, below the package, that a file imports when it is loaded or when it runs."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    type_checking = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    folder = path.relative_to(PACKAGE).parts[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("llamarec_lkg") for alias in node.names), path
        if not isinstance(node, ast.ImportFrom) or id(node) in type_checking:
            continue
        assert node.level or not (node.module or "").startswith("llamarec_lkg"), f"{path}: imports here are relative"
        if node.level:
            base = list(folder[: len(folder) - node.level + 1])
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (".".join([*base, name]) for name in names)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_an_import_goes_down_or_stays_in_its_room(path):
    if name_of(path) == "__init__.py":
        return
    allowed = ROOMS[ROOMS.index(room_of(path)) :]
    wrong = [name for name in imported(path) if name.split(".")[0] not in allowed]
    assert not wrong, f"{name_of(path)} imports {wrong}"


def test_the_processor_never_imports_the_model():
    assert not [name for name in imported(PACKAGE / "ranking/processing_llamarec_lkg.py") if "modeling" in name]


def test_there_are_no_circles():
    names = {name_of(path).removesuffix(".py").replace("/", "."): path for path in FILES if path.name != "__init__.py"}
    needs = {name: {other for other in imported(path) if other in names} for name, path in names.items()}
    while needs:
        leaves = [name for name, others in needs.items() if not others & needs.keys()]
        assert leaves, f"a circle among {sorted(needs)}"
        for name in leaves:
            del needs[name]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_long_file_has_a_reason(path):
    lines = len(path.read_text(encoding="utf-8").splitlines())
    assert lines <= (500 if name_of(path) in LONG else 400)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_file_says_why_it_exists_and_pickles_nothing(path):
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text))
    assert not re.search(r"\bimport pickle\b|pickle\.(load|dump)|torch\.save\(|allow_pickle=True", text)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_auto_classes_are_imported_where_they_are_registered_with(path):
    """Importing them imports the files that register themselves: a file that those need must not do so on its way."""
    registered = {name for names in llamarec_lkg._REGISTERED.values() for name in names}
    if (
        room_of(path) in ("cli", "serving", "training")
        or name_of(path).removesuffix(".py").replace("/", ".") in registered
    ):
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    auto = [
        alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers")
        for alias in node.names
        if alias.name.startswith("Auto") or alias.name == "pipeline"
    ]
    assert not auto, f"{name_of(path)} imports {auto} when it is loaded; import them inside the functions"
