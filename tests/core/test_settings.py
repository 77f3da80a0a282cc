"""Settings: checked when made, to and from plain values."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from diffuse_cli.core import InvalidArgument
from diffuse_cli.core.settings import Settings, dimensions, setting


@dataclass(frozen=True, kw_only=True)
class Some(Settings):
    count: int = setting(low=1, high=9)
    share: float = setting(0.5, 0, 1)
    name: str = setting("a")
    on: bool = setting(False)
    widths: tuple[int, ...] = setting((1,), 1)
    most: int | None = setting(None, 1)


WRONG = [
    ({"count": 0}, "count must be at least 1, not 0"), ({"most": 0}, "most must be at least 1"),
    ({"count": 10}, "count must be at most 9, not 10"), ({"count": 10**400}, "count is too large"),
    ({"count": True}, "count must be a whole number, not True"),
    ({"count": 2.0}, "count must be a whole number"), ({"share": "x"}, "share must be a number"),
    ({"share": float("nan")}, "share must be a finite number"), ({"name": 5}, "name must be text"),
    ({"on": 1}, "on must be true or false"), ({"widths": 3}, "widths must be a list"),
    ({"widths": [1, 0]}, "widths must be at least 1"),
    ({"widths": [[1]]}, "widths must be a whole number"),
    ({"nmae": "a"}, "there is no setting 'nmae'. Did you mean 'name'?"),
]  # fmt: skip


@pytest.mark.parametrize(("wrong", "says"), WRONG, ids=str)
def test_a_wrong_value_is_named_and_a_missing_one(wrong, says):
    with pytest.raises(InvalidArgument) as caught:
        Some.from_dict({"count": 3, **wrong})
    assert says in str(caught.value)
    with pytest.raises(InvalidArgument, match="count is missing"):
        Some.from_dict({})


def test_plain_values_make_the_same_settings_again():
    made = Some(count=2, share=1, widths=[3, 4])
    assert (type(made.share), made.widths) == (float, (3, 4))
    plain = made.to_dict()
    assert plain == {"count": 2, "share": 1.0, "name": "a", "on": False, "widths": [3, 4]}
    assert Some.from_dict(plain) == made


def test_a_size_says_which_side_is_which_where_they_differ():
    assert [dimensions(s) for s in ((64, 64), (48, 64), (16,), (2, 3, 4))] == [
        "64x64", "48 high x 64 wide", "16", "2x3x4",
    ]  # fmt: skip
