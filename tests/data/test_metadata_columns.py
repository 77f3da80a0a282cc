"""Columns: their kinds, their codes, and what may be typed of them."""

import math

import numpy as np
import pytest

from diffuse_cli.core.conditions import LabelColumn, MetadataTable, NumberColumn
from diffuse_cli.data.metadata_columns import (
    decode_row,
    describe_out_of_range,
    describe_unknown_labels,
    encode_rows,
    find_missing_columns,
    make_table,
    parse_column,
    parse_column_names,
    parse_rows,
)
from diffuse_cli.data.metadata_files import Cell, Cells
from diffuse_cli.system.errors import DataError, UsageError

TABLE = MetadataTable(
    columns=(
        NumberColumn(name="age", mean=40, deviation=10, low=20, high=60),
        LabelColumn(name="site", values=("oslo", "paris"), missing=0.1),
    )
)


def number_of(text):
    """The number that a text is, as Python reads it."""
    try:
        return float(text)
    except ValueError:
        return None


def cells(**columns):
    def cell(text, line):
        return None if text is None else Cell(text, number_of(text), "metadata.csv", line)

    made = {name: [cell(t, k + 2) for k, t in enumerate(texts)] for name, texts in columns.items()}
    return Cells(("metadata.csv",), made)


def learned(*asked, train=None, **columns):
    found = cells(**columns)
    n = len(next(iter(columns.values())))
    return make_table(asked, found, np.arange(n) if train is None else np.array(train))


def test_numbers_are_of_the_training_images_whatever_their_order():
    ages = [None, "1", "2", "4", "9", "1000", "nan"]
    (age,) = learned("age", age=ages, train=[0, 1, 2, 3, 4, 6]).columns
    own = np.array([1, 2, 4, 9])
    assert (age.name, age.low, age.high) == ("age", 1, 9)
    found = (age.mean, age.deviation, age.missing)
    assert found == pytest.approx((own.mean(), own.std(), 1 / 3))
    tenths = [str(k / 10) for k in range(100)]
    assert learned("x", x=tenths) == learned("x", x=tenths[::-1])
    rows = encode_rows(MetadataTable(columns=(age,)), cells(age=ages))
    assert rows.dtype == np.float32
    assert rows.shape == (7, 1)
    assert np.isnan(rows[[0, 6]]).all()
    assert rows[4, 0] == pytest.approx((9 - own.mean()) / own.std())


def test_other_columns_are_labels_and_one_of_held_out_images_alone_is_untold():
    found = cells(site=["b", "a", None, "b", "z"])
    table = make_table(["site"], found, np.arange(4))
    assert table.columns == (LabelColumn(name="site", values=("a", "b"), missing=0.25),)
    assert list(describe_unknown_labels(table, found)) == [
        "1 image with a site that the model was not trained on, not conditioned on it: z"
    ]
    codes = encode_rows(table, found)[:, 0]
    assert codes[[0, 1, 3]].tolist() == [1, 0, 1]
    assert np.isnan(codes[[2, 4]]).all()


def test_numbers_are_labels_where_that_is_asked():
    table = learned("zip:label", zip=["007", "7", "10"])
    assert table.columns[0].values == ("007", "10", "7")
    assert parse_column("zip:label") == ("zip", "label")
    assert parse_column("a:b") == ("a:b", "")


@pytest.mark.parametrize(
    ("asked", "column", "kind", "said"),
    [
        ("agee", ["1", "2"], UsageError, "only age. Did you mean 'age'?"),
        ("age", ["1", "1"], DataError, "every training image has 1"),
        ("age", [None, None], DataError, "no training image has a value"),
        ("age", ["nan", "nan"], DataError, "no training image has a value"),
        ("age", ["x", "x"], DataError, "every training image has x"),
        ("age", ["1", "inf"], DataError, "line 3: age is inf, not finite"),
        ("age", ["1.7e308", "-1.7e308", "-1.7e308"], DataError, "is too wide"),
        ("age", ["0", "1e-320"], DataError, "nothing to learn"),
        ("age:number", ["1", "x"], DataError, "line 3: age is 'x', not a number"),
        ("age", [*"123456789" * 2, "n/a"], DataError, "line 20: age is 'n/a', but 94 % of"),
        ("age", [f"a{k}" for k in range(1001)], DataError, "1,001 different labels"),
        ("age:label", [f"{k}" for k in range(20)], DataError, "20 images have 20 different labels"),
        ("age", [f"a{k % 46}" for k in range(50)], DataError, "50 images have 46 different"),
    ],
)
def test_a_column_that_cannot_be_told_is_refused(asked, column, kind, said):
    with pytest.raises(kind) as caught:
        learned(asked, age=column)
    assert said in str(caught.value)


def test_labels_that_repeat_and_those_of_a_few_images_are_taken():
    assert len(learned("age", age=[f"a{k % 45}" for k in range(50)]).columns[0].values) == 45
    assert len(learned("age", age=[f"a{k}" for k in range(19)]).columns[0].values) == 19


def test_columns_are_named_once():
    assert parse_column_names(["a", "b:label"]) == ["a", "b"]
    with pytest.raises(UsageError, match="at most 64"):
        parse_column_names([f"c{k}" for k in range(65)])


def test_a_known_table_needs_its_columns_and_its_kinds():
    with pytest.raises(UsageError, match="no column site, which the model is conditioned on"):
        encode_rows(TABLE, cells(age=["1"]))
    with pytest.raises(DataError, match="line 2: age is 'x', not a number"):
        encode_rows(TABLE, cells(age=["x"], site=["oslo"]))


def test_typed_values_are_told_each_with_each():
    nan = pytest.approx(math.nan, nan_ok=True)
    assert parse_rows(TABLE, ["age=50"]) == ((1, nan),)
    rows = parse_rows(TABLE, ["age=50", "site=paris", "age=35.0", "site=oslo"])
    assert rows == ((1, 1), (1, 0), (-0.5, 1), (-0.5, 0))
    assert decode_row(TABLE, rows[2]) == {"age": 35, "site": "paris"}
    assert decode_row(TABLE, parse_rows(TABLE, ["site=oslo"])[0]) == {"site": "oslo"}
    odd = MetadataTable(columns=(LabelColumn(name="a=b", values=("c=d", "e")),))
    assert parse_rows(odd, ["a=b=c=d"]) == ((0,),)


def test_what_is_not_known_is_refused():
    for on, said in (
        ("age=old", "--on age=old: not a number. Pass a number from 20 to 60"),
        ("age=inf", "not a number"),
        ("site=pari", "Did you mean 'paris'"),
        ("site=", "Choose from: oslo, paris"),
    ):
        with pytest.raises(UsageError, match=said):
            parse_rows(TABLE, [on])


def test_numbers_out_of_range_are_told_of():
    lines = list(describe_out_of_range(TABLE, ["age=20", "age=61", "site=oslo", "age=-1e9"]))
    assert [line.partition(":")[0] for line in lines] == ["--on age=61", "--on age=-1e9"]
    assert "outside 20 to 60" in lines[0]
    assert parse_rows(TABLE, ["age=-1e300"])[0][0] == -1000


def test_columns_that_every_image_had_are_untaught():
    assert find_missing_columns(TABLE, []) == ["age"]
    assert find_missing_columns(TABLE, parse_rows(TABLE, ["age=1"])) == []
    assert find_missing_columns(TABLE, parse_rows(TABLE, ["site=oslo"])) == ["age"]
