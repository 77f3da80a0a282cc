"""Degradations of a sample: the observation y = A(x_0) + sigma n, with A linear.

`DEGRADATIONS[name](**options)` is a frozen object with A, a pseudo-inverse and a transpose, in the
model's numbers, where 0 is grey. The same table serves conditional models, which are trained on
pairs (x_0, y), and unconditional models, with which `core.restoration` recovers x_0 from y. `parse`
reads the short form, for example `low-res:4`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from diffuse_cli.core import settings
from diffuse_cli.core.data_gaussian import scale_frequencies
from diffuse_cli.core.masks import MASKS
from diffuse_cli.core.registry import InvalidArgument, Registry, lookup, suggest
from diffuse_cli.core.settings import Settings, setting
from diffuse_cli.core.space import send

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Degradation(Settings):
    """Base class of degradations, whose methods are pure functions of tensors (B, C, *size).

    A A⁺ A = A and A⁺ A A⁺ = A⁺ hold for `apply` and `pinv`, <A x, y> = <x, Aᵀ y> for `transpose`.

    Attributes:
        sigma: the standard deviation of the noise in y, in the model's numbers.
        NAME: the name in `DEGRADATIONS`.
        VALUE: the option after the colon in the short form, or an empty string.
        EXAMPLE: an example of the short form.
        HIDES: whether y has no information at some positions, see `known_mask`.
    """

    sigma: float = setting(0.0, 0, 100)

    NAME: ClassVar[str]
    VALUE: ClassVar[str] = ""
    EXAMPLE: ClassVar[str]
    HIDES: ClassVar[bool] = False

    def apply(self, x0: Tensor) -> Tensor:
        """Return A(x_0), without noise.

        Raises:
            InvalidArgument: a shape that does not fit, or a random degradation before `draw_parts`.
        """
        raise NotImplementedError

    def pinv(self, y: Tensor) -> Tensor:
        """Return A⁺(y): the smallest x among those whose A x is nearest to y."""
        raise NotImplementedError

    def transpose(self, y: Tensor) -> Tensor:
        """Return Aᵀ(y)."""
        raise NotImplementedError

    def weigh(self, y: Tensor, variance: Any, sigma: float) -> Tensor:
        """Return Aᵀ (variance A Aᵀ + sigma^2)⁻¹ A A⁺ y: Bayes' weight of y, for sigma > 0.

        This is for degradations whose A Aᵀ is a multiple of the identity on the range of A. `Blur`,
        the only other one, has its own.
        """
        x = self.pinv(y)
        back = self.transpose(self.apply(x))
        dims = list(range(1, x.ndim))
        # Where Aᵀ A x = c x, c is <Aᵀ A x, x> / <x, x>.
        size = x.square().sum(dims, keepdim=True)
        c = (back * x).sum(dims, keepdim=True) / size.where(size > 0, 1)
        weighed: Tensor = back / (variance * c + sigma**2)
        return weighed

    def known_mask(self, like: Tensor) -> Tensor | None:
        """Return a mask of the positions that y shows: 1 where known, else 0, or None if all are.

        It broadcasts against (B, C, *size).
        """
        return None

    def observe(self, x0: Tensor, noise: Tensor) -> Tensor:
        """Return y = A(x_0) + sigma n, with n shaped like y. Without sigma, n is not used."""
        y = self.apply(x0)
        return y + self.sigma * noise if self.sigma else y

    def fit_shape(self, shape: Sequence[int]) -> Degradation:
        """Return the degradation for samples of a shape (C, *size).

        Raises:
            InvalidArgument: the degradation does not work for this shape.
        """
        return self

    def observation_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the shape of y, without B, for samples of a shape (C, *size)."""
        import torch

        fitted = self.fit_shape(shape)
        with torch.device("meta"):
            u, x0 = torch.empty(1, fitted.uniforms), torch.empty(1, *shape)
        return tuple(fitted.draw_parts(u).apply(x0).shape[1:])

    @property
    def uniforms(self) -> int:
        """The number of random numbers per sample, after `fit_shape`, or 0 without randomness."""
        return 0

    def draw_parts(self, u: Tensor) -> Degradation:
        """Return the degradation of a batch, with random parts drawn from u in [0, 1).

        u has the shape (B, uniforms).
        """
        return self

    @property
    def text(self) -> str:
        """The short form, which `parse` reads: `low-res:4+noise:0.1`."""
        value = getattr(self, self.VALUE) if self.VALUE else None
        value_text = settings.digits(value) if isinstance(value, (int, float)) else value
        value_part = "" if value_text is None else f":{value_text}"
        has_noise = self.sigma and self.VALUE != "sigma"
        noise_part = f"+{Noise.NAME}:{settings.digits(self.sigma)}" if has_noise else ""
        return f"{self.NAME}{value_part}{noise_part}"

    def refusal(self, needed: str, shape: str) -> InvalidArgument:
        """Return the exception for samples of a wrong shape."""
        text = f": {self.text} needs {needed}, not {shape}"
        return InvalidArgument(text, argument="degradation", code="option_unsuited")


class Projection(Degradation):
    """Degradation that is its own pseudo-inverse and transpose."""

    def pinv(self, y: Tensor) -> Tensor:
        return self.apply(y)

    def transpose(self, y: Tensor) -> Tensor:
        return self.apply(y)


@dataclass(frozen=True, kw_only=True)
class LowRes(Degradation):
    """Mean over blocks, which is a resize with box antialiasing.

    Attributes:
        factor: the side of a block in every spatial dimension.
    """

    NAME, VALUE, EXAMPLE = "low-res", "factor", "low-res:4"
    factor: int = setting(4, 2, 4096)

    def fit_shape(self, shape: Sequence[int]) -> Degradation:
        if any(side % self.factor for side in shape[1:]):
            raise self.refusal(
                f"sides that are multiples of {self.factor}", settings.dimensions(shape[1:])
            )
        return self

    def apply(self, x0: Tensor) -> Tensor:
        self.fit_shape(x0.shape[1:])
        blocks = [part for side in x0.shape[2:] for part in (side // self.factor, self.factor)]
        return x0.reshape(*x0.shape[:2], *blocks).mean(list(range(3, 2 * x0.ndim - 2, 2)))

    def pinv(self, y: Tensor) -> Tensor:
        for axis in range(2, y.ndim):
            y = y.repeat_interleave(self.factor, axis)
        return y

    def transpose(self, y: Tensor) -> Tensor:
        return self.pinv(y) / float(self.factor ** (y.ndim - 2))


@dataclass(frozen=True, kw_only=True)
class FewerChannels(Degradation):
    """Mean over groups of neighboring channels.

    Attributes:
        factor: the number of channels in a group.
    """

    NAME, VALUE, EXAMPLE = "downsample-channels", "factor", "downsample-channels:2"
    factor: int = setting(2, 2, 64)

    def fit_shape(self, shape: Sequence[int]) -> Degradation:
        if shape[0] % self.factor:
            raise self.refusal(f"a multiple of {self.factor} channels", str(shape[0]))
        return self

    def apply(self, x0: Tensor) -> Tensor:
        self.fit_shape(x0.shape[1:])
        groups = x0.shape[1] // self.factor
        return x0.reshape(len(x0), groups, self.factor, *x0.shape[2:]).mean(2)

    def pinv(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.factor, 1)

    def transpose(self, y: Tensor) -> Tensor:
        return self.pinv(y) / self.factor


@dataclass(frozen=True, kw_only=True)
class Grey(Degradation):
    """Mean of all channels.

    It is not a weighted luma, because A⁺ of the mean is the grey image itself, which is in range.
    A⁺ of a luma is tinted and leaves the range.

    Attributes:
        channels: the number of channels of the samples.
    """

    NAME, EXAMPLE = "grey", "grey"
    channels: int = setting(3, 1, 64)

    def fit_shape(self, shape: Sequence[int]) -> Degradation:
        if shape[0] == 1:
            raise self.refusal("samples of several channels", "1")
        return replace(self, channels=shape[0])

    def apply(self, x0: Tensor) -> Tensor:
        return x0.mean(1, keepdim=True)

    def pinv(self, y: Tensor) -> Tensor:
        return y.repeat_interleave(self.channels, 1)

    def transpose(self, y: Tensor) -> Tensor:
        return self.pinv(y) / self.channels


CUTOFF, LONGEST = 0.01, 16_384
"""Least gain of a blur, below which frequencies are removed, and the longest side to blur, whose
transform is a matrix of side x side numbers."""


@dataclass(frozen=True, kw_only=True)
class Blur(Degradation):
    """Gaussian blur of an image that is mirrored at its borders.

    It is diagonal in the cosine transform, with gain exp(-(width w)² / 2) at angular frequency w,
    and A⁺ divides by the gain. A gain below `CUTOFF` is set to 0. So A⁺ magnifies noise at most
    100-fold, and A A⁺ A = A is exact.

    Attributes:
        width: the standard deviation in pixels.
    """

    NAME, VALUE, EXAMPLE = "blur", "width", "blur:2"
    width: float = setting(2.0, 0.1, 1000)

    def fit_shape(self, shape: Sequence[int]) -> Degradation:
        if max(shape[1:]) > LONGEST:
            raise self.refusal(f"sides of at most {LONGEST:,}", settings.dimensions(shape[1:]))
        return self

    def apply(self, x0: Tensor) -> Tensor:
        return scale_frequencies(x0, self._gains(x0))

    def pinv(self, y: Tensor) -> Tensor:
        gains = self._gains(y)
        return scale_frequencies(y, (1 / gains).where(gains > 0, 0))

    def transpose(self, y: Tensor) -> Tensor:
        return self.apply(y)

    def weigh(self, y: Tensor, variance: Any, sigma: float) -> Tensor:
        gains = self._gains(y)
        return scale_frequencies(y, gains / (variance * gains**2 + sigma**2))

    def _gains(self, like: Tensor) -> Tensor:
        """Return the gain at each frequency, shaped *size."""
        import torch

        squares = torch.zeros((), dtype=torch.float64)
        for side in like.shape[2:]:
            squares = squares[..., None] + (torch.arange(side) * (math.pi / side)).double() ** 2
        gains = torch.exp(-(self.width**2) / 2 * squares)
        return send(gains.where(gains >= CUTOFF, 0).to(like.dtype), like.device)


@dataclass(frozen=True, kw_only=True, eq=False)
class Mask(Projection):
    """Mask: all channels of some positions are known, and y is 0 at the others, without noise.

    Attributes:
        kind: a name in `MASKS`.
        mask: 1 where known, else 0, broadcast against (B, C, *size). It replaces `kind`.
        size: the size of the samples, which `fit_shape` sets.
    """

    NAME, VALUE, EXAMPLE, HIDES = "mask", "kind", "mask:half", True
    kind: str = setting("half")
    mask: Tensor | None = None
    size: tuple[int, ...] = setting(())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in MASKS:
            problem = f"must be the name of a mask, not '{self.kind}'"
            hint = suggest(self.kind, MASKS)
            raise InvalidArgument(problem, hint, argument="kind", code="unknown_name")

    def fit_shape(self, shape: Sequence[int]) -> Degradation:
        size = tuple(shape[1:])
        if self.mask is not None and (actual := tuple(self.mask.shape[-len(size) :])) != size:
            text = f"must be {settings.dimensions(size)}, not {settings.dimensions(actual)}"
            raise InvalidArgument(text, argument="mask")
        return replace(self, size=size)

    @property
    def uniforms(self) -> int:
        return 0 if self.mask is not None else MASKS[self.kind].uniforms(self.size)

    def draw_parts(self, u: Tensor) -> Degradation:
        mask = MASKS[self.kind](u, self.size) if self.mask is None else self.mask.to(u.device)
        return replace(self, mask=mask)

    @property
    def text(self) -> str:
        text = super().text
        return text if self.mask is None else text.replace(f":{self.kind}", "")

    def known_mask(self, like: Tensor) -> Tensor:
        """Return 1 where known, else 0, (B or 1, 1 or C, *size)."""
        if self.mask is not None:
            return self.mask.to(like.dtype).to(like.device)
        size = tuple(like.shape[2:])
        if MASKS[self.kind].uniforms(size):
            text = f"{self.text} is random for each sample"
            raise InvalidArgument(text, "Call draw_parts(u) first")
        return MASKS[self.kind](like.new_empty(1, 0), size).to(like.dtype)

    def apply(self, x0: Tensor) -> Tensor:
        # Hidden values need not be finite, as the logarithm of 0 in a gap.
        return x0.where(self.known_mask(x0) > 0, 0)

    def observe(self, x0: Tensor, noise: Tensor) -> Tensor:
        return self.apply(super().observe(x0, noise))


@dataclass(frozen=True, kw_only=True)
class Noise(Projection):
    """Only noise: A is the identity."""

    NAME, VALUE, EXAMPLE = "noise", "sigma", "noise:0.2"
    sigma: float = setting(0.2, 0, 100)

    def apply(self, x0: Tensor) -> Tensor:
        return x0


DEGRADATIONS: Registry[type[Degradation]] = Registry(
    "degradations", {kind.NAME: kind for kind in (LowRes, Mask, Grey, Blur, FewerChannels, Noise)}
)


def parse(text: str) -> Degradation:
    """Read a degradation from its short form, `NAME[:VALUE][+noise:SIGMA]`: `blur:2+noise:0.1`.

    Raises:
        InvalidArgument: text that is not a degradation, for the argument `degradation`.
    """
    name, plus, addition = text.partition("+")
    degradation = _parse_part(name)
    if not plus:
        return degradation
    noise = _parse_part(addition)
    if not isinstance(noise, Noise) or degradation.sigma:
        raise _parse_error(text, "only noise can be added", "For example, write blur:2+noise:0.1")
    return replace(degradation, sigma=noise.sigma)


def _parse_part(text: str) -> Degradation:
    name, colon, value = text.partition(":")
    kind = lookup(DEGRADATIONS, name, "degradation")
    if not colon:
        return kind()
    if not kind.VALUE:
        raise _parse_error(text, "takes no value", f"Write {name}")
    annotation = settings.field_annotation(settings.fields_by_name(kind)[kind.VALUE])
    converted: Any = value
    with suppress(ValueError):  # the option refuses text
        converted = {"int": int, "float": float}.get(annotation, str)(value)
    try:
        return kind(**{kind.VALUE: converted})
    except InvalidArgument as error:
        problem = error.message(error.argument)
        raise _parse_error(text, problem, error.hint, code=error.code) from error


def _parse_error(
    text: str, problem: str, hint: str, code: str = "invalid_value"
) -> InvalidArgument:
    return InvalidArgument(f": '{text}': {problem}", hint, argument="degradation", code=code)
