"""What a leaky split does to a score: the same network on the same photos, persons whole and persons split.

python examples/leak.py DATA OUT [SETTING=VALUE ...]     such as: leak.py data runs/leak epochs=4
"""

import sys
import warnings

import fastmask as fm
from fastmask.config import parse_sets


def main(data: str, out: str, *pairs: str) -> None:
    settings = fm.make_config(fm.read_recipe("quick"), parse_sets(pairs)).model_dump(exclude_unset=True)
    table = fm.read_contest(data)
    warnings.simplefilter("ignore", fm.FastmaskWarning)
    print("split            macro-F1 on the photos left out")
    for name, group in (("persons whole", "person"), ("persons split", "none")):
        run = fm.cross_validate(table, out=f"{out}/{group}", **{**settings, "group": group})
        print(f"{name:16} {run.score().joint}")


if __name__ == "__main__":
    main(*sys.argv[1:])
