import pytest

from fastmask.data.contest import contest_heads
from fastmask.evaluation.comparison import compare
from fastmask.inference.answers import read_answers
from fastmask.system.errors import DataError
from fastmask.system.files import write_csv


def test_any_form_gives_class_names_by_photo(tmp_path):
    texts = (
        "path,mask,gender,age\nb.jpg,none,male,30-59\na.jpg,wear,female,60+\n",
        "ImageID,ans\nb.jpg,13\na.jpg,5\n",
        "photo,predicted\nb.jpg,13\na.jpg,5\n",
        "path,mask.wear,mask.incorrect,mask.none,gender.male,gender.female,age.<30,age.30-59,age.60+\n"
        "b.jpg,0.2,0.3,0.5,0.6,0.4,0,1,0\na.jpg,1,0,0,0.4,0.6,0.3,0.3,0.4\n",
    )
    for text in texts:
        (tmp_path / "x.csv").write_text(text)
        found = read_answers(tmp_path / "x.csv", contest_heads())
        assert found.photos.tolist() == ["b.jpg", "a.jpg"]
        names = {head: given.tolist() for head, given in found.answers.items()}
        assert names == {"mask": ["none", "wear"], "gender": ["male", "female"], "age": ["30-59", "60+"]}
        assert (found.name, found.labels, found.run) == ("x", {}, None)


@pytest.mark.parametrize("form", ["probabilities", "submission", "classes", "names"])
def test_a_file_of_any_form_is_scored_like_the_run(three, files, form):
    found = compare([three[0], three[1], files[form]], draws=100)
    run, foreign = found.results[1:]
    assert foreign.name == form
    assert (foreign.joint, foreign.heads, foreign.classes) == (run.joint, run.heads, run.classes)
    assert foreign.cost is None
    # a file may be the baseline
    turned = compare([files[form], three[0]], draws=100).results[1]
    assert (turned.joint, turned.against.difference.macro_f1 < 0) == (found.results[0].joint, True)
    assert "whether its answers are out of fold cannot be checked" in foreign.caveats[0]
    assert f"3 {form}: {foreign.caveats[0]}" in str(found)


def test_answers_that_are_not_the_most_probable_are_counted(three, tmp_path):
    oof = three[0].oof.copy()
    oof.loc[:9, "predicted"] = (oof.loc[:9, "predicted"] + 6) % 18
    write_csv(tmp_path / "decided.csv", oof)
    (caveat,) = compare([three[0], tmp_path / "decided.csv"], draws=100).results[1].caveats[1:]
    assert caveat == "10 cells of its column predicted are not the most probable class, and are ignored."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,ans\n00000.jpg,18\n", "line 2, column ans: found '18', expected a class from 0 to 17"),
        ("path,mask\n00000.jpg,hat\n", "line 2, column mask: found 'hat', expected one of wear, incorrect, none"),
        ("path,gender.male\n00000.jpg,1\n", "has no column 'gender.female', only those"),
        (
            "path,gender.male,gender.female\n00000.jpg,0.5,2\n",
            "column gender.female: found '2', expected a probability",
        ),
        ("path,gender.male,gender.female\n00000.jpg,nan,0\n", "column gender.male: found 'nan'"),
        ("path,hat\n00000.jpg,1\n", "has no answers; found path, hat, expected mask.wear"),
    ],
)
def test_a_file_that_holds_no_answers_is_refused_by_its_cell(tmp_path, text, message):
    (tmp_path / "x.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_answers(tmp_path / "x.csv", contest_heads())
