"""YAML 1.2's core schema; what is written is the same for PyYAML, which reads YAML 1.1."""

import math

import pytest
import yaml

from fastmask.system.yaml_text import parse_yaml, to_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("010", 10),
        ("-7", -7),
        ("0o10", 8),
        ("0x1F", 31),
        ("1e-3", 0.001),
        ("1E-3", 0.001),
        (".001", 0.001),
        ("1.", 1.0),
        ("1e1", 10.0),
        (".inf", math.inf),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("off", "off"),
        ("N", "N"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("'1e-3'", "1e-3"),
        ("~", None),
        ("null", None),
        ("", None),
        ("[yes, no, 1.0, '2']", ["yes", "no", 1.0, "2"]),
    ],
)
def test_values_are_those_of_yaml_1_2(text, value):
    assert parse_yaml(text) == value
    assert type(parse_yaml(text)) is type(value)


def test_keys_are_text_as_written():
    assert parse_yaml("yes: 1\n1.0: 2\n010: {~: 3}") == {"yes": 1, "1.0": 2, "010": {"~": 3}}


def test_what_is_named_as_text_stays_as_written():
    text = "heads: {a: [yes, no, 1.0, 010, true], b: [1e3, null]}\nlr: 1e-3"
    heads = {"a": ["yes", "no", "1.0", "010", "true"], "b": ["1e3", None]}
    assert parse_yaml(text, ["heads"]) == {"heads": heads, "lr": 0.001}
    assert parse_yaml("[1.0, true]", as_text=True) == ["1.0", "true"]


@pytest.mark.parametrize("text", ["epochs:\t4", "epochs:\t\t4\t", "\ufeffepochs: 4\r\n", "epochs: 4  # four"])
def test_what_editors_leave_does_no_harm(text):
    assert parse_yaml(text) == {"epochs": 4}


def test_a_merge_key_and_an_alias():
    text = "base: &base {a: 1, b: 2}\nmore: {<<: *base, b: 3}\nagain: *base"
    assert parse_yaml(text) == {"base": {"a": 1, "b": 2}, "more": {"a": 1, "b": 3}, "again": {"a": 1, "b": 2}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: 4\n\tlr: 1", "line 2 is indented by a tab; indent by spaces"),
        ("lr: 1\nbs: 2\nlr: 3", "line 3 has 'lr' a second time; remove one of the two"),
        ("a: {lr: 1, lr: 1}", "line 1 has 'lr' a second time"),
        ("epochs: 3\ncrop: [224, 224\n", r"line 2 is not valid YAML: 'crop: \[224, 224'; expected lines such as"),
        ("epochs: 3\nlr:0.1\n", "line 2 is not valid YAML: 'lr:0.1'; expected lines such as 'name: value'"),
        ("epochs: 3: 4", "line 1 is not valid YAML: 'epochs: 3: 4'"),
        ("a: 1\n---\nb: 2", "line 2 is not valid YAML: '---'"),
        ("a: !!python/object/apply:os.system [ls]", "line 1 has a tag, .*; expected plain values"),
        ("a: \x01", "it is not valid YAML"),
        ("? [1]\n: 2", "line 1 is not valid YAML"),
    ],
)
def test_an_error_names_the_line(text, message):
    with pytest.raises(ValueError, match=message) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


WORDS = "yes no on 1e3 1e-3 08 010 1.0 .5 0o7 ~ 2020-01-01 60s größe # 1:30 1_000 0x1f .inf <<"
VALUES = [1, 0.5, 1e-7, True, None, "", " a ", "a: b", *WORDS.split()]


@pytest.mark.parametrize("value", VALUES)
def test_what_is_written_is_read_the_same_by_both_versions(value):
    text = to_yaml({"a": [value]})
    assert parse_yaml(text) == yaml.safe_load(text) == {"a": [value]}
    assert parse_yaml(to_yaml({str(value): 1})) == {str(value): 1}
