"""Restoration: an unconditional model asked for samples that fit an observation y = A x_0 + noise.

`RESTORATIONS[name](denoise, process, degradation, y)` wraps a `Denoise` into one whose x_0 is
nearer to E[x_0 | x_t, y]; eps is recomputed. As with guidance, any sampler goes with any of them.

    ddnm    A x_0 = y exactly, the rest as the model has it. No gradient, so the cheapest. Exact for
            what y determines; biased for the rest, of which y says something too.
    pigdm   adds the gradient of log p(y | x_t), with Var(x_0 | x_t) = sigma^2 whatever the data:
            biased, but less.
    mmps    the same with the model's own Var(x_0 | x_t), its Jacobian: exact for Gaussian data, up
            to its solver and the sampler's steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.degradations import Degradation
    from diffuse_cli.core.denoiser import Denoise, Prediction
    from diffuse_cli.core.process import Process

Linear = Callable[["Tensor"], "Tensor"]

ITERATIONS = 3
"""Of the solver; for `mmps` each costs a gradient through the network."""


@dataclass(frozen=True)
class Restoration:
    """An entry of `RESTORATIONS`.

    Attributes:
        wrap: `(denoise, process, degradation, y, sigma, **options) -> Denoise`.
        differentiates: whether it needs the gradient of `denoise` (which then must not run in
            inference mode, and is better clipped after than before).
    """

    wrap: Callable[..., Denoise]
    differentiates: bool = False

    def __call__(
        self,
        denoise: Denoise,
        process: Process,
        degradation: Degradation,
        y: Tensor,
        sigma: float | None = None,
        **options: Any,
    ) -> Denoise:
        """`denoise` that knows y.

        Args:
            degradation: drawn, where it is random.
            y: (B, ...), as `degradation.apply` gives it.
            sigma: standard deviation of the noise in y; the degradation's by default.
        """
        sigma = degradation.sigma if sigma is None else sigma
        return self.wrap(denoise, process, degradation, y, sigma, **options)


def ddnm(
    denoise: Denoise, process: Process, degradation: Degradation, y: Tensor, sigma: float
) -> Denoise:
    """x_0 - lambda A⁺(A x_0 - y) (Wang et al. 2023, eqs. 13 and 17).

    Without noise lambda is 1 and A x_0 = y. With noise it is sigma_t^2 / (sigma_t^2 + sigma^2),
    Bayes' weight of y for data of unit variance: at low noise the model's x_0 counts. DDNM+ (sec.
    3.3) limits lambda by the noise of the sampler's next step and lowers that noise, which a
    wrapper cannot; on Gaussian data the weight comes nearer to the posterior than the limit alone.
    """

    from diffuse_cli.core.guidance import with_x0

    def restored(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        prediction = denoise(x_t, t, **cond)
        missed = degradation.pinv(degradation.apply(prediction.x0) - y)
        _, level = process.level(t, like=x_t)
        weight = level**2 / (level**2 + sigma**2)
        return with_x0(prediction, prediction.x0 - weight * missed, process, x_t, t)

    return restored


def pigdm(
    denoise: Denoise,
    process: Process,
    degradation: Degradation,
    y: Tensor,
    sigma: float,
    *,
    iterations: int = ITERATIONS,
) -> Denoise:
    """Pseudoinverse guidance (Song et al. 2023, eqs. 7 and 8).

    The gradient of log p(y | x_t) where x_0 given x_t is Gaussian with variance
    r^2 = sigma_t^2 / (alpha_t^2 + sigma_t^2), that of data of unit variance.

    Args:
        iterations: of the solver for (r^2 A Aᵀ + sigma^2)⁻¹; 1 is exact where A Aᵀ is a multiple of
            one on what is observed, as for all degradations but `blur`.
    """
    return _bayes(denoise, process, degradation, y, sigma, iterations, own=False)


def mmps(
    denoise: Denoise,
    process: Process,
    degradation: Degradation,
    y: Tensor,
    sigma: float,
    *,
    iterations: int = ITERATIONS,
) -> Denoise:
    """Moment matching posterior sampling (Rozet et al. 2024, sec. 4.2).

    The same with the covariance V = sigma_t^2 / alpha_t * J, J the Jacobian of x_0 by x_t. Exact
    for Gaussian data with enough iterations.

    Args:
        iterations: of the solver for (A V Aᵀ + sigma^2)⁻¹; each costs a gradient.
    """
    return _bayes(denoise, process, degradation, y, sigma, iterations, own=True)


def _bayes(
    denoise: Denoise,
    process: Process,
    degradation: Degradation,
    y: Tensor,
    sigma: float,
    iterations: int,
    *,
    own: bool,
) -> Denoise:
    """x_0 + V Aᵀ (A S Aᵀ + sigma^2)⁻¹ (y - A x_0).

    V = sigma_t^2 / alpha_t J is Tweedie's covariance, S is V (`own`) or sigma_t^2. At SNR 0, where
    x_0 does not depend on x_t, V is 1. What of y is not in the range of A says nothing of x_0, and
    is left out.
    """
    import torch

    from diffuse_cli.core.guidance import with_x0

    def restored(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        alpha, level = process.level(t, like=x_t)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            prediction = denoise(x, t, **cond)
        x0 = prediction.x0.detach()

        def spread(v: Tensor) -> Tensor:
            if not hasattr(alpha, "where") and alpha == 0:
                return v
            (found,) = torch.autograd.grad(prediction.x0, x, v, retain_graph=True)
            moved: Tensor = level**2 / alpha * found
            return moved

        def seen(v: Tensor) -> Tensor:
            back = degradation.transpose(v)
            return degradation.apply(spread(back) if own else level**2 * back) + sigma**2 * v

        missed = degradation.apply(degradation.pinv(y - degradation.apply(x0)))
        weight = solve(seen, missed, iterations)
        x0 = x0 + spread(degradation.transpose(weight))
        return with_x0(_detached(prediction), x0, process, x_t, t)

    return restored


def _detached(prediction: Prediction) -> Prediction:
    """The prediction without the graph that led to it."""
    log_var = prediction.log_var

    def fixed(t: Any, s: Any = None) -> Any:
        assert log_var is not None
        value = log_var(t, s)
        return value.detach() if hasattr(value, "detach") else value

    return replace(prediction, raw=None, log_var=log_var and fixed)


def solve(matrix: Linear, wanted: Tensor, iterations: int) -> Tensor:
    """v with matrix(v) near `wanted`, for each sample of a batch.

    Generalised conjugate residuals (Eisenstat et al. 1983), which are GMRES: the residual never
    grows, also where a network's Jacobian is not symmetric. Reads no number back.
    """
    from torch import finfo

    found, missed = wanted.new_zeros(()).expand_as(wanted), wanted
    rounding = 10 * finfo(wanted.dtype).eps * _dot(wanted, wanted).sqrt()
    taken: list[tuple[Tensor, Tensor]] = []
    for _ in range(iterations):
        step, gain = missed, matrix(missed)
        for other, its in taken:
            share = _dot(gain, its)
            step, gain = step - share * other, gain - share * its
        size = _dot(gain, gain).sqrt()
        going = (size > 0) & (_dot(missed, missed).sqrt() > rounding)
        scale = (1 / size).where(going, 0)
        step, gain = scale * step, scale * gain
        length = _dot(missed, gain)
        found, missed = found + length * step, missed - length * gain
        taken.append((step, gain))
    return found


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, (B, 1, ..., 1)."""
    return (a * b).sum(list(range(1, a.ndim)), keepdim=True)


RESTORATIONS: Registry[Restoration] = Registry(
    "restorations",
    {
        "ddnm": Restoration(ddnm),
        "pigdm": Restoration(pigdm, differentiates=True),
        "mmps": Restoration(mmps, differentiates=True),
    },
)
