"""Parts of every network: embeddings of the time and the conditions, initialization, patches."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffuse_cli.core.conditions import (
    UNTOLD,
    Column,
    Conditions,
    LabelColumn,
    MetadataTable,
    VectorColumn,
)
from diffuse_cli.core.registry import Registry

SPREAD = 2.0
"""Initial standard deviation of the weights for augmentation parameters. The parameters are often
below 1, so a typical change is embedded about as far from zero as a class."""


class ConditionedNetwork(nn.Module):
    """Base class of a network with conditions.

    It adds the embeddings of the time, the class and the metadata, and concatenates the
    conditioning array with its input.

    Attributes:
        given_channels: the number of channels of the conditioning array.
        codes: the number of codes of the metadata columns.
    """

    def __init__(self, conditions: Conditions) -> None:
        super().__init__()
        self.num_classes, self.given_channels = conditions.num_classes, conditions.given_channels
        self.codes = len(conditions.table.places) if conditions.table else 0

    def _embed(self, conditions: Conditions, features: int, width: int) -> None:
        """Make the embeddings of a width, for time inputs with a number of features."""
        self.time_embedding = TimeEmbedding(features, width)
        if self.num_classes:
            # As nn.Embedding draws them. On the meta device, nn.Embedding would import a compiler.
            weight = torch.randn(self.num_classes + 1, width)
            self.class_embedding = nn.Embedding.from_pretrained(weight, freeze=False)
        if conditions.table:
            self.row_embedding = RowEmbedding(conditions.table, width)

    def add_augmentation(self, parameters: int) -> None:
        """Add an embedding of augmentation parameters, where zeros have no effect.

        Weights start from N(0, `SPREAD`^2). From zeros, short runs hardly learn to distinguish
        changed samples, and generate them (benchmarks/README.md).
        """
        width = self.time_embedding.linear_2.out_features
        embedding = nn.Linear(parameters, width, bias=False)
        nn.init.normal_(embedding.weight, std=SPREAD)
        self.augment_embedding = embedding.to(self.time_embedding.linear_2.weight)

    def embed_conditions(
        self,
        time: Tensor,
        label: Tensor | None,
        row: Tensor | None,
        augment: Tensor | None = None,
    ) -> Tensor:
        """Embed features of the time (B, features) and the conditions in (B, width).

        A label of None means "no class", a row of None has no known values, and without `augment`
        the samples are not augmented.
        """
        emb: Tensor = self.time_embedding(time)
        if self.num_classes:
            if label is None:
                label = torch.full_like(time[:, 0], self.num_classes, dtype=torch.long)
            emb = emb + self.class_embedding(label)
        if self.codes:
            if row is None:
                row = torch.full((time.shape[0], self.codes), UNTOLD, device=time.device)
            emb = emb + self.row_embedding(row)
        if augment is not None:
            emb = emb + self.augment_embedding(augment)
        return emb

    def concat_given(self, x: Tensor, given: Tensor | None) -> Tensor:
        """Concatenate x with the conditioning array, or with zeros if that is None."""
        if not self.given_channels:
            return x
        if given is None:
            given = x.new_zeros(x.shape[0], self.given_channels, *x.shape[2:])
        return torch.cat([x, given.to(x.dtype)], dim=1)


# -- initialization -------------------------------------------------------------------------------

FILLING = {
    *(getattr(Tensor, name) for name in ("uniform_", "normal_", "fill_", "zero_")),
    *(getattr(nn.init, name) for name in vars(nn.init) if name.endswith("_") and name[0] != "_"),
}
"""Functions that initialize weights."""


class SkipInitialization(TorchFunctionMode):
    """Mode that skips the initialization of weights, to build networks on the meta device.

    There, weights have no values, and initializing them would be slower than elsewhere.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call `func`, unless it would fill a tensor."""
        kwargs = kwargs or {}
        if func in FILLING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def init_zeros(module: Any) -> Any:
    """Set a layer's parameters to zero."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def init_xavier(module: Any) -> Any:
    """Initialize a linear layer by Glorot & Bengio 2010, eq. 16, and its bias by zero."""
    nn.init.xavier_uniform_(module.weight)
    if module.bias is not None:
        nn.init.zeros_(module.bias)
    return module


# -- time -----------------------------------------------------------------------------------------


class TimeEmbedding(nn.Module):
    """Two linear layers on the features of `TIME_EMBEDDINGS`."""

    def __init__(self, width: int, time_width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(width, time_width)
        self.linear_2 = nn.Linear(time_width, time_width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width) to (B, time_width)."""
        x = self.linear_1(x.to(self.linear_1.weight.dtype))
        return self.linear_2(F.silu(x))  # type: ignore[no-any-return]


class Sinusoids(nn.Module):
    """Module for `sinusoids`, with `width` features."""

    def __init__(self, width: int, shift: int, cos_first: bool) -> None:
        super().__init__()
        self.width, self.shift, self.cos_first = width, shift, cos_first

    def forward(self, t: Tensor) -> Tensor:
        """Map (B,) to (B, width)."""
        return sinusoids(t, self.width, shift=self.shift, cos_first=self.cos_first)


class Fourier(nn.Module):
    """cos and sin of t at `count` fixed random frequencies, and without a `shift` of them.

    These are the Gaussian Fourier features of NCSN++ (Song et al. 2021b, appendix C.2; Tancik et
    al. 2020), with frequencies from N(0, 16^2). Song et al. 2021b pass log sigma, which is linear
    in time for their geometric noise levels. Here it is t / 1000, which is also defined at t = 0.
    One timestep of 1000 changes a typical angle by 0.1.

    The frequencies are a buffer, so they are saved with the model, but not trained or averaged.
    """

    SCALE = 16.0

    def __init__(self, count: int, shift: int, cos_first: bool) -> None:
        super().__init__()
        self.width, self.cos_first = 2 * count, cos_first
        self.weight: Tensor
        self.register_buffer("weight", self.SCALE * torch.randn(count))

    def forward(self, t: Tensor) -> Tensor:
        """Map (B,) to (B, width of the embedding)."""
        angles = t.float()[:, None] / 1000 * self.weight * (2 * math.pi)
        return concat_cos_sin(angles, cos_first=self.cos_first)


TIME_EMBEDDINGS: Registry[Callable[[int, int, bool], Any]] = Registry(
    "time_embeddings", {"sinusoidal": Sinusoids, "fourier": Fourier}
)
"""Features of t for the two linear layers, from a number, `shift` and `cos_first`."""


def sinusoids(t: Tensor, width: int, *, shift: int = 0, cos_first: bool = True) -> Tensor:
    """Return cos and sin of t at geometric frequencies, 1 to 1e-4 (Vaswani et al. 2017, 3.5).

    Args:
        t: real numbers (B,).
        width: the number of features, for the result (B, width).
        shift: 1 if the last frequency is 1e-4, or 0 if it is the one before 1e-4.
        cos_first: whether cos comes before sin.
    """
    half = width // 2
    index = torch.arange(half, dtype=torch.float32, device=t.device)
    frequencies = torch.exp(-math.log(10_000) * index / max(1, half - shift))
    return F.pad(concat_cos_sin(t.float()[:, None] * frequencies, cos_first), (0, width - 2 * half))


def concat_cos_sin(angles: Tensor, cos_first: bool) -> Tensor:
    """Return cos and sin of angles (B, n) as (B, 2n)."""
    halves = (angles.cos(), angles.sin()) if cos_first else (angles.sin(), angles.cos())
    return torch.cat(halves, dim=1)


# -- metadata -------------------------------------------------------------------------------------

LONGEST, WAVES = 16.0, 6
"""Longest period of a number's waves in standard deviations, and the number of periods. Each period
is half of the one before."""


class RowEmbedding(nn.ModuleList):
    """Sum of the embeddings of all metadata columns."""

    def __init__(self, table: MetadataTable, width: int) -> None:
        super().__init__(_embedding(column, width) for column in table.columns)
        self.widths = [column.width for column in table.columns]

    def forward(self, row: Tensor) -> Tensor:
        """Map codes (B, codes) to (B, width)."""
        parts = zip(self, row.split(self.widths, 1), strict=True)
        return torch.stack([embed(codes) for embed, codes in parts]).sum(0)


def _embedding(column: Column, width: int) -> nn.Module:
    if isinstance(column, LabelColumn):
        return LabelEmbedding(len(column.values), width)
    if isinstance(column, VectorColumn):
        return VectorEmbedding(column.width, width)
    return NumberEmbedding(width)


class NumberEmbedding(TimeEmbedding):
    """Two linear layers on cos and sin of a number, and a vector for a missing number.

    The periods (Tancik et al. 2020) are short enough to distinguish the numbers of the data, and
    long enough to interpolate between them.
    """

    def __init__(self, width: int) -> None:
        super().__init__(2 * WAVES, width)
        self.untold = nn.Parameter(torch.zeros(width))

    def forward(self, code: Tensor) -> Tensor:
        """Map (B, 1) to (B, width)."""
        is_known = ~code.isnan()
        powers = torch.arange(WAVES, dtype=torch.float32, device=code.device)
        angles = code.where(is_known, 0.0).float() * (2 * math.pi / LONGEST * 2**powers)
        embedding = super().forward(concat_cos_sin(angles, cos_first=True))
        return torch.where(is_known, embedding, self.untold.to(embedding))


class LabelEmbedding(nn.Module):
    """Table with a row of `weight` for each label, and a last row for a missing label."""

    def __init__(self, labels: int, width: int) -> None:
        super().__init__()
        self.none = labels
        self.weight = nn.Parameter(torch.randn(labels + 1, width))

    def forward(self, code: Tensor) -> Tensor:
        """Map (B, 1) to (B, width)."""
        return F.embedding(code[:, 0].where(~code[:, 0].isnan(), self.none).long(), self.weight)


class VectorEmbedding(nn.Module):
    """Linear map of a vector, and another vector for a missing one."""

    def __init__(self, entries: int, width: int) -> None:
        super().__init__()
        # Entries of variance 1 are embedded about as far from zero as a label.
        self.weight = nn.Parameter(torch.randn(width, entries) / math.sqrt(entries))
        self.untold = nn.Parameter(torch.zeros(width))

    def forward(self, codes: Tensor) -> Tensor:
        """Map (B, entries) to (B, width)."""
        is_known = ~codes.isnan()
        embedding = F.linear(codes.where(is_known, 0.0).to(self.weight), self.weight)
        return torch.where(is_known[:, :1], embedding, self.untold.to(embedding))


# -- patches --------------------------------------------------------------------------------------


def fold_patches(x: Tensor, patch: int) -> Tensor:
    """Fold (B, C, *size) to (B, C p^dims, *size / p): positions of a patch become channels."""
    if patch == 1:
        return x
    dims = x.ndim - 2
    cut = x.reshape(*x.shape[:2], *(n for side in x.shape[2:] for n in (side // patch, patch)))
    places = [2 + 2 * i for i in range(dims)]
    return cut.permute(0, 1, *(i + 1 for i in places), *places).flatten(1, 1 + dims)


def unfold_patches(x: Tensor, patch: int) -> Tensor:
    """Invert `fold_patches`."""
    if patch == 1:
        return x
    dims = x.ndim - 2
    cut = x.unflatten(1, (-1, *[patch] * dims))
    order = [n for i in range(dims) for n in (2 + dims + i, 2 + i)]
    sizes = [side * patch for side in x.shape[2:]]
    whole: Tensor = cut.permute(0, 1, *order).reshape(x.shape[0], -1, *sizes)
    return whole
