import pytest

from fastmask.system.cells import read_cells
from fastmask.system.errors import DataError
from fastmask.system.files import read_strings

ROWS = [(1, ["path", "colour"]), (2, ["a.jpg", "빨강, é"]), (3, ["b.jpg", ""])]


@pytest.fixture
def file(tmp_path):
    return tmp_path / "my.csv"


@pytest.mark.parametrize(
    "text",
    [
        'path,colour\na.jpg,"빨강, é"\nb.jpg,\n',
        '\ufeffpath,colour\r\na.jpg,"빨강, é"\r\nb.jpg,\r\n',
        '"path", colour \na.jpg,"빨강, é "\n b.jpg , \n\n \n,\n',
        "path;colour\na.jpg;빨강, é\nb.jpg;\n",
        "path\tcolour\na.jpg\t빨강, é\nb.jpg\t\n",
        "path|colour\na.jpg|빨강, é\nb.jpg|\n",
        'path,colour,\na.jpg,"빨강, é",\nb.jpg,,\n',
        'path,colour\na.jpg,"빨강, é",\nb.jpg,,,\n',
    ],
)
def test_the_same_rows_however_they_are_written(text, file):
    for encoding in ("utf-8", "utf-16", "utf-16-le", "utf-16-be"):
        file.write_bytes(text.encode(encoding))
        assert read_cells(file) == ROWS


def test_a_line_that_names_the_separator_is_no_row(file):
    file.write_text("sep=;\npath;colour, main\na.jpg;red\n")
    assert read_cells(file) == [(2, ["path", "colour, main"]), (3, ["a.jpg", "red"])]


def test_blanks_at_the_ends_of_cells_can_be_kept(file):
    file.write_text(" path ,colour\na.jpg, red \n")
    assert read_cells(file, strip=False) == [(1, ["path", "colour"]), (2, ["a.jpg", " red "])]


def test_a_line_break_in_a_cell_does_not_shift_the_numbers_of_lines(file):
    file.write_text('path,note\na.jpg,"one\ntwo"\nb.jpg,x\n')
    assert read_cells(file) == [(1, ["path", "note"]), (2, ["a.jpg", "one\ntwo"]), (4, ["b.jpg", "x"])]


@pytest.mark.parametrize(
    ("text", "encoding", "language"),
    [
        ("빨간색", "cp949", "Korean in cp949"),
        ("빨간색", "euc-kr", "Korean in cp949"),
        ("赤い色です", "cp932", "Japanese in cp932"),
        ("红色的花", "gb18030", "Chinese in gb18030"),
        ("médecin", "cp1252", "Western European in cp1252"),
        ("Größe", "latin-1", "Western European in cp1252"),
    ],
)
def test_another_encoding_is_named_with_how_to_convert_it(text, encoding, language, file):
    file.write_bytes(f"path,colour\na.jpg,red\nb.jpg,{text}\n".encode(encoding))
    code = language.split()[-1]
    message = rf"my.csv cannot be read as a CSV in UTF-8 \(line 3 seems to be {language}; .*iconv -f {code} -t utf-8\)"
    with pytest.raises(DataError, match=message):
        read_strings(file, ())


def test_a_workbook_is_no_csv(file):
    file.write_bytes(b"PK\x03\x04\xff\xfe")
    with pytest.raises(DataError, match="it is a spreadsheet; save it as CSV UTF-8"):
        read_strings(file, ())


def test_a_row_with_too_many_cells_is_named(file):
    file.write_text("path,colour\na.jpg,red\nb.jpg,red,round\n")
    with pytest.raises(DataError, match="my.csv, line 3: found 3 cells, expected 2: path, colour"):
        read_strings(file, ())
