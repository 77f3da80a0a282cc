"""Conditions of a model: classes, a conditioning array and metadata."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, ClassVar

from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.settings import Settings, setting
from diffuse_cli.core.space import MOST_CHANNELS, send

if TYPE_CHECKING:
    from torch import Tensor


PAIRS = "pairs"
"""The kind of `ConditioningArray` for paired data, where each sample comes with another array."""

LABELS = "labels"
"""The layout of label maps, whose stored values are labels of classes and not levels."""


BITS = 12
"""Number of groups of columns that are dropped independently of each other."""


@dataclass(frozen=True, kw_only=True)
class ConditioningArray(Settings):
    """Conditioning array with a value for each position of the sample.

    The network receives C' = `channels` + 1 channels: the array, and a last channel that is 1 where
    the array is known. Where it is not known, all channels are 0. So an array of zeros means "no
    condition", for dropout and guidance, and a partly known array needs no other encoding. A label
    map has a channel for each label, 1 where the map has this label and 0 elsewhere.

    Attributes:
        channels: the number of channels of the array.
        what: `PAIRS`, or the degradation that makes the array from the sample, such as `low-res:4`.
        dropout: the fraction of samples that were trained without the array.
        noise: the largest standard deviation of noise that training added to the array, drawn
            uniformly from 0 on (Ho et al. 2022, sec. 4.2), so that samples of another model can
            replace it. The network does not receive the standard deviation.
        mean, std: the mean and standard deviation of each channel, as in a `Space`, for paired
            data of floats. None for other arrays, and for models that scale them like the samples.
        limits: the lowest and highest level, as in a `Space`, for paired data of levels.
        labels: the stored values of the classes of label maps, in order. None for other arrays.
        names: the names of these classes, if they have any.
        fractions: the fraction of each class in the training maps.
    """

    channels: int = setting(low=1, high=MOST_CHANNELS)
    what: str = setting(PAIRS)
    dropout: float = setting(0.0, 0, 1)
    noise: float = setting(0.0, 0, 10)
    mean: tuple[float, ...] | None = setting(None)
    std: tuple[float, ...] | None = setting(None, low=1e-30)
    limits: tuple[int, ...] | None = setting(None)
    labels: tuple[int, ...] | None = setting(None, 0, 255)
    names: tuple[str, ...] | None = setting(None)
    fractions: tuple[float, ...] | None = setting(None, 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std", "labels", "names", "fractions"):
            if len(getattr(self, name) or ()) not in (0, self.channels):
                raise InvalidArgument(f"must have {self.channels} numbers", argument=name)
        for name, partner in (("mean", "std"), ("std", "mean")):
            if getattr(self, name) is not None and getattr(self, partner) is None:
                raise InvalidArgument(f"needs {partner} as well", argument=name)
        if self.limits is not None and (len(self.limits) != 2 or self.limits[0] >= self.limits[1]):
            raise InvalidArgument("must be two levels in order", argument="limits")
        labels = [*(self.labels or ())]
        if labels and (not self.is_paired or labels != sorted({*labels})):
            raise InvalidArgument("must be labels of pairs in order", argument="labels")

    @property
    def is_paired(self) -> bool:
        """Whether the array is paired data, not a degradation of the sample."""
        return self.what == PAIRS

    @property
    def label_texts(self) -> list[str]:
        """The labels of label maps in words, such as `0 (sky)`, or only `0` without names."""
        labels = self.labels or ()
        names = zip(labels, self.names or labels, strict=True)
        return [str(k) if name in (k, str(k)) else f"{k} ({name})" for k, name in names]


@dataclass(frozen=True, kw_only=True)
class Conditions(Settings):
    """Conditions of a model.

    Attributes:
        classes: the class names. A label is an index into them, and K = len(classes) means "no
            class".
        given: the conditioning array, or None.
        table: the metadata columns, numbers and labels, or None.
    """

    classes: tuple[str, ...] = setting(())
    given: ConditioningArray | None = setting(None)
    table: MetadataTable | None = setting(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (("given", ConditioningArray), ("table", MetadataTable)):
            condition = getattr(self, name)
            if isinstance(condition, Mapping):  # as plain values
                condition = kind.from_dict(condition)
                object.__setattr__(self, name, condition)
            if not isinstance(condition, kind | None):
                raise InvalidArgument("must be a table", argument=name)

    def __bool__(self) -> bool:
        """Whether the model has conditions."""
        return bool(self.classes) or self.given is not None or self.table is not None

    @property
    def num_classes(self) -> int:
        """The number of classes K."""
        return len(self.classes)

    @property
    def given_channels(self) -> int:
        """The channels C' of the keyword `given`, 0 for a model without a conditioning array."""
        return self.given.channels + 1 if self.given else 0

    def has_unconditional(self, label_dropout: Any) -> bool:
        """Whether training dropped every condition at times, so that guidance is possible."""
        shares = [label_dropout] * bool(self.classes or self.table)
        shares += [self.given.dropout] if self.given else []
        return 0 not in shares

    def make_keywords(
        self, labels: Tensor, given: Tensor | None = None, row: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the keywords of the network, limited to the conditions that the model has.

        Args:
            labels: (B,), with -1 for "no class", which becomes K.
            given: the conditioning array (B, C', *size), if any.
            row: the codes of the metadata (B, codes), if any.
        """
        cond = {}
        if self.classes:
            cond["label"] = labels.where(labels >= 0, self.num_classes)
        if self.given and given is not None:
            cond["given"] = given
        if self.table and row is not None:
            cond["row"] = row
        return cond

    def drop_conditions(
        self, cond: Mapping[str, Tensor], u: Tensor, label_dropout: float
    ) -> dict[str, Tensor]:
        """Return the keywords of a batch with some conditions dropped, to train for guidance.

        One random number decides for all conditions of a sample. If all dropout rates are equal, a
        sample has all of its conditions or none, and guidance uses the prediction without. A
        further fraction `partial_dropout` of samples keeps a part of its row, each column with
        probability 1/2, so that you can condition the model on only some columns.

        Args:
            u: random numbers (B,) in [0, 1).
            label_dropout: the fraction of samples without a label and a row.
        """
        batch = dict(cond)
        if "label" in batch:
            label = batch["label"]
            batch["label"] = label.where(u >= label_dropout, self.num_classes)
        if "given" in batch and self.given and self.given.dropout:
            mask = (u >= self.given.dropout).to(batch["given"])
            batch["given"] = batch["given"] * mask.reshape(-1, *[1] * (batch["given"].ndim - 1))
        if "row" in batch and label_dropout:
            batch["row"] = batch["row"].where(self._column_mask(u, label_dropout), UNTOLD)
        return batch

    def _column_mask(self, u: Tensor, dropout: float) -> Any:
        """Return a mask of the codes to keep, (B, codes), or (B, 1) for a single condition."""
        import torch

        assert self.table
        mask = (u >= dropout)[:, None]
        if len(self.table) == 1 and not (self.classes or self.given):
            return mask
        part = partial_dropout(dropout)
        # Uniform for u in [dropout, dropout + part). At a dropout of 1 there are no such u.
        within = ((u - dropout) / (part or 1.0) * 2**BITS).long()
        places = send(torch.tensor(self.table.places), u.device) % BITS
        left_out = ((within[:, None] >> places) & 1).bool()
        return mask & ~(left_out & (u < dropout + part)[:, None])


def partial_dropout(label_dropout: float) -> float:
    """Return the fraction of samples that keep a part of their row in training.

    It equals the fraction that drops the whole row, up to half of the rest.
    """
    return min(label_dropout, (1 - label_dropout) / 2)


# -- tables ---------------------------------------------------------------------------------------

# Metadata columns that a model can be conditioned on: a number, a label or a vector of each sample.

MOST_COLUMNS, MOST_VALUES, MOST_ENTRIES = 64, 1000, 8192
"""The most columns of a table, different labels in a column, and entries of a vector."""

UNTOLD = math.nan
"""Code of a missing value."""

FARTHEST = 1000.0
"""Largest absolute code of a number, in standard deviations."""

Value = float | str | tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class NumberColumn(Settings):
    """Column of numbers, with the code (value - mean) / deviation.

    Attributes:
        mean, deviation, low, high: statistics of the training samples that have a value:
            their mean, standard deviation, minimum and maximum.
        missing: the fraction of training samples without a value.
    """

    name: str = setting()
    mean: float = setting()
    deviation: float = setting(low=sys.float_info.min)
    low: float = setting()
    high: float = setting()
    missing: float = setting(0.0, 0, 1)
    width: ClassVar[int] = 1

    def code(self, value: Value) -> float:
        """Return the code of a finite number."""
        assert not isinstance(value, tuple)
        score = (float(value) - self.mean) / self.deviation
        return max(-FARTHEST, min(FARTHEST, score))

    def value(self, codes: Sequence[float]) -> Value:
        """Return the number of a code."""
        return self.mean + self.deviation * codes[0]


@dataclass(frozen=True, kw_only=True)
class LabelColumn(Settings):
    """Column of labels, whose codes are their indices in `values`.

    Attributes:
        values: the labels of the training samples.
        missing: the fraction of training samples without a label.
    """

    name: str = setting()
    values: tuple[str, ...] = setting()
    missing: float = setting(0.0, 0, 1)
    width: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < len(self.values) <= MOST_VALUES:
            problem = f"must be 1 to {MOST_VALUES:,} labels, not {len(self.values):,}"
            raise InvalidArgument(problem, argument="values")
        if len(self._places) < len(self.values) or "" in self._places:
            raise InvalidArgument("must be different labels, none empty", argument="values")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {value: k for k, value in enumerate(self.values)}

    def code(self, value: Value) -> float:
        """Return the code of a label, or `UNTOLD` if it is not among the values."""
        return float(self._places.get(str(value), UNTOLD))

    def value(self, codes: Sequence[float]) -> Value:
        """Return the label of a code."""
        return self.values[int(codes[0])]


@dataclass(frozen=True, kw_only=True)
class VectorColumn(Settings):
    """Column of vectors, which have a code (value - mean) / deviation for each entry.

    Attributes:
        mean, deviation: statistics of each entry over the training samples that have a vector. A
            deviation of 0 means that the entry never varies. Its code is always 0.
        missing: the fraction of training samples without a vector.
    """

    name: str = setting()
    mean: tuple[float, ...] = setting()
    deviation: tuple[float, ...] = setting(low=0)
    missing: float = setting(0.0, 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.width == len(self.deviation) <= MOST_ENTRIES:
            problem = f"must be 1 to {MOST_ENTRIES:,} numbers in both lists"
            raise InvalidArgument(problem, argument="mean")

    @property
    def width(self) -> int:
        """The number of entries."""
        return len(self.mean)

    def code(self, value: Value) -> tuple[float, ...]:
        """Return the codes of a vector of finite numbers."""
        assert isinstance(value, tuple)
        entries = zip(value, self.mean, self.deviation, strict=True)
        scores = ((number - mean) / (deviation or math.inf) for number, mean, deviation in entries)
        return tuple(max(-FARTHEST, min(FARTHEST, score)) for score in scores)

    def value(self, codes: Sequence[float]) -> Value:
        """Return a hash of some codes, which is short enough for a manifest."""
        return sha256(struct.pack(f"<{self.width}f", *codes)).hexdigest()[:16]


Column = NumberColumn | LabelColumn | VectorColumn


@dataclass(frozen=True, kw_only=True)
class MetadataTable(Settings):
    """Metadata columns of a model, of which at most one has vectors.

    Each sample has a row of codes, `UNTOLD` for missing values.
    """

    columns: tuple[Column, ...] = setting()

    def __post_init__(self) -> None:
        super().__post_init__()
        columns = tuple(map(_column, self.columns))
        object.__setattr__(self, "columns", columns)
        if not 0 < len(columns) <= MOST_COLUMNS:
            problem = f"must be 1 to {MOST_COLUMNS}, not {len(columns):,}"
            raise InvalidArgument(problem, argument="columns")
        if len(self.names) < len(columns) or "" in self.names:
            raise InvalidArgument("must have different names", argument="columns")
        if sum(isinstance(column, VectorColumn) for column in columns) > 1:
            raise InvalidArgument("must be at most one of vectors", argument="columns")

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def names(self) -> dict[str, Column]:
        """The columns by name."""
        return {column.name: column for column in self.columns}

    @cached_property
    def vector(self) -> VectorColumn | None:
        """The column of vectors, if there is one."""
        return next((c for c in self.columns if isinstance(c, VectorColumn)), None)

    @cached_property
    def places(self) -> tuple[int, ...]:
        """The index of the column of each code in a row."""
        return tuple(k for k, column in enumerate(self.columns) for _ in range(column.width))

    def find(self, column: Column) -> Column | None:
        """Return the column with the name and kind of another, and with its size for vectors."""
        namesake = self.names.get(column.name)
        if namesake and type(namesake) is type(column) and namesake.width == column.width:
            return namesake
        return None

    def row(self, values: Mapping[str, Value]) -> tuple[float, ...]:
        """Return the codes of values by column name, `UNTOLD` for columns without a value."""
        row: list[float] = []
        for column in self.columns:
            code = column.code(values[column.name]) if column.name in values else UNTOLD
            row += code if isinstance(code, tuple) else [code] * column.width
        return tuple(row)

    def values(self, row: Sequence[float]) -> dict[str, Value]:
        """Return the values of a row of codes, by column name."""
        ends = pairwise(accumulate((column.width for column in self.columns), initial=0))
        pairs = zip(self.columns, (row[start:end] for start, end in ends), strict=True)
        return {c.name: c.value(codes) for c, codes in pairs if codes[0] == codes[0]}


def _column(column: Any) -> Column:
    if isinstance(column, Mapping):  # as plain values
        kind: type[Column] = LabelColumn if "values" in column else NumberColumn
        if isinstance(column.get("mean"), list | tuple):
            kind = VectorColumn
        return kind.from_dict(column)
    if not isinstance(column, Column):
        raise InvalidArgument("must be tables", argument="columns")
    return column
