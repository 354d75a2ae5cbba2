"""Script: whether processes that import the user's script again would run it a second time."""

from __future__ import annotations

import ast
import sys
import types


def unguarded_line() -> str | None:
    """The place (file, line) in the running script that leads here without a main guard; None if there is none.

    A process that is not forked imports the script, so what is not below `if __name__ == "__main__":` runs there again.
    A notebook, `python -c` and a console have no file to import.
    """
    frame = _script_frame()
    if frame is None or _is_guarded(frame.f_code.co_filename, frame.f_lineno):
        return None
    return f"{frame.f_code.co_filename}, line {frame.f_lineno}"


def _script_frame() -> types.FrameType | None:
    """The frame of the script's own level, if this is called from it."""
    main = sys.modules["__main__"]
    frame: types.FrameType | None = sys._getframe()
    found = None
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_globals is vars(main) and hasattr(main, "__file__"):
            found = frame
        frame = frame.f_back
    return found


def _is_guarded(file: str, line: int) -> bool:
    """Whether a line of a script is below an `if` about `__name__`; also if the script cannot be parsed."""
    try:
        with open(file, "rb") as opened:
            tree = ast.parse(opened.read())
    except (OSError, SyntaxError, ValueError):
        return True
    guards = (each for each in ast.walk(tree) if isinstance(each, ast.If) and "__name__" in ast.unparse(each.test))
    return any(each.lineno <= line <= (each.end_lineno or each.lineno) for each in guards)
