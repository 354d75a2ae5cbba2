import pytest

from fastmask.data.contest import read_contest
from fastmask.data.fixes import apply_fixes
from fastmask.system.errors import DataError, FastmaskWarning, UsageError


@pytest.fixture
def table(contest):
    return read_contest(contest, age_bounds=(30, 58))


@pytest.fixture
def fix(table, tmp_path):
    """Apply a table of fixes, in which A is the first person and B the second."""

    def apply(text, **options):
        file = tmp_path / "fixes.csv"
        file.write_text(text.replace("AA", a).replace("BB", b).replace("CC", c))
        return apply_fixes(table, file, **options)

    a, b, c = list(dict.fromkeys(table.persons))[:3]
    return apply


def test_a_person_s_label_a_photo_s_and_an_unknown_one(fix, table):
    swapped = "AA/normal.jpg", "AA/incorrect_mask.jpg"
    fixed = fix(f"person,path,column,value\nAA,,gender,female\n,{swapped[0]},mask,incorrect\nBB,,age,\n")
    before, after = table.frame, fixed.frame
    first, second = before["person"] == table.persons[0], before["person"] == table.persons[7]
    assert (after.loc[first, "gender"] == "female").all()
    assert after.loc[first, "mask"].tolist().count("incorrect") == 2
    assert (fixed.y[second, 2] == -1).all()
    assert (fixed.train_y[second, 2] == -1).all()
    assert after[~first & ~second].equals(before[~first & ~second])
    assert table.frame.equals(before)


def test_an_age_is_a_number_from_which_both_bands_follow(fix, table):
    fixed = fix("person,column,value\nAA,age,58\n")
    assert fixed.frame["age"][0] == "30-59"
    assert fixed.train_y[0, 2] == 2


def test_photos_of_one_person_under_two_names(fix, table):
    assert (fix("person,column,value\nBB,person,AA\n").persons[:14] == table.persons[0]).all()
    apart = fix("person,column,value\nBB,person,AA\nBB,gender,male\n")
    assert (apart.frame["gender"][7:14] == "male").all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("person,column,value\nnobody,gender,male\n", "line 2, column person: no photo of the data matches 'nobody'"),
        ("path,column,value\nAA/norml.jpg,mask,none\n", r"column path: no photo .* did you mean '.*/normal.jpg'"),
        (
            "person,path,column,value\nBB,AA/normal.jpg,mask,none\n",
            "column path: .*normal.jpg' is not a photo of person",
        ),
        ("person,column,value\n,gender,male\n", "line 2, column person: found nothing"),
        ("person,column,value\nAA,hat,yes\n", "column column: found 'hat', expected one of mask, gender, age, person"),
        ("person,column,value\nAA,gender,man\n", "column value: found 'man', expected one of male, female, or nothing"),
        ("person,column,value\nAA,age,old\n", "column value: found 'old', expected a number"),
        ("person,column,value\nAA,gender,male\nAA,gender,female\n", "line 3, column column: another line corrects"),
        ("person,value\nAA,male\n", "has no column 'column'"),
        ("column,value\ngender,male\n", "has neither column person nor path"),
        ("person,column,value\nAA,age,450\n", "column value: found '450', expected a number from 0 to 150"),
        ("person,column,value\nAA,person,nobody\n", "column value: 'nobody' is not a person of the data"),
        ("person,column,value\nAA,person,\n", "column value: '' is not a person of the data"),
        (
            "person,column,value\nAA,person,BB\nBB,person,CC\n",
            "line 2, column value: another line assigns '.*' to another person",
        ),
        ("person,column,value\n000001,gender,male\n", r"no photo of the data matches '000001'; did you mean '000001_"),
    ],
)
def test_a_row_that_cannot_be_applied_is_named(text, message, fix):
    with pytest.raises(DataError, match=message):
        fix(text)


def test_faults_can_be_collected(fix, table):
    faults = []
    fixed = fix("person,column,value\nnobody,gender,male\nAA,gender,man\nAA,age,20\n", on_fault=faults.append)
    assert ["line 2" in str(faults[0]), "line 3" in str(faults[1]), len(faults)] == [True, True, 2]
    assert fixed.frame["age_value"][0] == 20


def test_a_table_is_corrected_by_one_file(fix, table, tmp_path):
    fixed = fix("person,column,value\nAA,age,20\n")
    with pytest.raises(UsageError, match="corrects the table already; add the rows of .* to that file"):
        apply_fixes(fixed, tmp_path / "fixes.csv")


def test_a_path_may_be_written_as_the_data_s(fix, table):
    for path in ("./AA/normal.jpg", f"{table.root.absolute()}/AA/normal.jpg"):
        assert fix(f"path,column,value\n{path},mask,wear\n").frame["mask"][6] == "wear"


def test_a_class_without_photos_is_a_warning(fix, table):
    old = table.frame["person"][table.frame["age"] == "60+"].unique()
    rows = "".join(f"{person},age,59\n" for person in old)
    with pytest.warns(FastmaskWarning, match=r"no photo has age 60\+, which is still a class"):
        fix(f"person,column,value\n{rows}")


def test_corrections_proposed_by_a_model_are_counted_with_a_warning(fix):
    with pytest.warns(FastmaskWarning, match="1 corrections of .* are proposed by a model.* too good"):
        fixed = fix("person,column,value,proposed\nAA,gender,male,\nBB,gender,male,oof\n")
    assert fixed.proposed == 1
