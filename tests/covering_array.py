"""Fewer rows than a product has, in which any three values of different tables still meet."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations, product
from random import Random
from typing import Any

Row = tuple[Any, ...]


def covering(*tables: Iterable[Any], strength: int = 3) -> list[Row]:
    """Rows of one value from each table; every `strength` of values occur together in one.

    Of the product, in an order that is drawn once, those rows are taken that add most.
    """
    rows = list(product(*tables))
    Random(0).shuffle(rows)
    columns = list(combinations(range(len(rows[0])), strength))
    adds = [{(at, *(row[k] for k in at)) for at in columns} for row in rows]
    most = [len(columns)] * len(rows)  # what a row may still add: it adds less as others are taken
    missing, taken = set().union(*adds), []
    for least in range(len(columns), 0, -1):
        for k, row in enumerate(rows):
            if most[k] < least:
                continue
            new = missing & adds[k]
            most[k] = len(new)
            if most[k] >= least:
                missing -= new
                most[k] = 0
                taken.append(row)
    assert not missing
    return sorted(taken, key=repr)
