"""Cutting samples into patches, whose positions become channels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.space import Space


def largest_patch(patch: int, features: int, space: Space) -> int | None:
    """Return the largest divisor of `patch` whose patches have at most `features` values, if any.

    A position of `features` numbers becomes a patch by a linear map, so patches with more values
    cannot hold noise in every dimension.
    """
    sides = (p for p in range(patch, 0, -1) if patch % p == 0)
    return next((p for p in sides if space.channels * p**space.dims <= features), None)


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
