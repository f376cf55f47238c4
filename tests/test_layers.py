"""layers: a room imports only the rooms it may (ROOMS); nothing in qs/ imports a script."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {  # each room: the rooms it may import, besides the modules everybody may
    "model": "",
    "data": "model",
    "quietstar": "model",
    "inference": "quietstar model",
    "training": "quietstar data model",
    "star": "training inference data quietstar model",
    "evaluation": "inference data quietstar model",
    "studies": "evaluation star training inference data quietstar model",
    "bench": "evaluation training inference data quietstar model",
}
FRONT = {  # modules that no room imports, before all rooms: what each may import
    "__init__": "library",
    "library": "inference quietstar",
    "commands": "",
}
EVERYBODY = {"config", "thinking", "settings", "environment", "presets", "plain", "unused"}
EVERYBODY |= {"atomic", "cli", "digests", "files", "interrupts", "locks", "output", "tables"}
RUNTIME = {"torch", "numpy", "sentencepiece", "safetensors", "tqdm"} | set(sys.stdlib_module_names)
EXTRAS = {
    "pyarrow",
    "matplotlib",
    "lm_eval",
    "tokenizers",
    "zstandard",
}  # inside functions only: optional
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "torch.load", "torch.save"}

MODULES = sorted((ROOT / "qs").rglob("*.py"))
MODULES.remove(ROOT / "qs" / "bundling.py")  # setuptools' own, before there is a package
SCRIPTS = sorted(ROOT.glob("*.py"))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(node: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported anywhere under a node."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            assert child.level == 0, "imports inside qs name the package"
            if child.module == "qs":
                yield from (f"qs.{alias.name}" for alias in child.names)
            else:
                yield child.module


def imports_at_start(tree: ast.Module) -> Iterator[str]:
    """Like `imports`, without what functions import when they are called."""
    waiting = [tree]
    while waiting:
        for child in ast.iter_child_nodes(waiting.pop()):
            if isinstance(child, (ast.Import, ast.ImportFrom)):
                yield from imports(child)
            elif not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                waiting.append(child)


def packages(names: Iterator[str]) -> set[str]:
    return {name.split(".")[0] for name in names} - {"qs"}


def unsafe(tree: ast.Module) -> list[str]:
    """What in a file could run code found in data."""
    found = [name for name in packages(imports(tree)) if name in UNSAFE_MODULES]
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node) in UNSAFE_CALLS:
            found.append(ast.unparse(node))
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            found.append("allow_pickle")
    return found


def test_there_is_something_to_check():
    assert {"qs/config.py", "qs/quietstar/masks.py"} <= {name_of(path) for path in MODULES}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_room_imports_only_the_rooms_that_it_may(path: Path):
    places = path.relative_to(ROOT / "qs").with_suffix("").parts
    room = places[0] if len(places) > 1 else ""
    assert room in ROOMS or (places[0] in EVERYBODY | FRONT.keys() and not room), "no such room"
    may = ROOMS[room] if room else FRONT.get(places[0], "")
    allowed = EVERYBODY | set(may.split()) | {room}
    used = {name.split(".")[1] for name in imports(tree_of(path)) if name.startswith("qs.")}
    assert used <= allowed, f"{name_of(path)} imports {sorted(used - allowed)}"


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=name_of)
def test_nothing_imports_a_script(path: Path):
    scripts = {script.stem for script in SCRIPTS} | {"train", "evaluate"}
    assert not packages(imports(tree_of(path))) & scripts


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=name_of)
def test_folders_are_quoted_in_commands_that_a_person_is_told_to_type(path: Path):
    unquoted = r"\.py [a-z]+ \{|--(weights|resume) \{(?!shlex)"
    assert not re.search(unquoted, path.read_text())


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=name_of)
def test_only_the_declared_dependencies_are_imported(path: Path):
    tree = tree_of(path)
    assert packages(imports_at_start(tree)) <= RUNTIME
    assert packages(imports(tree)) <= RUNTIME | EXTRAS


@pytest.mark.parametrize("path", MODULES + SCRIPTS, ids=name_of)
def test_nothing_is_unpickled_or_evaluated(path: Path):
    assert not unsafe(tree_of(path))


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads",
        "x = eval(text)",
        "exec(text)",
        "torch.load(path)",
        "load = torch.load",
        "numpy.load(path, allow_pickle=True)",
    ],
)
def test_unpickling_and_evaluating_would_be_found(line: str):
    assert unsafe(ast.parse(line))
    assert not unsafe(ast.parse("model.eval()\nnumpy.load(path)"))


def test_imports_would_be_found_wherever_they_are():
    text = "import a.b\nfrom qs import c\nif x:\n    import d\ndef f():\n    from qs.e import g\n"
    tree = ast.parse(text)
    assert set(imports(tree)) == {"a.b", "qs.c", "d", "qs.e"}
    assert set(imports_at_start(tree)) == {"a.b", "qs.c", "d"}
