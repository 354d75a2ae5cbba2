import pytest

from fastmask.system.calls import read_call, spell_call, split_calls


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ("flip", ["flip"]),
        ("flip , rotate(limit=(-5, 5), p=1),clahe", ["flip", "rotate(limit=(-5, 5), p=1)", "clahe"]),
        ("a([1,2],{3:4}),b", ["a([1,2],{3:4})", "b"]),
        ("a,,b", ["a", "", "b"]),
        # what is closed too often does not hide the next comma
        ("a),b", ["a)", "b"]),
    ],
)
def test_commas_inside_brackets_do_not_separate(text, calls):
    assert split_calls(text) == calls


@pytest.mark.parametrize(
    ("given", "call"),
    [
        ({"rotate": {"limit": [-5, 5], "p": 1}}, "rotate(limit=[-5, 5], p=1)"),
        # values that a file has as text
        ({"rotate": {"limit": ["-5", "5"], "crop": "true"}}, "rotate(limit=[-5, 5], crop=true)"),
        ({"flip": {}}, "flip()"),
        ("flip", "flip"),
        ({"flip": 3}, {"flip": 3}),
        (4, 4),
    ],
)
def test_a_mapping_of_a_file_is_a_call(given, call):
    assert spell_call(given) == call


def test_a_call_is_a_name_and_literal_arguments():
    assert read_call("flip") == ("flip", {})
    assert read_call(" flip() ") == ("flip", {})
    text = "a-b2(x=1, y=-0.5, z=(1, [2, 'c']), word=cifar10, on=true, off=False, empty=none, m={'k': 1})"
    arguments = {"x": 1, "y": -0.5, "z": (1, [2, "c"]), "word": "cifar10", "on": True, "off": False, "empty": None}
    assert read_call(text) == ("a-b2", {**arguments, "m": {"k": 1}})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "(",
        "a(",
        "a)b",
        "a(1)",
        "a(**{'x': 1})",
        "a(x=1",
        "a(x=)",
        "a(x=1, x=2)",
        "a(x=open('f'))",
        "a(x=[i for i in ()])",
        "a(x=b.c)",
        "a(x=1) + a(x=2)",
        "a(x=" + "(" * 400 + ")" * 400 + ")",
        "a(x=" + "-" * 900 + "1)",
        "a(x='" + "b" * 2000 + "')",
    ],
)
def test_anything_else_is_refused_and_not_run(text):
    with pytest.raises(ValueError, match="expected"):
        read_call(text)
