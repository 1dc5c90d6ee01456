"""Tables and names of files as people's programs write them: read right, said, or refused; never misread in silence."""

import csv
import io
import os
import unicodedata
import zipfile

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jointdiff.config import ConfigError
from jointdiff.data.own.files import Files
from jointdiff.data.own.inspection import inspect
from jointdiff.data.own.problems import Problems
from jointdiff.data.own.reading import SEPARATORS, read_table
from jointdiff.data.own.tables import Options
from jointdiff.data.source import DataError
from tests.properties import examples
from tests.unit.test_inspection import PICTURES, found, reported, rows
from tests.unit.test_own import place, text

PLAIN = "path,ill\na.png,1\nb.png,0\n"
READ = (("path", "ill"), [(2, ["a.png", "1"]), (3, ["b.png", "0"])])


def table(content, name="t.csv"):
    """Return columns, rows and what is said of a table."""
    problems = Problems()
    read = read_table(content if isinstance(content, bytes) else content.encode(), name=name, problems=problems)
    said = [f"{problem.severity} {problem}" for problem in problems]
    return (read.columns, [(number, list(cells.values())) for number, cells in read.rows]), said


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (PLAIN, None),
        (b"\xef\xbb\xbf" + PLAIN.encode(), None),
        (PLAIN.replace(",", "\t").encode("utf-16"), r"note columns are separated by '\t'"),
        (b"\xfe\xff" + PLAIN.encode("utf-16-be"), None),
        (PLAIN.replace(",", ";"), "note columns are separated by ';'"),
        (PLAIN.replace(",", " | "), "note columns are separated by '|'"),
        ("sep=,\n" + PLAIN, None),
        ('"sep=;"\r\n' + PLAIN.replace(",", ";"), "note columns are separated by ';'"),
        ("SEP=;;\n" + PLAIN.replace(",", ";"), "note columns are separated by ';'"),
        (PLAIN.replace("\n", "\r"), None),
        (PLAIN.replace("\n", "\r\n", 1), None),
        (PLAIN.replace(",", ", ").replace("path", '"path"').replace("1", '"1"'), None),
        (PLAIN.replace("ill", "\xa0ill\u200b").replace("a.png", "a.png\xa0"), None),
        (PLAIN.replace("\n", ",,\n"), "note a column without a name is empty (2 times): t.csv, column 3; t.csv, col"),
        (PLAIN.replace("\n", ",,\n").replace("ill,,", "ill"), None),
        (",path,ill\n0,a.png,1\n1,b.png,0\n", "note a column without a name numbers the rows and is not read: t.csv,"),
        ("Unnamed: 0,path,ill\n1,a.png,1\n2,b.png,0\n", "note a column without a name numbers the rows"),
        ("path,ill,\na.png,1,\nb.png,0,x\n", "warning a column without a name is not read: t.csv, column 3, 'x'"),
        ("path,ill,\na.png,1\nb.png,0\n", "note a column without a name is empty: t.csv, column 3"),
        (PLAIN + "path,ill\n", "error a row repeats the header: t.csv, row 4. Remove it"),
    ],
)  # fmt: skip
def test_one_table_however_it_is_written(content, said):
    read, notes = table(content)
    assert read == READ
    assert len(notes) == (said is not None) and all(note.startswith(said) for note in notes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("path,ill;x\na.png,1;2\n", r"may be separated by ',' or by ';'; write the line sep=, above"),
        ("Scans of 2024\npath,ill\na.png,1\n", r"row 1: 'Scans of 2024' stands alone above rows of several cells"),
        ("# made by hand,,\npath,ill,x\na.png,1,2\n", r"row 1: '# made by hand' stands alone above"),
        ("path\na.png;1\n" * 2, None),
        ("path,ill\na.png,Edema, mild\n", r"row 2: 3 cells below 2 columns; put a cell that has ',' in it in straight"),
        ("path;ill\na.png;x;y\n", r"row 2: 3 cells below 2 columns; put a cell that has ';' in it in straight"),
        ("path,ill\na.png\n", r"row 2: 1 cells below 2 columns"),
        ("path,ill\na.png,\u201cEdema, mild\u201d\n", r"in straight double quotes"),
        ("path,ill\na.png,M\xfc\n".encode("latin-1"), r"t\.csv, row 2: this is no UTF-8; save it as UTF-8, a table as"),
        ("a,b\rc,d\re,\xfc".encode("cp1252"), r"t\.csv, row 3: this is no UTF-8"),
        ("path,ill\na.png,1\n".encode("utf-16-le"), r"is no text; save it as 'CSV UTF-8'"),
        (",,\n1,2,3\n", r"has no rows"),
        ("Unnamed: 0\na.png\n", r"no column has a name"),
        ("é,e\u0301\n1,2\n", r"more than one column 'é'; rename"),
        ('path,ill\na.png,"1\n', r"is no CSV table \(line 2: unexpected end of data\)"),
    ],
)
def test_what_is_refused_says_how_to_write_it(content, message):
    if message is None:  # one column, whose cells hold another mark
        assert table(content)[0][0] == ("path",)
        return
    with pytest.raises(DataError, match=message):
        table(content)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("path,Ill,ill\na,1,1\n", "warning names of columns look alike: 'Ill' and 'ill'. See that the options"),
        ("path,patient id,patient_id\na,1,1\n", "warning names of columns look alike: 'patient id' and 'patient_id'"),
        ("path,ill\na,\u201cno\u201d\n", "warning typographic quotes are around a cell: t.csv, row 2 \u201cno\u201d."),
        ("path;age\na;7,0\n", "warning a number has a decimal comma: t.csv, row 2 '7,0'. It is text here"),
    ],
)
def test_what_is_odd_is_said(content, said):
    assert any(note.startswith(said) for note in table(content)[1])


CELLS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6).map(str.strip)


@examples(150)
@given(
    st.lists(st.lists(CELLS, min_size=3, max_size=3).filter(any), min_size=1, max_size=4),
    st.sampled_from(SEPARATORS),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.booleans(),
)
@example([["a,b", 'c"d', "e\nf"]], ";", "\r\n", "utf-16", csv.QUOTE_MINIMAL, True)
def test_any_table_comes_back_from_any_dialect(body, mark, ends, encoding, quoting, said):
    stream = io.StringIO(newline="")
    stream.write(f"sep={mark}\n" if said else "")
    head = ["one", "two", "three"]
    csv.writer(stream, delimiter=mark, lineterminator=ends, quoting=quoting).writerows([head, *body])
    bare = {"\r", "\n"} - {*ends}  # which the writer leaves without quotes, so that a row seems to end there
    if quoting == csv.QUOTE_MINIMAL and any(bare & {*cell} for row in body for cell in row):
        return
    (columns, read), _ = table(stream.getvalue().encode(encoding))
    assert columns == tuple(head)
    assert [cells for _, cells in read] == body


@pytest.mark.parametrize("index", [True, False])
def test_what_pandas_writes_is_read(index):
    import pandas as pd

    frame = pd.DataFrame({"path": ["a.png", "b.png"], "ill": [1, 0]})
    for content in (frame.to_csv(index=index), frame.to_csv(index=index, sep=";"), frame.to_csv(index=index, sep="\t")):
        assert table(content)[0] == READ
    stream = io.BytesIO()
    frame.set_index(pd.Index(["x", "y"])).to_parquet(stream, index=index)
    (columns, read), said = table(stream.getvalue(), name="t.parquet")
    assert (columns, read) == READ
    assert len(said) == index and all("is not read" in note for note in said)


def test_a_parquet_table_keeps_its_texts():
    import pyarrow as pa
    from pyarrow import parquet

    stream = io.BytesIO()
    columns = {"text": ["7.0", "7"], "number": [7.0, None], "bytes": [b"a.png", None], "whole": [2.0**53, 0.5]}
    parquet.write_table(pa.table(columns), stream)
    assert table(stream.getvalue(), name="t.parquet")[0][1] == [
        (2, ["7.0", "7", "a.png", "9007199254740992"]),
        (3, ["7", "", "", "0.5"]),
    ]


# Names of files


COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Höhle ü.png") for form in ("NFC", "NFD"))


def kept(tmp_path, *names, packed=False):
    if packed:
        with zipfile.ZipFile(tmp_path / "t.zip", "w") as archive:
            for name in names:
                archive.writestr(name, b"x")
        return Files(tmp_path / "t.zip")
    return Files(place(tmp_path / "t", dict.fromkeys(names, b"x")))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("names", "text", "meant"),
    [
        ([COMPOSED], DECOMPOSED, COMPOSED),
        ([DECOMPOSED], COMPOSED, DECOMPOSED),
        ([COMPOSED, DECOMPOSED], DECOMPOSED, DECOMPOSED),
        ([COMPOSED, DECOMPOSED], COMPOSED, COMPOSED),
        (["o\u0323\u0302.png", "o\u0302\u0323.png"], "\u1ed9.png", None),  # two files of one name: neither for sure
        (["images/a.png"], "./images//a.png", "images/a.png"),
        (["images/a.png"], "images\\a.png", "images/a.png"),
        (["images/a.png"], "images/A.png", None),
        (["a#1?.png"], "a#1?.png", "a#1?.png"),
        (["a.png"], ".", None),
        (["a.png"], "", None),
    ],
)
def test_the_file_that_a_name_means(tmp_path, names, text, meant, packed):
    assert kept(tmp_path, "other.png", *names, packed=packed).find(text) == meant


def test_an_exact_name_comes_first(tmp_path):
    files = kept(tmp_path, "a\\b.png", "a/b.png", "x:y.png")
    assert [files.find(name) for name in ("a\\b.png", "a/b.png", "x:y.png")] == ["a\\b.png", "a/b.png", "x:y.png"]


@pytest.mark.parametrize(
    ("text", "meant"),
    [("IMAGES/A 1.PNG", "images/a 1.png"), ("a 1", "images/a 1.png"), ("images/a%201.png", "images/a 1.png"),
     ("images/a 1.png\u200b", "images/a 1.png"), ("scan\\a 1.jpeg", "images/a 1.png"), ("b", None)],
)  # fmt: skip
def test_what_was_probably_meant_is_only_a_hint(tmp_path, text, meant):
    files = kept(tmp_path, "images/a 1.png")
    assert files.find(text) is None and files.nearest(text) == meant


LETTERS = st.text(st.sampled_from("aAbeé\u0301ßs./\\ %"), min_size=1, max_size=5)


@examples(150)
@given(st.sets(LETTERS, min_size=1, max_size=5), LETTERS)
def test_no_name_means_another_file_where_its_own_is_there(tmp_path_factory, names, text):
    files = kept(tmp_path_factory.mktemp("n"), "z")
    files._places = {name: name for name in names}
    for name in names:
        assert files.find(name) == name
    meant = files.find(text)
    if meant is not None and meant != text:  # reached by another spelling, which fits no other file as well
        fitting = {n for n in names if unicodedata.normalize("NFC", n) == unicodedata.normalize("NFC", meant)}
        assert fitting == {meant} or meant == os.path.normpath(text.replace("\\", "/"))


def test_one_image_under_two_spellings_is_named_twice(tmp_path):
    picture = PICTURES["0.png"]
    names = [COMPOSED, DECOMPOSED, f"./{COMPOSED}", f".\\{DECOMPOSED}"]
    content = text(["path", "ill", "patient"], *[[name, k % 2, f"p{k}"] for k, name in enumerate(names)])
    place(tmp_path, {DECOMPOSED: picture, "labels.csv": content})
    report = inspect(Options(path=str(tmp_path), table="labels.csv", labels=("ill",), group="patient"))
    (error,) = [line for line in found(report, "error") if "named twice" in line]
    assert "(3 times): row 3" in error


def test_masks_and_boxes_are_found_as_images_are(tmp_path):
    head = ["path", "ill", "x0", "y0", "x1", "y1"]
    report = reported(
        tmp_path, {DECOMPOSED: PICTURES["0.png"], "labels.csv": rows(more=[[COMPOSED, 1, "q"]]),
                   "boxes.csv": text(head, [f"./{COMPOSED}", "ill", 1, 2, 3, 4])}, boxes="boxes.csv",
    )  # fmt: skip
    assert report.ok and [row.file for row in report.collection.rows if row.boxes] == [DECOMPOSED]


def test_columns_are_found_in_either_form(tmp_path):
    head = ["path", unicodedata.normalize("NFD", "Höhle"), "patient"]
    report = reported(tmp_path, {"labels.csv": rows(head=["path", "ill", "patient"]).replace(b"ill", head[1].encode())},
                      labels=("Höhle",))  # fmt: skip
    assert report.ok and report.collection.names == ("Höhle",)


def test_a_zip_whose_names_are_utf8_without_saying_so(tmp_path):
    kept(tmp_path, COMPOSED, "b.png", packed=True)
    whole = (tmp_path / "t.zip").read_bytes()
    for start in (b"PK\x03\x04", b"PK\x01\x02"):  # the bit that says UTF-8, beside each name
        at = whole.index(start) + (6 if start[2] == 3 else 8)
        whole = whole[: at + 1] + bytes([whole[at + 1] & ~8]) + whole[at + 2 :]
    (tmp_path / "t.zip").write_bytes(whole)
    assert Files(tmp_path / "t.zip").find(DECOMPOSED) == COMPOSED


def test_links_to_folders_are_followed_and_circles_end(tmp_path):
    place(tmp_path / "elsewhere", {"a.png": b"x", "deep/b.png": b"x"})
    folder = place(tmp_path / "t", {"c.png": b"x"})
    (folder / "images").symlink_to(tmp_path / "elsewhere")
    (folder / "again").symlink_to(folder)
    (tmp_path / "elsewhere" / "deep" / "up").symlink_to(tmp_path / "elsewhere")
    (folder / "broken.png").symlink_to(tmp_path / "nothing")
    files = Files(folder)
    assert sorted(files) == ["broken.png", "c.png", "images/a.png", "images/deep/b.png"]
    assert files.read("images/a.png") == b"x"
    with pytest.raises(DataError, match=r"broken\.png cannot be read"):
        files.read("broken.png")


# Which file is the table


def test_tables_of_other_kinds_are_read_or_named(tmp_path):
    spread = rows().replace(b",", b"\t")
    assert inspect(place(tmp_path / "tsv", {**PICTURES, "labels.TSV": spread})).ok
    assert inspect(place(tmp_path / "upper", {**PICTURES, "labels.CSV": rows()})).ok
    assert inspect(place(tmp_path / "both", {**PICTURES, "labels.csv": rows(), "more.tsv": spread})).ok
    place(tmp_path / "excel", {**PICTURES, "labels.xlsx": b"PK"})
    (error,) = found(inspect(tmp_path / "excel"), "error")
    assert "it has none; save labels.xlsx as 'CSV UTF-8'" in error
    with pytest.raises(ConfigError, match=r"neither a folder nor a \.zip"):
        Files(tmp_path / "excel" / "labels.xlsx")
