"""The wheel and the sdist: they build, hold all of the package, and what is installed from them works."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import fastmask

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A folder with an sdist of this checkout, and a wheel that was built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_wheel_holds_every_file_of_the_package(built):
    (wheel,) = built.glob("*.whl")
    files = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "fastmask").rglob("*")
        if path.is_file() and path.suffix != ".pyc" and not path.name.startswith(".")
    }
    with zipfile.ZipFile(wheel) as opened:
        held = {name for name in opened.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    assert held == files
    assert {"fastmask/__init__.pyi", "fastmask/py.typed", "fastmask/recipes/quick.yaml"} <= held
    assert any(name.startswith("fastmask/report/templates/") for name in held)


def test_the_sdist_contains_what_its_tests_need(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    assert {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "fastmask/commands/main.py",
        "tests/conftest.py",
        ".ci/run",
    } <= names


def test_the_installed_wheel_runs_and_finds_its_recipes(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", "site", str(wheel)]
    subprocess.run(install, cwd=tmp_path, check=True)
    code = (
        "import fastmask, fastmask.report.page, fastmask.commands.main as cli;"
        "print(fastmask.__version__, fastmask.__file__);"
        "cli.main(['fit', '--recipe', 'winner', '--print-config'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    first, *settings = done.stdout.splitlines()
    assert first == f"{fastmask.__version__} {tmp_path / 'site' / 'fastmask' / '__init__.py'}"
    assert "half_cutmix: 0.7" in settings
    assert (tmp_path / "site" / "bin" / "fastmask").is_file() or (tmp_path / "site" / "Scripts").is_dir()
