"""What networks are told beside x_t: the time, a class, a row of a table, another array."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from diffuse_cli.core.networks._rows import RowEmbedding
from diffuse_cli.core.networks._time import TimeEmbedding
from diffuse_cli.core.tables import UNTOLD

if TYPE_CHECKING:
    from diffuse_cli.core.conditions import Conditions


class Told(nn.Module):
    """The base of a network that adds up embeddings of what it is told, and reads an array that it
    is given together with its input.

    Attributes:
        given_channels: of that array.
        columns: of the table.
    """

    def __init__(self, conditions: Conditions) -> None:
        super().__init__()
        self.num_classes, self.given_channels = conditions.num_classes, conditions.given_channels
        self.columns = len(conditions.table) if conditions.table else 0

    def _embed(self, conditions: Conditions, features: int, width: int) -> None:
        """Make the embeddings, of this width; the time comes as so many features."""
        self.time_embedding = TimeEmbedding(features, width)
        if self.num_classes:
            # Drawn as nn.Embedding does, which on the meta device would import a compiler.
            drawn = torch.randn(self.num_classes + 1, width)
            self.class_embedding = nn.Embedding.from_pretrained(drawn, freeze=False)
        if conditions.table:
            self.row_embedding = RowEmbedding(conditions.table, width)

    def embedded(self, time: Tensor, label: Tensor | None, row: Tensor | None) -> Tensor:
        """Features of the time (B, features), label (B,) and row (B, columns) to (B, width).

        None stands for "no class", and for a row of which nothing is told.
        """
        emb: Tensor = self.time_embedding(time)
        if self.num_classes:
            if label is None:
                label = torch.full_like(time[:, 0], self.num_classes, dtype=torch.long)
            emb = emb + self.class_embedding(label)
        if self.columns:
            if row is None:
                row = torch.full((time.shape[0], self.columns), UNTOLD, device=time.device)
            emb = emb + self.row_embedding(row)
        return emb

    def beside(self, x: Tensor, given: Tensor | None) -> Tensor:
        """x with what is given as further channels: zeros if that is None."""
        if not self.given_channels:
            return x
        if given is None:
            given = x.new_zeros(x.shape[0], self.given_channels, *x.shape[2:])
        return torch.cat([x, given.to(x.dtype)], dim=1)
