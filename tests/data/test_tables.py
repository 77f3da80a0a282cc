"""Tables beside images: both formats, which row is whose, and broken ones."""

import json
import os
from pathlib import Path

import pytest
from image_corpus import zipped

from diffuse_cli.data import metadata_files, read_cells
from diffuse_cli.data.samples import match_names
from diffuse_cli.system.errors import DataError

NAMES = ["a.png", "b.png", "deep/c.png"]


def write(folder: Path, text: str | bytes, name: str = "metadata.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    data = text.encode() if isinstance(text, str) else text
    (folder / name).write_bytes(data)
    return folder


def cells_of(folder, column, names=NAMES):
    return [cell and (cell.text, cell.number) for cell in read_cells(folder, names).columns[column]]


CSV = 'file_name,age,site\r\na.png,41,"Paris, 6e"\r\nb.png, 3.5 ,\r\ndeep/c.png,,x\r\n'
JSONL = """{"file_name": "a.png", "age": 41, "site": "Paris, 6e"}
{"age": 3.5, "file_name": "b.png", "site": null}

{"file_name": "deep/c.png", "site": "x"}
"""


@pytest.mark.parametrize("head", ["", "\ufeff"])
@pytest.mark.parametrize(("name", "text"), [("metadata.csv", CSV), ("metadata.jsonl", JSONL)])
def test_both_formats_say_the_same_in_folders_and_zip_files(tmp_path, name, text, head):
    write(tmp_path, head + text, name)
    zipped(tmp_path / "all.zip", {name: (head + text).encode()})
    for source in (tmp_path, tmp_path / "all.zip"):
        found = read_cells(source, NAMES)
        assert [*found.columns] == ["age", "site"]
        numbers = [cell and cell.number for cell in found.columns["age"]]
        assert numbers == [41, 3.5, None]
        assert cells_of(source, "site") == [("Paris, 6e", None), None, ("x", None)]
        assert found.lines == ()
        assert found.columns["age"][1].place == f"{name}, line {3 if name.endswith('csv') else 2}"


def test_a_file_name_is_relative_to_its_table(tmp_path):
    write(tmp_path, "file_name,age\n./a.png,1\nb.png,2\n")
    write(tmp_path / "deep", '{"file_name": "c.png", "age": 3}', "metadata.jsonl")
    assert [n for _, n in cells_of(tmp_path, "age")] == [1, 2, 3]
    write(tmp_path / "deep", '{"file_name": "../a.png", "age": 3}', "metadata.jsonl")
    with pytest.raises(DataError, match=r"a\.png already has a row, in line 1 of deep/metadata"):
        read_cells(tmp_path, NAMES)


def test_names_match_in_any_form_of_unicode(tmp_path):
    """Files of macOS have accents as characters of their own, tables do not."""
    composed, separate = (
        "\N{LATIN SMALL LETTER E WITH ACUTE}.png",
        "e\N{COMBINING ACUTE ACCENT}.png",
    )
    write(tmp_path, f"file_name,age\n{composed},1\nb.png,2\n")
    found = read_cells(tmp_path, [separate, "b.png"])
    assert [cell.number for cell in found.columns["age"]] == [1, 2]
    assert not found.lines
    assert match_names([separate], ["b.npy", composed]).tolist() == [1]


def test_samples_without_rows_and_rows_without_samples_are_counted_and_named(tmp_path):
    rows = "".join(f"gone{k}.png,1\n" for k in range(7))
    found = read_cells(write(tmp_path, f"file_name,age\na.png,1\n{rows}"), NAMES)
    assert found.lines == (
        "2 images without a row in metadata.csv, so without a condition: b.png, deep/c.png",
        "7 rows of metadata.csv without an image: gone0.png, gone1.png, gone2.png, gone3.png, "
        "gone4.png, ...",
    )


def test_only_wanted_columns_are_kept_and_all_are_named(tmp_path):
    found = read_cells(write(tmp_path, CSV), NAMES, ["age"])
    assert [*found.columns] == ["age", "site"]
    assert found.columns["site"] == [None, None, None]


def test_what_a_number_is(tmp_path):
    numbers = {"1e3": 1000, "-.5": -0.5, **dict.fromkeys(["1_000", "0x10", "12 yrs", "1,5"])}
    rows = [f'{k},"{text}"\n' for k, text in enumerate(numbers)]
    write(tmp_path, "file_name,age\n" + "".join(rows))
    assert cells_of(tmp_path, "age", [*map(str, range(6))]) == [*numbers.items()]


def test_values_of_json_keep_their_kind(tmp_path):
    values = ["7", 7, 7.0, True, "", "  ", None, [1], float("nan")]
    lines = [json.dumps({"file_name": f"{k}", "v": v}) for k, v in enumerate(values)]
    write(tmp_path, "\n".join(lines), "metadata.jsonl")
    found = cells_of(tmp_path, "v", [str(k) for k in range(len(values))])
    assert found[:8] == [
        ("7", None), ("7", 7), ("7", 7), ("true", None), None, None, None, ("[1]", None),
    ]  # fmt: skip
    assert found[8][1] != found[8][1]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("csv", "", "metadata.csv is empty"),
        ("csv", "name,age\na.png,1\n", "has no column file_name, only name, age"),
        ("csv", "file_name;age\na.png;1\n", "only file_name;age"),
        ("csv", "file_name,age,age\na.png,1,2\n", "two columns with the same name"),
        ("csv", "file_name,age\na.png,1\nb.png\n", "line 3: 1 cell, but 2 columns"),
        ("csv", 'file_name,age\na.png,"1\nb.png,2\n', "line 3: unexpected end of data"),
        ("csv", 'file_name,age\na.png,"1"2\n', "line 2: ',' expected after '\"'"),
        ("csv", "file_name,age\n,1\n", "line 2: no file_name"),
        ("csv", f"file_name,age\na.png,{'9' * 200_000}\n", "line 2: field larger than"),
        ("csv", "file_name,age\na.png,1\na.png,2\n", "line 3: a.png already has a row, in line 2"),
        ("csv", b"file_name,age\na.png,1\nb.png,\xff\n", "line 3: not UTF-8"),
        ("csv", "file_name,age\nz.png,1\n", "none of its 1 rows names an image"),
        ("jsonl", '{"file_name": "a.png"}\n{"file_name":\n', "line 2: Expecting value"),
        ("jsonl", '{"file_name": "a.png"}\n[1]\n', "line 2: not an object in braces"),
        ("jsonl", '{"age": 1}\n', "line 1: no file_name"),
        ("jsonl", "[" * 100_000 + "\n", "line 1:"),
        ("jsonl", '{"file_name": "a.png", "age": ' + "9" * 5000 + "}\n", "line 1:"),
        ("jsonl", "\x00\x01\n", "line 1:"),
    ],
)
def test_a_broken_table_is_one_line_with_its_place(tmp_path, name, text, said):
    write(tmp_path, text, f"metadata.{name}")
    with pytest.raises(DataError) as caught:
        read_cells(tmp_path, NAMES)
    assert said in caught.value.message
    assert "\n" not in str(caught.value)
    assert len(caught.value.message) < 500


def test_no_table_and_one_that_must_not_be_opened(tmp_path, monkeypatch):
    with pytest.raises(DataError, match=r"no metadata\.csv or metadata\.jsonl"):
        read_cells(tmp_path, NAMES)
    os.mkfifo(tmp_path / "metadata.csv")
    with pytest.raises(DataError, match="not a regular file"):
        read_cells(tmp_path, NAMES)
    (tmp_path / "metadata.csv").unlink()
    monkeypatch.setattr(metadata_files, "LARGEST_TABLE", 10)
    with pytest.raises(DataError, match="over 0 MiB"):
        read_cells(write(tmp_path, CSV), NAMES)
