"""Embeddings of a row of a table."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffuse_cli.core.networks._time import waves
from diffuse_cli.core.tables import Column, Labels, Table

LONGEST, WAVES = 16.0, 6
"""The longest period of a number's waves, in deviations, and their number, each half as long."""


class RowEmbedding(nn.ModuleList):
    """The sum of an embedding of each column."""

    def __init__(self, table: Table, width: int) -> None:
        super().__init__(_embedding(column, width) for column in table.columns)

    def forward(self, row: Tensor) -> Tensor:
        """Codes (B, columns) to (B, width)."""
        found = [embed(code) for embed, code in zip(self, row.unbind(1), strict=True)]
        return torch.stack(found).sum(0)


def _embedding(column: Column, width: int) -> nn.Module:
    if isinstance(column, Labels):
        return LabelEmbedding(len(column.values), width)
    return NumberEmbedding(width)


class NumberEmbedding(nn.Module):
    """Two linear layers over cos and sin of a number (Tancik et al. 2020), at periods that tell
    numbers of the data apart and still lead from one to the next; and what stands for no number."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(2 * WAVES, width)
        self.linear_2 = nn.Linear(width, width)
        self.untold = nn.Parameter(torch.zeros(width))

    def forward(self, code: Tensor) -> Tensor:
        """(B,) to (B, width)."""
        told = ~code.isnan()
        powers = torch.arange(WAVES, dtype=torch.float32, device=code.device)
        angles = code.where(told, 0.0).float()[:, None] * (2 * math.pi / LONGEST * 2**powers)
        found = self.linear_2(F.silu(self.linear_1(waves(angles, cos_first=True))))
        return torch.where(told[:, None], found, self.untold.to(found))


class LabelEmbedding(nn.Module):
    """A row of `weight` for each label, and a last one for none."""

    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        self.none = labels
        self.weight = nn.Parameter(torch.randn(labels + 1, width))

    def forward(self, code: Tensor) -> Tensor:
        """(B,) to (B, width)."""
        return F.embedding(code.where(~code.isnan(), self.none).long(), self.weight)
