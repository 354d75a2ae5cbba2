import json
import math

import pytest

from fastmask.errors import DataError
from fastmask.files import read_json, read_yaml, replacing, write_json, write_text, write_yaml


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    file = tmp_path / "scores.json"
    write_text(file, "old")
    with pytest.raises(RuntimeError), replacing(file) as beside:
        beside.write_text("half")
        raise RuntimeError
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_json_and_yaml_come_back(tmp_path):
    value = {"name": "Zürich", "list": [1, 2.5, None], "nested": {"yes": True}}
    write_json(tmp_path / "a.json", value)
    write_yaml(tmp_path / "deep" / "a.yaml", value)
    assert read_json(tmp_path / "a.json") == read_yaml(tmp_path / "deep" / "a.yaml") == value


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"f1": math.nan, "each": (1.0, math.nan)})
    assert json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail) == {
        "f1": None,
        "each": [1.0, None],
    }


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['true']", "a: [", "\x00"])
def test_yaml_cannot_build_objects_or_be_broken(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(DataError, match=r"a\.yaml cannot be read as YAML"):
        read_yaml(tmp_path / "a.yaml")


def test_a_broken_json_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(DataError, match=r"a\.json cannot be read as JSON"):
        read_json(tmp_path / "a.json")
