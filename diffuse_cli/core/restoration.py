"""Restoration: samples of an unconditional model that fit an observation y = A x_0 + noise.

`RESTORATIONS[name](denoise, process, degradation, y)` wraps a `Denoise` so that its x_0 is nearer
to E[x_0 | x_t, y], and recomputes eps. As with guidance, every method works with every sampler.

    ddnm    sets A x_0 = y exactly, and keeps the rest of the model's x_0. It needs no gradient, so
            it is the cheapest method. It is exact in the range of A⁺, and biased in the rest, about
            which y has information too.
    pigdm   adds the gradient of log p(y | x_t), with the same Var(x_0 | x_t) for all data. It is
            less biased.
    mmps    does so with the model's own Var(x_0 | x_t), from its Jacobian. It is exact for Gaussian
            data, up to its solver and the sampler's steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diffuse_cli.core.registry import InvalidArgument, Registry

if TYPE_CHECKING:
    from torch import Tensor

    from diffuse_cli.core.degradations import Degradation
    from diffuse_cli.core.denoiser import Denoise, Prediction
    from diffuse_cli.core.process import Process

Linear = Callable[["Tensor"], "Tensor"]

ITERATIONS = 3
"""Default iterations of the solver in `mmps`. Each costs a gradient."""


@dataclass(frozen=True)
class Restoration:
    """Entry of `RESTORATIONS`.

    Attributes:
        wrap: the wrapper `(denoise, process, degradation, y, sigma, **options) -> Denoise`.
        gradients: the gradients of `denoise` that an estimate takes. If there are any, `denoise`
            must not run in inference mode, and should be clipped after wrapping instead of before.
        clipped: whether its samples are only good if they are clipped.
    """

    wrap: Callable[..., Denoise]
    gradients: int = 0
    clipped: bool = False

    def __call__(
        self,
        denoise: Denoise,
        process: Process,
        degradation: Degradation,
        y: Tensor,
        sigma: float | None = None,
        **options: Any,
    ) -> Denoise:
        """Wrap `denoise` to fit its x_0 to the observation y.

        Args:
            degradation: the degradation, after `draw_parts` if it is random.
            y: the observation (B, ...), as `degradation.apply` returns it.
            sigma: the standard deviation of the noise in y, by default the degradation's.
        """
        from diffuse_cli.core.guidance import WrappedDenoiser  # which imports torch

        sigma = degradation.sigma if sigma is None else sigma
        wrapped = self.wrap(denoise, process, degradation, y, sigma, **options)
        return WrappedDenoiser(wrapped, process)


def ddnm(
    denoise: Denoise, process: Process, degradation: Degradation, y: Tensor, sigma: float
) -> Denoise:
    """Return x_0 - A⁺(A x_0 - y) (Wang et al. 2023, eq. 13).

    With noise, Bayes' weight of y for data of unit variance replaces A⁺:
    r^2 Aᵀ (r^2 A Aᵀ + sigma^2)⁻¹, with the r of `pigdm`. DDNM+ (sec. 3.3) weights by the noise of
    the sampler's next step and lowers that noise, but a wrapper has no access to it.
    """

    def restored(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        prediction = denoise(x_t, t, **cond)
        _, level = process.alpha_sigma(t, like=x_t)
        missed = y - degradation.apply(prediction.x0)
        back = _weigh_uniformly(degradation, missed, level**2, sigma)
        return prediction.with_x0(prediction.x0 + level**2 * back, process, x_t, t)

    return restored


def pigdm(
    denoise: Denoise, process: Process, degradation: Degradation, y: Tensor, sigma: float
) -> Denoise:
    """Apply pseudoinverse guidance (Song et al. 2023a, eqs. 7 and 8).

    It adds the gradient of log p(y | x_t) for a Gaussian x_0 given x_t with variance
    r^2 = sigma_t^2 / (alpha_t^2 + sigma_t^2), as for data of unit variance. Where the variance in
    some direction is larger, for example in the mean of an image, x_0 overshoots y at high noise,
    so it must be clipped.
    """
    return _add_gradient(denoise, process, degradation, y, sigma)


def mmps(
    denoise: Denoise,
    process: Process,
    degradation: Degradation,
    y: Tensor,
    sigma: float,
    *,
    iterations: int = ITERATIONS,
) -> Denoise:
    """Apply moment matching posterior sampling (Rozet et al. 2024, sec. 4.2).

    It is `pigdm` with the covariance V = sigma_t^2 / alpha_t * J, J the Jacobian of x_0 by x_t, and
    exact for Gaussian data with enough iterations.

    Args:
        iterations: iterations of the solver for (A V Aᵀ + sigma^2)⁻¹. Each costs a gradient.
    """
    return _add_gradient(denoise, process, degradation, y, sigma, iterations)


def _add_gradient(
    denoise: Denoise,
    process: Process,
    degradation: Degradation,
    y: Tensor,
    sigma: float,
    iterations: int | None = None,
) -> Denoise:
    """Return x_0 + V Aᵀ (A S Aᵀ + sigma^2)⁻¹ (y - A x_0).

    V = sigma_t^2 / alpha_t J is Tweedie's covariance, J the Jacobian of x_0 by x_t. S is V with
    `iterations` of the solver, and else sigma_t^2. At SNR 0 J is 0 and V is the covariance of the
    data. There V and sigma_t are taken from the noisiest timestep whose SNR is not 0.
    """
    import torch

    def restored(x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        near = _clamp_to_signal(process, t)
        alpha, level = process.alpha_sigma(near, like=x_t)
        with torch.enable_grad():
            x = x_t.detach().requires_grad_()
            followed = denoise(x, near, **cond)
        prediction = followed if near is t else denoise(x_t, t, **cond)
        x0 = prediction.x0.detach()

        def spread(v: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(followed.x0, x, v, retain_graph=True)
            moved: Tensor = level**2 / alpha * gradient
            return moved

        missed = y - degradation.apply(x0)
        if iterations is None:
            back = _weigh_uniformly(degradation, missed, level**2, sigma)
        else:
            back = _weigh(degradation, missed, spread, sigma, iterations)
        x0 = x0 + spread(back)
        return _detach(prediction).with_x0(x0, process, x_t, t)

    return restored


def _clamp_to_signal(process: Process, t: Any) -> Any:
    """Return t, or the noisiest timestep with an SNR above 0 if the SNR at t is 0."""
    last = int((process.alpha_bars > 0).sum()) - 1
    if last < 0:
        raise InvalidArgument("no timestep has a signal, so x_t says nothing about x_0")
    if last == process.num_timesteps - 1:
        return t
    return t.clamp(max=last) if hasattr(t, "clamp") else min(t, last)


def _weigh(
    degradation: Degradation, missed: Tensor, spread: Linear, sigma: float, iterations: int
) -> Tensor:
    """Return Aᵀ (A S Aᵀ + sigma^2)⁻¹ `missed`, with S v = `spread(v)`.

    The part of y outside the range of A has no information about x_0, and is left out.
    """

    def seen(v: Tensor) -> Tensor:
        return degradation.apply(spread(degradation.transpose(v))) + sigma**2 * v

    rhs = degradation.apply(degradation.pinv(missed))
    return degradation.transpose(solve(seen, rhs, iterations))


def _weigh_uniformly(
    degradation: Degradation, missed: Tensor, variance: Any, sigma: float
) -> Tensor:
    """Return `_weigh` for S = `variance` times the identity, by A⁺ without noise."""
    if sigma:
        return degradation.weigh(missed, variance, sigma)
    back: Tensor = degradation.pinv(missed) / variance
    return back


def _detach(prediction: Prediction) -> Prediction:
    """Detach a prediction from the autograd graph."""
    log_var = prediction.log_var

    def fixed(t: Any, s: Any = None) -> Any:
        assert log_var is not None
        value = log_var(t, s)
        return value.detach() if hasattr(value, "detach") else value

    return replace(prediction, raw=None, log_var=log_var and fixed)


def solve(matrix: Linear, rhs: Tensor, iterations: int) -> Tensor:
    """Solve matrix(v) = `rhs` approximately, for each sample of a batch.

    The method is generalized conjugate residuals (Eisenstat et al. 1983), equivalent to GMRES: the
    residual never grows, even though a network's Jacobian is not symmetric. It needs no transfers
    from the device.
    """
    from torch import finfo

    solution, missed = rhs.new_zeros(()).expand_as(rhs), rhs
    rounding = 10 * finfo(rhs.dtype).eps * _dot(rhs, rhs).sqrt()
    steps: list[tuple[Tensor, Tensor]] = []
    for _ in range(iterations):
        step, gain = missed, matrix(missed)
        for old_step, old_gain in steps:
            share = _dot(gain, old_gain)
            step, gain = step - share * old_step, gain - share * old_gain
        size = _dot(gain, gain).sqrt()
        going = (size > 0) & (_dot(missed, missed).sqrt() > rounding)
        scale = (1 / size).where(going, 0)
        step, gain = scale * step, scale * gain
        length = _dot(missed, gain)
        solution, missed = solution + length * step, missed - length * gain
        steps.append((step, gain))
    return solution


ROUNDS = 100
"""Alternating projections of `enforce_consistency`."""


def enforce_consistency(
    x0: Tensor, degradation: Degradation, y: Tensor, *, bounded: bool = True
) -> Tensor:
    """Return the sample near x_0 with A x_0 = y, for y without noise.

    Args:
        bounded: whether to keep it in [-1, 1] too, by alternating projections, the range last.
    """
    for _ in range(ROUNDS if bounded else 1):
        x0 = x0 - degradation.pinv(degradation.apply(x0) - y)
        x0 = x0.clamp(-1, 1) if bounded else x0
    return x0


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product of each sample, (B, 1, ..., 1)."""
    return (a * b).sum(list(range(1, a.ndim)), keepdim=True)


RESTORATIONS: Registry[Restoration] = Registry(
    "restorations",
    {
        "ddnm": Restoration(ddnm),
        "pigdm": Restoration(pigdm, gradients=1, clipped=True),
        "mmps": Restoration(mmps, gradients=1 + ITERATIONS),
    },
)
