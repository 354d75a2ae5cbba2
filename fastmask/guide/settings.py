"""Settings: the chapter of all settings of a run, made from `Config`: python -m fastmask.guide.settings."""

from __future__ import annotations

from pathlib import Path

from fastmask.config import PANELS, Config
from fastmask.system.fields import describe, option_name, spell_default

_START = """# Settings

Every setting of a run: an option of `fastmask fit`, an argument of `fm.cross_validate`, a line of a YAML file for
`--config`. The command line takes precedence over `--set name=value`, that over `--config FILE`, that over a recipe,
that over the defaults; `fastmask fit --print-config` prints what results. This chapter is made from the code:
`python -m fastmask.guide.settings`.
"""


def settings_chapter() -> str:
    """The Markdown of the chapter: a table per panel of `fastmask fit --help`, then the settings without an option."""
    of_panel: dict[str | None, list[str]] = {panel: [] for panel in (*PANELS, None)}
    for name in Config.model_fields:
        of_panel[describe(Config, name).panel].append(name)
    parts = [_START]
    for panel, names in of_panel.items():
        parts.append(f"## {panel or 'In files only'}\n\n| setting | default | what |\n|---|---|---|")
        parts.append("\n".join(_row(name) for name in names) + "\n")
    return "\n".join(parts)


def _row(name: str) -> str:
    field, option = Config.model_fields[name], describe(Config, name)
    shown = option_name(Config, name) if option.panel else name
    default = option.note or spell_default(field.default) or "none"
    needs = " or ".join(f"`{option_name(Config, other)}`" for other in option.needs)
    what = f"{field.description} Needs {needs}." if needs else str(field.description)
    cells = (f"`{shown}`", default, what)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(settings_chapter(), encoding="utf-8")
