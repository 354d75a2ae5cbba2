from fastmask.preparation.findings import Finding, findings_frame, summary

FINDINGS = [
    Finding("warning", "tiny", "The photo is tiny.", "b/1.jpg", "b"),
    *[Finding("error", "unreadable", "The photo is empty; expected a photo.", f"a/{i:02}.jpg", "a") for i in range(12)],
    Finding("error", "too few persons", "There are 3."),
]


def test_the_frame_has_errors_first_and_its_columns_even_when_empty():
    frame = findings_frame(FINDINGS)
    assert frame.columns.tolist() == ["level", "kind", "photo", "person", "other", "detail"]
    assert frame["kind"].tolist() == ["too few persons", *["unreadable"] * 12, "tiny"]
    assert findings_frame([]).columns.tolist() == frame.columns.tolist()


def test_the_summary_counts_each_kind_and_lists_ten():
    lines = summary(FINDINGS, width=60).splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["error", "too", "few", "persons", "1"],
        ["error", "unreadable", "12"],
        ["warning", "tiny", "1"],
    ]
    assert sum("a/" in line for line in lines) == 10
    assert "  ... and 2 more; the CSV of --out has all" in lines
    assert max(map(len, lines)) <= 60
    assert summary([]) == "Nothing wrong found."


def test_long_names_are_wrapped_not_cut():
    text = summary([Finding("error", "unreadable", "The photo is empty.", "q" * 90 + ".jpg")], width=50)
    assert max(map(len, text.splitlines())) <= 50
    assert text.count("q") == 90
