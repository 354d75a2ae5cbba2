import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import fastmask as fm


def test_every_public_name_can_be_imported():
    missing = [name for name in fm.__all__ if not hasattr(fm, name)]
    assert missing == []
    assert {"read_contest", "cross_validate", "mask_learner", "Run"} <= set(fm.__all__)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, fastmask; print(*{'torch', 'numpy', 'pandas', 'fastai', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


# a room imports from itself and from those before it
ROOMS = [
    "system",
    "words",
    "data",
    "preparation",
    "model",
    "decision",
    "run",
    "training",
    "inference",
    "evaluation",
    "search",
    "launch",
    "export",
    "report",
    "guide",
    "api",
    "app",
    "commands",
]
WORDS = {"config", "heads", "labels", "scoring"}
PACKAGE = Path(fm.__file__).parent


def modules() -> dict[str, Path]:
    """The modules of the package below `fastmask.`, by their dotted names."""
    files = {file.relative_to(PACKAGE).with_suffix(""): file for file in PACKAGE.rglob("*.py")}
    return {".".join(path.parts).removesuffix(".__init__"): file for path, file in files.items()}


def imports(file: Path) -> Iterator[str]:
    """What a module imports of the package, at any depth, but for types alone."""
    waiting: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "fastmask":
            assert node.level == 0, file
            yield from (f"{node.module}.{alias.name}".removeprefix("fastmask.") for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (a.name.removeprefix("fastmask.") for a in node.names if a.name.startswith("fastmask."))
        waiting.extend(ast.iter_child_nodes(node))


def graph() -> dict[str, set[str]]:
    """Which modules each module imports."""
    known = modules()
    return {
        name: {found for target in imports(file) for found in (target, target.rpartition(".")[0]) if found in known}
        for name, file in known.items()
    }


def room_of(module: str) -> str:
    room = module.partition(".")[0]
    return "words" if room in WORDS else room


def test_the_root_holds_the_words_the_api_and_rooms_only():
    rooms = {room_of(module) for module in modules()} - {"__init__", "__main__"}
    assert rooms == {*ROOMS, "recipes"}


def test_a_room_imports_only_from_itself_and_the_rooms_before_it():
    against = [
        (module, other)
        for module, others in graph().items()
        for other in others
        if room_of(module) in ROOMS and ROOMS.index(room_of(other)) > ROOMS.index(room_of(module))
    ]
    assert against == []


def test_no_module_imports_itself_through_others():
    graph_of = graph()
    TopologicalSorter(graph_of).prepare()
    graph_of["system.files"].add("api")
    with pytest.raises(CycleError):
        TopologicalSorter(graph_of).prepare()


def test_no_function_is_longer_than_sixty_lines():
    long = [
        (name, node.name)
        for name, file in modules().items()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60
    ]
    assert long == []
