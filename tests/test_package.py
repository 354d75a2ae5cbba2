import ast
import subprocess
import sys
from pathlib import Path

import fastmask as fm


def test_every_public_name_can_be_imported():
    missing = [name for name in fm.__all__ if not hasattr(fm, name)]
    assert missing == []
    assert {"read_contest", "cross_validate", "mask_learner", "Run"} <= set(fm.__all__)


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, fastmask; print(*{'torch', 'numpy', 'pandas', 'fastai', 'typer'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_stages_import_only_from_stages_before_them():
    order = [
        "",
        "data",
        "model",
        "training",
        "inference",
        "decision",
        "report",
        "app",
        "serve",
        "doctor",
        "answers",
        "cli",
    ]
    package = Path(fm.__file__).parent
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0].removesuffix(".py")
        rank = order.index(room) if room in order else 0
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fastmask."):
                other = node.module.split(".")[1]
                assert (order.index(other) if other in order else 0) <= rank or path.stem == "__main__", (path, other)
