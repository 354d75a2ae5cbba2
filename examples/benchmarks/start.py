"""How long `fastmask --help` and `import fastmask` take: `--help` beside an empty typer program, in turn.

python examples/benchmarks/start.py [RUNS]
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

EMPTY = "import typer\napp = typer.Typer()\n@app.command()\ndef hello(): ...\napp()\n"


def seconds(command: list[str]) -> float:
    # some locales cannot encode rich's frames
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    start = time.perf_counter()
    subprocess.run(command, env=env, check=True, capture_output=True)
    return time.perf_counter() - start


def main(runs: str = "15") -> None:
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder) / "empty.py"
        empty.write_text(EMPTY)
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "empty typer --help": [sys.executable, str(empty), "--help"],
            "fastmask --help": [sys.executable, "-m", "fastmask", "--help"],
            "import fastmask": [sys.executable, "-c", "import fastmask"],
        }
        times = {name: [] for name in commands}
        for _ in range(int(runs) + 1):
            for name, command in commands.items():
                times[name].append(seconds(command))
    middle = {name: median(each[1:]) for name, each in times.items()}  # the first warms the disk's cache
    for name, value in middle.items():
        print(f"{name:20} {value:.3f} s")
    ratio = middle["fastmask --help"] / middle["empty typer --help"]
    print(f"fastmask --help takes {ratio:.2f} times an empty typer program")


if __name__ == "__main__":
    main(*sys.argv[1:])
