"""What every degradation has: `Degradation`, the base of those in `core.degradations`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from diffuse_cli.core.errors import InvalidArgument
from diffuse_cli.core.settings import Settings, digits, setting

if TYPE_CHECKING:
    from torch import Tensor

NOISE = "noise"
"""The name of the degradation that can be added to another."""


@dataclass(frozen=True, kw_only=True)
class Degradation(Settings):
    """The base of degradations; its methods are pure functions of tensors (B, C, *size).

    A A⁺ A = A and A⁺ A A⁺ = A⁺ hold for `apply` and `pinv`, <A x, y> = <x, Aᵀ y> for `transpose`.

    Attributes:
        sigma: standard deviation of the noise in y, in the model's numbers.
        NAME: the name in `DEGRADATIONS`.
        VALUE: the option that the short form gives after a colon; empty for none.
        EXAMPLE: a short form.
        HIDES: whether y says nothing at some positions, see `known`.
    """

    sigma: float = setting(0.0, 0, 100)

    NAME: ClassVar[str]
    VALUE: ClassVar[str] = ""
    EXAMPLE: ClassVar[str]
    HIDES: ClassVar[bool] = False

    def apply(self, x0: Tensor) -> Tensor:
        """A(x_0), without noise.

        Raises:
            InvalidArgument: a shape that does not fit; one that is drawn, and was not.
        """
        raise NotImplementedError

    def pinv(self, y: Tensor) -> Tensor:
        """A⁺(y): of all x with A x nearest to y, the smallest."""
        raise NotImplementedError

    def transpose(self, y: Tensor) -> Tensor:
        """Aᵀ(y)."""
        raise NotImplementedError

    def known(self, like: Tensor) -> Tensor | None:
        """1 where y is of the sample, 0 where it says nothing, broadcast against (B, C, *size);
        None where y says something everywhere."""
        return None

    def observe(self, x0: Tensor, noise: Tensor) -> Tensor:
        """y = A(x_0) + sigma n, with n shaped like y."""
        return self.apply(x0) + self.sigma * noise

    def fitted(self, shape: Sequence[int]) -> Degradation:
        """The degradation of samples of a shape (C, *size).

        Raises:
            InvalidArgument: they do not suit it.
        """
        return self

    def observed(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of y, without B, for samples of a shape (C, *size)."""
        import torch

        made = self.fitted(shape)
        with torch.device("meta"):
            u, x0 = torch.empty(1, made.uniforms), torch.empty(1, *shape)
        return tuple(made.drawn(u).apply(x0).shape[1:])

    @property
    def uniforms(self) -> int:
        """How many random numbers a sample takes, for samples it was `fitted` to; 0 if fixed."""
        return 0

    def drawn(self, u: Tensor) -> Degradation:
        """The degradation of a batch: its random part drawn from u in [0, 1), (B, uniforms)."""
        return self

    @property
    def text(self) -> str:
        """The short form, which `parse` reads: `low-res:4+noise:0.1`."""
        value = getattr(self, self.VALUE) if self.VALUE else ""
        own = f":{digits(value) if isinstance(value, (int, float)) else value}" if value else ""
        noisy = f"+{NOISE}:{digits(self.sigma)}" if self.sigma and self.VALUE != "sigma" else ""
        return f"{self.NAME}{own}{noisy}"

    def refusal(self, needed: str, found: str) -> InvalidArgument:
        """The error for samples that do not suit it."""
        return InvalidArgument(f": {self.text} needs {needed}, not {found}", argument="degradation")
