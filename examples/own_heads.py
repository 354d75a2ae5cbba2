"""Heads of your own: any CSV with a column a head. Here two other questions about the contest's photos.

python examples/own_heads.py DATA OUT [SETTING=VALUE ...]     such as: own_heads.py drawn runs/own-heads epochs=2
"""

import sys
from pathlib import Path

import fastmask as fm
from fastmask.config import parse_sets


def write_csv(data: str, file: Path) -> Path:
    """A CSV as you would have one: whose photo, is the nose covered, how old; nobody has judged every tenth photo."""
    table = fm.read_contest(data)
    frame = table.frame[["path", "person"]].copy()
    frame["nose"] = ["covered" if mask == "wear" else "bare" for mask in table.frame["mask"]]
    frame["generation"] = ["young" if years < 40 else "old" for years in table.frame["age_value"]]
    frame.loc[::10, "nose"] = ""
    file.parent.mkdir(parents=True, exist_ok=True)
    frame.to_csv(file, index=False)
    return table.root


def main(data: str, out: str, *pairs: str) -> None:
    file = Path(f"{out}.csv")
    images = write_csv(data, file)
    table = fm.read_csv(file, heads={"nose": ["bare", "covered"], "generation": ["young", "old"]}, images=images)
    run = fm.cross_validate(table, fm.make_config(fm.read_recipe("quick"), parse_sets(pairs)), out=out)
    print(run.score())
    print(run.predict([table.photo(0)]).frame[["nose", "generation"]].to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
