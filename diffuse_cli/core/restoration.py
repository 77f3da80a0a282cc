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

ITERATIONS, GRADIENTS = 30, 3
"""Of the solver; those of `mmps` each cost a gradient through the network."""


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
    denoise: Denoise,
    process: Process,
    degradation: Degradation,
    y: Tensor,
    sigma: float,
    *,
    iterations: int = ITERATIONS,
) -> Denoise:
    """x_0 - A⁺(A x_0 - y) (Wang et al. 2023, eq. 13).

    With noise, Bayes' weight of y for data of unit variance stands for A⁺:
    r^2 Aᵀ (r^2 A Aᵀ + sigma^2)⁻¹, with the r of `pigdm`. DDNM+ (sec. 3.3) weighs by the noise of
    the sampler's next step and lowers that noise, which a wrapper does not know and cannot.

    Args:
        iterations: of the solver for the inverse, with noise; 1 is exact where A Aᵀ is a multiple
            of one on what is observed, as for all degradations but `blur`.
    """

    def restored(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        prediction = denoise(x_t, t, **cond)
        _, level = process.level(t, like=x_t)
        missed = y - degradation.apply(prediction.x0)
        back = _alike(degradation, missed, level**2, sigma, iterations)
        return prediction.with_x0(prediction.x0 + level**2 * back, process, x_t, t)

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
    """Pseudoinverse guidance (Song et al. 2023a, eqs. 7 and 8).

    The gradient of log p(y | x_t) where x_0 given x_t is Gaussian with variance
    r^2 = sigma_t^2 / (alpha_t^2 + sigma_t^2), that of data of unit variance.

    Args:
        iterations: as for `ddnm`.
    """
    return _by_gradient(denoise, process, degradation, y, sigma, iterations, jacobian=False)


def mmps(
    denoise: Denoise,
    process: Process,
    degradation: Degradation,
    y: Tensor,
    sigma: float,
    *,
    iterations: int = GRADIENTS,
) -> Denoise:
    """Moment matching posterior sampling (Rozet et al. 2024, sec. 4.2).

    The same with the covariance V = sigma_t^2 / alpha_t * J, J the Jacobian of x_0 by x_t. Exact
    for Gaussian data with enough iterations.

    Args:
        iterations: of the solver for (A V Aᵀ + sigma^2)⁻¹; each costs a gradient.
    """
    return _by_gradient(denoise, process, degradation, y, sigma, iterations, jacobian=True)


def _by_gradient(
    denoise: Denoise,
    process: Process,
    degradation: Degradation,
    y: Tensor,
    sigma: float,
    iterations: int,
    *,
    jacobian: bool,
) -> Denoise:
    """x_0 + V Aᵀ (A S Aᵀ + sigma^2)⁻¹ (y - A x_0), with S = V, or sigma_t^2 without the `jacobian`.

    V = sigma_t^2 / alpha_t J is Tweedie's covariance, J the Jacobian of x_0 by x_t.

    At SNR 0, where J is 0 and V the data's own covariance, V and sigma_t are those of the noisiest
    timestep whose SNR is not 0.
    """
    import torch

    def restored(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        near = _above_zero(process, t)
        alpha, level = process.level(near, like=x_t)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            followed = denoise(x, near, **cond)
        prediction = followed if near is t else denoise(x_t, t, **cond)
        x0 = prediction.x0.detach()

        def spread(v: Tensor) -> Tensor:
            (found,) = torch.autograd.grad(followed.x0, x, v, retain_graph=True)
            moved: Tensor = level**2 / alpha * found
            return moved

        missed = y - degradation.apply(x0)
        if jacobian:
            back = _weighed(degradation, missed, spread, sigma, iterations)
        else:
            back = _alike(degradation, missed, level**2, sigma, iterations)
        x0 = x0 + spread(back)
        return _detached(prediction).with_x0(x0, process, x_t, t)

    return restored


def _above_zero(process: Process, t: Any) -> Any:
    """Return t, or the noisiest timestep whose SNR is not 0 where that of t is."""
    last = int((process.alpha_bars > 0).sum()) - 1
    if last == process.num_timesteps - 1:
        return t
    return t.clamp(max=last) if hasattr(t, "clamp") else min(t, last)


def _weighed(
    degradation: Degradation, missed: Tensor, spread: Linear, sigma: float, iterations: int
) -> Tensor:
    """Aᵀ (A S Aᵀ + sigma^2)⁻¹ of `missed`, S by `spread`.

    What of y is not in the range of A says nothing of x_0, and is left out.
    """

    def seen(v: Tensor) -> Tensor:
        return degradation.apply(spread(degradation.transpose(v))) + sigma**2 * v

    wanted = degradation.apply(degradation.pinv(missed))
    return degradation.transpose(solve(seen, wanted, iterations))


def _alike(
    degradation: Degradation, missed: Tensor, variance: Any, sigma: float, iterations: int
) -> Tensor:
    """The same where S is one variance for all; without noise by A⁺."""
    if not sigma:
        back: Tensor = degradation.pinv(missed) / variance
        return back
    return _weighed(degradation, missed, lambda v: variance * v, sigma, iterations)


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


def consistent(
    x0: Tensor, degradation: Degradation, y: Tensor, *, bounded: bool = True, rounds: int = 100
) -> Tensor:
    """The sample near x_0 with A x_0 = y, for y without noise.

    Args:
        bounded: also keep it in [-1, 1], by projecting on both in turn; the range comes last.
        rounds: how often.
    """
    for _ in range(rounds if bounded else 1):
        x0 = x0 - degradation.pinv(degradation.apply(x0) - y)
        x0 = x0.clamp(-1, 1) if bounded else x0
    return x0


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
