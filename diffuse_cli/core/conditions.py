"""What a model can be told about a sample."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.registry import InvalidArgument
from diffuse_cli.core.settings import Settings, from_dict, setting
from diffuse_cli.core.space import MOST_CHANNELS

if TYPE_CHECKING:
    from torch import Tensor


PAIRS = "pairs"
"""What is given where each sample has another array beside it."""


BITS = 12
"""Columns that are left out independently of each other; more are, in groups."""


@dataclass(frozen=True, kw_only=True)
class Given(Settings):
    """Another array that a model is told, at each place of the sample.

    A network is told C' = `channels` + 1 channels: the array's own, and a last one that is 1 where
    something is told and 0 where not, with zeros in all the others there. So nothing told, to drop
    it or to be guided, is zeros everywhere, and a part of an array needs no other encoding.

    Attributes:
        channels: of the array.
        what: `PAIRS`, or the degradation that makes it of the sample, such as `low-res:4`.
        dropout: the share of samples that were trained without it.
        noise: in training, noise of a deviation drawn uniformly from 0 to this was added to it
            (Ho et al. 2022, sec. 4.2), so that samples of another model may stand in for it. The
            network is not told how much.
        mean, std: of each channel of pairs of floats, as those of a `Space`; None for others, and
            for models that were trained on the samples' own.
        limits: of pairs of levels, as those of a `Space`.
    """

    channels: int = setting(low=1, high=MOST_CHANNELS)
    what: str = setting(PAIRS)
    dropout: float = setting(0.0, 0, 1)
    noise: float = setting(0.0, 0, 10)
    mean: tuple[float, ...] | None = setting(None)
    std: tuple[float, ...] | None = setting(None, low=1e-30)
    limits: tuple[int, ...] | None = setting(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std"):
            if len(getattr(self, name) or ()) not in (0, self.channels):
                raise InvalidArgument(f"must have {self.channels} numbers", argument=name)
        if (self.mean is None) != (self.std is None):
            raise InvalidArgument("needs a deviation", argument="mean")


@dataclass(frozen=True, kw_only=True)
class Conditions(Settings):
    """The conditions of a model.

    Attributes:
        classes: names; a label is an index into them, and K = len(classes) means "no class".
        given: another array, or None.
        table: numbers and further labels, or None.
    """

    classes: tuple[str, ...] = setting(())
    given: Given | None = setting(None)
    table: MetadataTable | None = setting(None)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, kind in (("given", Given), ("table", MetadataTable)):
            own = getattr(self, name)
            if isinstance(own, Mapping):  # as plain values
                own = from_dict(kind, own)
                object.__setattr__(self, name, own)
            if not isinstance(own, kind | None):
                raise InvalidArgument("must be a table", argument=name)

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self.classes) or self.given is not None or self.table is not None

    @property
    def num_classes(self) -> int:
        """K, 0 for a model without classes."""
        return len(self.classes)

    @property
    def given_channels(self) -> int:
        """C' of the keyword `given`, 0 for a model that is given nothing."""
        return self.given.channels + 1 if self.given else 0

    def told(
        self, labels: Tensor, given: Tensor | None = None, row: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Keywords for the network: `label` with K for the -1 of labels (B,), and, where they are
        told, `given` (B, C', *size) and `row`, codes (B, columns); only those that the model
        knows."""
        cond = {}
        if self.classes:
            cond["label"] = labels.where(labels >= 0, self.num_classes)
        if self.given and given is not None:
            cond["given"] = given
        if self.table and row is not None:
            cond["row"] = row
        return cond

    def dropped(
        self, cond: Mapping[str, Tensor], u: Tensor, label_dropout: float
    ) -> dict[str, Tensor]:
        """The keywords of a batch as training tells them, some dropped for guidance.

        One draw decides all: at equal rates a sample is told all or nothing, and nothing is what
        guidance leads away from. As many samples again are told a part of their row, each column
        at even odds, so that a model may be told some columns alone.

        Args:
            u: (B,) in [0, 1).
            label_dropout: the share of samples without a label and a row.
        """
        told = dict(cond)
        if "label" in told:
            label = told["label"]
            told["label"] = label.where(u >= label_dropout, label.new_tensor(self.num_classes))
        if "given" in told and self.given and self.given.dropout:
            kept = (u >= self.given.dropout).to(told["given"])
            told["given"] = told["given"] * kept.reshape(-1, *[1] * (told["given"].ndim - 1))
        if "row" in told and label_dropout:
            told["row"] = told["row"].where(self._kept(u, label_dropout), UNTOLD)
        return told

    def _kept(self, u: Tensor, share: float) -> Any:
        """Which columns are told, (B, columns), or (B, 1) where there is nothing else to tell."""
        import torch

        assert self.table
        kept = (u >= share)[:, None]
        if len(self.table) == 1 and not (self.classes or self.given):
            return kept
        within = ((u - share) / share * 2**BITS).long()  # uniform where a part is told
        places = torch.arange(len(self.table), device=u.device) % BITS
        left_out = ((within[:, None] >> places) & 1).bool()
        return kept & ~(left_out & (u < 2 * share)[:, None])


# -- tables ---------------------------------------------------------------------------------------

# Columns of a table that a model can be told: a number or a label of each sample.

MOST_COLUMNS, MOST_VALUES = 64, 1000
"""The most columns of a table, and the most different labels of one."""

UNTOLD = math.nan
"""The code of what is not told."""

FARTHEST = 1000.0
"""The largest code of a number, in deviations."""

Value = float | str


@dataclass(frozen=True, kw_only=True)
class Numbers(Settings):
    """A column of numbers; the code of one is (value - mean) / deviation.

    Attributes:
        mean, deviation, low, high: of the training samples that have one.
        missing: the share of the training samples that have none.
    """

    name: str = setting()
    mean: float = setting()
    deviation: float = setting(low=sys.float_info.min)
    low: float = setting()
    high: float = setting()
    missing: float = setting(0.0, 0, 1)

    def code(self, value: Value) -> float:
        """The code of a finite number."""
        far = (float(value) - self.mean) / self.deviation
        return max(-FARTHEST, min(FARTHEST, far))

    def value(self, code: float) -> Value:
        """The number of a code."""
        return self.mean + self.deviation * code


@dataclass(frozen=True, kw_only=True)
class Labels(Settings):
    """A column of labels; the code of one is its place in `values`.

    Attributes:
        values: those of the training samples.
        missing: the share of the training samples that have none.
    """

    name: str = setting()
    values: tuple[str, ...] = setting()
    missing: float = setting(0.0, 0, 1)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < len(self.values) <= MOST_VALUES:
            problem = f"must be 1 to {MOST_VALUES:,} labels, not {len(self.values):,}"
            raise InvalidArgument(problem, argument="values")
        if len(self._places) < len(self.values) or "" in self._places:
            raise InvalidArgument("must differ, and have letters", argument="values")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {value: k for k, value in enumerate(self.values)}

    def code(self, value: Value) -> float:
        """The code of a label, `UNTOLD` for one that is not among the values."""
        return float(self._places.get(str(value), UNTOLD))

    def value(self, code: float) -> Value:
        """The label of a code."""
        return self.values[int(code)]


Column = Numbers | Labels


@dataclass(frozen=True, kw_only=True)
class MetadataTable(Settings):
    """What a model is told of each sample: a row of codes, `UNTOLD` where it is told nothing."""

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

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def names(self) -> dict[str, Column]:
        """The columns by name."""
        return {column.name: column for column in self.columns}

    def row(self, values: Mapping[str, Value]) -> tuple[float, ...]:
        """The codes of what is told, by the columns' names."""
        return tuple(c.code(values[c.name]) if c.name in values else UNTOLD for c in self.columns)

    def values(self, row: Sequence[float]) -> dict[str, Value]:
        """What a row tells, by the columns' names."""
        pairs = zip(self.columns, row, strict=True)
        return {column.name: column.value(code) for column, code in pairs if code == code}


def _column(column: Any) -> Column:
    if isinstance(column, Mapping):  # as plain values
        kind: type[Column] = Labels if "values" in column else Numbers
        return from_dict(kind, column)
    if not isinstance(column, Numbers | Labels):
        raise InvalidArgument("must be tables", argument="columns")
    return column
