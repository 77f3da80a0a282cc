"""`Denoiser`: a network's output as predictions of x_0 and eps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from diffuse_cli.core import parameterization
from diffuse_cli.core.denoising_errors import DenoisingErrors
from diffuse_cli.core.process import Process, Time, TimestepTable
from diffuse_cli.core.registry import InvalidArgument, lookup

LogVar = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class Reference:
    """Estimate of x_0 that a network sees and corrects, for example `DataGaussian`.

    Attributes:
        denoise: the function from x_t, alpha and sigma to the estimate.
        scale: the function from alpha, sigma and x_t to the scale of the correction.
    """

    denoise: Callable[[Tensor, Any, Any], Tensor]
    scale: Callable[[Any, Any, Tensor], Tensor]


@dataclass(frozen=True)
class Prediction:
    """Estimates of the clean sample and the noise in x_t.

    Attributes:
        x0, eps: the estimates, shaped like x_t and consistent: x_t = alpha x_0 + sigma eps.
        raw: the prediction in the network's target.
        log_var: `log_var(t, s)` is the log-variance of the reverse step from t to s, by default
            the timestep before t. If `log_var` is None, the variance is beta-tilde.
    """

    x0: Tensor
    eps: Tensor
    raw: Tensor | None = None
    log_var: LogVar | None = None

    def with_x0(self, x0: Tensor, process: Process, x_t: Tensor, t: Time) -> Prediction:
        """Return the prediction with another x_0, and eps = (x_t - alpha x_0) / sigma."""
        alpha, sigma = process.alpha_sigma(t, like=x_t)
        return replace(self, x0=x0, eps=(x_t - alpha * x0) / sigma)


class Denoise(Protocol):
    """Callable that predicts x_0 and eps: a `Denoiser`, or a function that wraps one."""

    def __call__(self, x_t: Tensor, t: Any, /, **cond: Any) -> Prediction:
        """Predict x_0 and eps at time t from x_t (B, C, *spatial) and conditions."""
        ...


class Denoiser:
    """Network with the process it was trained on, its target and its variance.

    Args:
        net: the network, called as `net(x, t, **cond)`, with t from `Process.time_input`, float32
            (B,).
        process: the forward process.
        target: a name in `TARGETS`.
        variance: a name in `VARIANCES`. A learned variance is the second half of the output, which
            other variances ignore if it exists.
        levels: the number of data levels from -1 to 1, whose bins the decoder p(x_0 | x_1) gives
            probabilities. If None, data are floats and the decoder is a density. Its variance at
            the first timestep is then learned, or the error if it is measured, or else beta, as
            for independent N(0, 1) data. For p(x_0 | x_1) in proportion to q(x_1 | x_0) (Kingma et
            al. 2021) the variance would be beta / (1 - beta), and the mean x_1 / alpha.
        posterior: c1 and c2 of `Process.steps`, (T,) each, for the process that the network was
            trained on. By default that is `process`.
        errors: the errors of x_0, for a variance in `MEASURED`.
        reference: an estimate W of x_0. The network F then sees x_t and W(x_t), and
            x_0 = W(x_t) + scale F (as in Karras et al. 2022, eq. 7, where W is a multiple of x_t).
            The target then only decides the loss.

    Attributes:
        coefficients: (a, b) of the target y = a x_0 + b eps at every timestep, float64, (T,) each.

    Raises:
        InvalidArgument: an unknown name, a target that does not determine x_0 at some timestep
            (eps at SNR 0), or a variance whose errors are missing.
    """

    def __init__(
        self,
        net: Callable[..., Tensor],
        process: Process,
        target: str = "eps",
        variance: str = "small",
        levels: int | None = 256,
        *,
        posterior: tuple[Tensor, Tensor] | None = None,
        errors: DenoisingErrors | None = None,
        reference: Reference | None = None,
    ) -> None:
        self.net, self.process, self.target, self.variance = net, process, target, variance
        self.reference = reference
        self.levels, self._posterior = levels, posterior or (process.steps.c1, process.steps.c2)
        self._coefficients = lookup(parameterization.TARGETS, target, "target")
        self._log_var = lookup(parameterization.VARIANCES, variance, "variance")
        alpha, sigma = process.alpha_bars.sqrt(), (1 - process.alpha_bars).sqrt()
        values = self._coefficients(alpha, sigma, *self._posterior)
        a, b = (torch.as_tensor(v, device=alpha.device) for v in values)
        if bool((a * sigma - b * alpha == 0).any()):
            text = f"target '{target}' is undefined where the signal-to-noise ratio is 0"
            raise InvalidArgument(text, "Choose v, x0, flow or mu")
        if variance in parameterization.MEASURED and errors is None:
            raise InvalidArgument(
                f"{variance} is measured at the end of training",
                f"Train with another one, and pass --variance {variance} to sample or eval",
                argument="variance",
            )
        self._errors = errors
        if errors:
            log_snrs = process.log_snr(torch.arange(process.num_timesteps, device="cpu"))
            self._error_table = TimestepTable(torch.from_numpy(errors.interpolate(log_snrs)))
        self.coefficients: tuple[Tensor, Tensor] = (a.expand_as(alpha), b.expand_as(alpha))
        self._targets = TimestepTable(*self.coefficients)
        self._inverses = TimestepTable(*self._invert(a, b, alpha, sigma))

    @staticmethod
    def _invert(a: Any, b: Any, alpha: Any, sigma: Any) -> tuple[Any, Any, Any, Any]:
        """Invert [[a, b], [alpha, sigma]] and return its rows: (y, x_t) -> x_0, then eps."""
        determinant = a * sigma - b * alpha
        return sigma / determinant, -b / determinant, -alpha / determinant, a / determinant

    def target_at(self, t: Time, *, like: Tensor) -> tuple[Any, Any]:
        """Return the coefficients (a, b) of the target at t."""
        if isinstance(t, float):
            return self._coefficients(*self.process.alpha_sigma(t, like=like), None, None)
        a, b = self._targets(t, like)
        return a, b

    def _inverse_at(self, t: Time, like: Tensor) -> tuple[Any, ...]:
        if not isinstance(t, float):
            return self._inverses(t, like)
        alpha, sigma = self.process.alpha_sigma(t, like=like)
        return self._invert(*self.target_at(t, like=like), alpha, sigma)

    def _error_at(self, t: Time, like: Tensor) -> Any:
        """Return the mean squared error of x_0 at t."""
        assert self._errors
        if isinstance(t, float):
            return float(self._errors.interpolate(self.process.log_snr(t)))
        return self._error_table(t, like)[0]

    def __call__(self, x_t: Tensor, t: Time, /, **cond: Any) -> Prediction:
        """Predict x_0 and eps from x_t of shape (B, C, *size) at time t.

        Args:
            x_t: the noisy samples.
            t: an int or float for all samples, or an integer tensor (B,). At a float, log-SNR and
                the network's time input are interpolated. Targets in `STEPWISE` use the nearest
                timestep.
            cond: keywords for the network, for example `label`.

        Raises:
            InvalidArgument: the network has no output for a learned variance.
        """
        if isinstance(t, float) and self.target in parameterization.STEPWISE:
            t = round(t)
        x0, eps, raw, raw_var = self._predict(x_t, t, cond)
        if self.variance in parameterization.LEARNED and raw_var.shape[1] != x_t.shape[1]:
            text = f"variance '{self.variance}' needs {2 * x_t.shape[1]} output channels"
            raise InvalidArgument(text)

        measured = self.variance in parameterization.MEASURED

        def log_var(t: Time, s: Time | None = None) -> Any:
            pair = self.process.coefficients(t, s, like=x_t)
            var_input = self._error_at(t, x_t) if measured else raw_var
            log_variance = self._log_var(pair, var_input)
            if self.levels is None and self.variance not in parameterization.LEARNED:
                decoder = parameterization.log(var_input) if measured else pair.log_beta
                log_variance = log_variance + pair.first * (decoder - log_variance)
            return log_variance

        return Prediction(x0, eps, raw, log_var)

    def _predict(
        self, x_t: Tensor, t: Time, cond: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return x_0, eps, the target and the channels of the variance."""
        time, channels = self.process.time_input(t, like=x_t), x_t.shape[1]
        if self.reference is None:
            out = self.net(x_t, time, **cond).to(x_t.dtype)
            raw = out[:, :channels]
            x0_y, x0_x, eps_y, eps_x = self._inverse_at(t, x_t)
            x0, eps = x0_y * raw + x0_x * x_t, eps_y * raw + eps_x * x_t
            return x0, eps, raw, out[:, channels:]
        alpha, sigma = self.process.alpha_sigma(t, like=x_t)
        guess = self.reference.denoise(x_t, alpha, sigma)
        out = self.net(torch.cat([x_t, guess], 1), time, **cond).to(x_t.dtype)
        x0 = guess + self.reference.scale(alpha, sigma, x_t) * out[:, :channels]
        eps = (x_t - alpha * x0) / sigma
        a, b = self.target_at(t, like=x_t)
        return x0, eps, a * x0 + b * eps, out[:, channels:]

    def squared_error(
        self, x0: Tensor, t: Tensor, noise: Tensor, cond: Mapping[str, Any]
    ) -> Tensor:
        """Return the mean squared error of x_0 in each sample, (B,), clipped as in sampling."""
        estimate = self(self.process.diffuse(x0, t, noise), t, **cond).x0
        estimate = estimate if self.levels is None else estimate.clamp(-1, 1)
        return (estimate - x0).square().flatten(1).mean(1)

    def respaced(self, times: Iterable[int | float]) -> Denoiser:
        """Return the same network over these times only, in any order."""
        chosen = sorted(times)
        rows = torch.tensor([min(round(t), self.process.num_timesteps - 1) for t in chosen])
        c1, c2 = self._posterior
        return self._copy(process=self.process.respaced(chosen), posterior=(c1[rows], c2[rows]))

    def with_variance(self, variance: str, errors: DenoisingErrors | None = None) -> Denoiser:
        """Return the same network with another variance, and the errors for it if needed."""
        return self._copy(variance=variance, errors=errors)

    def _copy(self, **changes: Any) -> Denoiser:
        arguments = {
            "net": self.net,
            "process": self.process,
            "target": self.target,
            "variance": self.variance,
            "levels": self.levels,
            "posterior": self._posterior,
            "errors": self._errors,
            "reference": self.reference,
        }
        return Denoiser(**{**arguments, **changes})
