"""The forward process q and the exact Gaussians that follow from its betas.

    q(x_t | x_0) = N(alpha_t x_0, sigma_t^2),  alpha_t^2 = alpha_bar_t,  sigma_t^2 = 1 - alpha_bar_t

(Ho et al. 2020, eq. 4). A step can go between any two times s < t. Its alpha_bar_t / alpha_bar_s
then replaces 1 - beta_t. Clean data is s = -1, whose alpha_bar is 1.

Times are ints (samplers), integer tensors of shape (B,) (training), or floats (karras spacing), for
which log-SNR is interpolated. Coefficients are computed in float64 and cast last.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from diffuse_cli.core.gaussian import Gaussian, StepCoefficients
from diffuse_cli.core.registry import InvalidArgument, lookup
from diffuse_cli.core.schedules import SPACINGS, find_time
from diffuse_cli.core.space import expand_batch

Time = int | float | Tensor
CLEAN = "s = -1 is clean data, not an index"
BACKWARD = "a step goes from a time t >= 0 to a time s <= t"


class TimestepTable:
    """Table with a row of float64 numbers per timestep, and a cached copy per device and dtype."""

    def __init__(self, *columns: Tensor) -> None:
        self.rows = torch.stack(torch.broadcast_tensors(*columns), dim=1)
        self._copies: dict[tuple[torch.device, torch.dtype], Tensor] = {}

    def __call__(self, t: int | Tensor, like: Tensor) -> tuple[Any, ...]:
        """Return the columns at t.

        For an int they are numbers, for (B,) they are tensors that broadcast against `like`.
        """
        if not isinstance(t, Tensor):
            if t < 0:
                raise IndexError(CLEAN)
            return tuple(self.rows[t].tolist())
        if t.device.type == "cpu" and bool((t < 0).any()):
            raise IndexError(CLEAN)
        key = (like.device, like.dtype)
        if key not in self._copies:
            with torch.inference_mode(False):  # later gradients may need it
                self._copies[key] = self.rows.to(like.dtype).to(like.device)
        rows = self._copies[key][t.to(like.device)]
        return tuple(expand_batch(column, like) for column in rows.unbind(1))


class Process:
    """Forward process defined by a list of betas.

    Args:
        betas: the variances beta_0 ... beta_{T-1}, each in (0, 1]. Only the last can be 1, where
            log-SNR is -inf.
        timesteps: the network's time input at each time, t * 1000 / T by default.

    Attributes:
        betas, alpha_bars, timesteps: float64 tensors on the CPU, shape (T,).
        steps: the coefficients of the step from each timestep to the previous one, also float64
            tensors on the CPU, shape (T,).

    Raises:
        InvalidArgument: a beta outside (0, 1], or a timestep at which alpha_bar does not fall,
            because it is 0 already or 1 - beta rounds to 1.
    """

    def __init__(
        self, betas: Sequence[float] | Tensor, timesteps: Sequence[float] | Tensor | None = None
    ) -> None:
        self.betas = torch.as_tensor(betas, dtype=torch.float64, device="cpu")
        if self.betas.ndim != 1 or len(self.betas) == 0:
            raise InvalidArgument(": a schedule is a list of them", argument="betas")
        if not bool(((self.betas > 0) & (self.betas <= 1)).all()):
            raise InvalidArgument("must lie in (0, 1]", argument="betas")
        self.alpha_bars = torch.cumprod(1 - self.betas, 0)
        before = torch.cat([self.alpha_bars.new_ones(1), self.alpha_bars[:-1]])
        if still := (self.alpha_bars >= before).nonzero().flatten().tolist():
            raise InvalidArgument(
                f": beta_{still[0]} = {self.betas[still[0]]:g} leaves alpha_bar at "
                f"{before[still[0]]:g}, but it must fall at every timestep",
                argument="betas",
            )
        self.num_timesteps = len(self.betas)
        if timesteps is None:
            timesteps = torch.arange(self.num_timesteps, device="cpu") * (1000 / self.num_timesteps)
        self.timesteps = torch.as_tensor(timesteps, dtype=torch.float64, device="cpu")
        self._log_snrs = torch.log(self.alpha_bars) - torch.log1p(-self.alpha_bars)
        self._levels = TimestepTable(self.alpha_bars.sqrt(), (1 - self.alpha_bars).sqrt())
        self._shown = TimestepTable(self.timesteps)
        self._floor = math.log(float(self.betas[0]))
        if self.num_timesteps > 1:
            self._floor = float(self._compute_step(self.alpha_bars[1], before[1]).log_beta_tilde)
        self.steps = self._compute_step(self.alpha_bars, before)
        self._steps = TimestepTable(*self.steps)

    # -- coefficients ------------------------------------------------------------------------------

    def _compute_step(self, alpha_bar_t: Tensor, alpha_bar_s: Tensor) -> StepCoefficients:
        """Return the coefficients of a step, in float64."""
        first = (alpha_bar_s == 1).double()
        beta = 1 - alpha_bar_t / alpha_bar_s
        noise_t, noise_s = 1 - alpha_bar_t, 1 - alpha_bar_s
        log_beta_tilde = torch.log(beta * (noise_s + first) / noise_t)
        return StepCoefficients(
            alpha=alpha_bar_t.sqrt(),
            sigma=noise_t.sqrt(),
            alpha_s=alpha_bar_s.sqrt(),
            sigma_s=noise_s.sqrt(),
            c1=alpha_bar_s.sqrt() * beta / noise_t,
            c2=(alpha_bar_t / alpha_bar_s).sqrt() * noise_s / noise_t,
            log_beta=torch.log(beta),
            log_beta_tilde=torch.where(first > 0, self._floor, log_beta_tilde),
            first=first,
        )

    def alpha_bar(self, t: int | float) -> float:
        """Return alpha_bar at a time, which is 1 at -1."""
        if t < 0:
            return 1.0
        if t == int(t):
            return float(self.alpha_bars[int(t)])
        log_snr = self.betas.new_tensor(self._interpolate(self._log_snrs, t))
        return float(log_snr.sigmoid())

    @staticmethod
    def _interpolate(column: Tensor, t: float) -> float:
        if t < 0:
            raise IndexError(CLEAN)
        low = int(t)
        if t == low or low == len(column) - 1:
            return float(column[low])
        below, above = float(column[low]), float(column[low + 1])
        return below + (above - below) * (t - low)

    def coefficients(self, t: Time, s: Time | None = None, *, like: Tensor) -> StepCoefficients:
        """Return the coefficients of the step from t to s, by default the timestep before t.

        For a tensor t the default s is fast: it reads a table on the device of `like`.

        Raises:
            IndexError: a negative t.
            ValueError: an s after t, or a number s with alpha_bar 0.
        """
        if isinstance(t, Tensor) and s is None:
            return StepCoefficients(*self._steps(t, like))
        if isinstance(t, Tensor) or isinstance(s, Tensor):
            t, s = (torch.as_tensor(v).detach().cpu() for v in (t, s))
            if bool((t < 0).any()):
                raise IndexError(CLEAN)
            if bool((t < s.clamp(min=0)).any()):
                raise ValueError(BACKWARD)
            levels = (self.alpha_bars[v.clamp(min=0)].where(v >= 0, 1.0) for v in (t, s))
            exact = (c.to(like.dtype).to(like.device) for c in self._compute_step(*levels))
            return StepCoefficients(*(expand_batch(c, like) for c in exact))
        if t < 0:
            raise IndexError(CLEAN)
        s = math.ceil(t) - 1 if s is None else s
        if s > t:
            raise ValueError(BACKWARD)
        level_t, level_s = (self.betas.new_tensor(self.alpha_bar(v)) for v in (t, s))
        if level_s == 0:
            raise ValueError(f"there is no step to s = {s}, where alpha_bar is 0")
        return StepCoefficients(*map(float, self._compute_step(level_t, level_s)))

    def alpha_sigma(self, t: Time, *, like: Tensor) -> tuple[Any, Any]:
        """Return alpha_t and sigma_t, as numbers or as tensors that broadcast against `like`."""
        if isinstance(t, float):
            alpha_bar = self.alpha_bar(t)
            return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)
        alpha, sigma = self._levels(t, like)
        return alpha, sigma

    def time_input(self, t: Time, *, like: Tensor) -> Tensor:
        """Return the network's time input at t: float32 (B,), with the batch size of `like`."""
        if isinstance(t, Tensor):
            timesteps: Tensor = self._shown(t, like.new_empty(0, dtype=torch.float32))[0]
            return timesteps.reshape(-1)
        return like.new_full(
            (len(like),), self._interpolate(self.timesteps, t), dtype=torch.float32
        )

    def log_snr(self, t: Time) -> Any:
        """Return log(alpha_t^2 / sigma_t^2), infinite at -1. For a tensor: float64 on the CPU."""
        if isinstance(t, Tensor):
            return torch.where(t.cpu() < 0, math.inf, self._log_snrs[t.cpu().clamp(min=0)])
        return math.inf if t < 0 else self._interpolate(self._log_snrs, t)

    def time_at(self, log_snr: float) -> float:
        """Return the time with this log-SNR, or the nearest one."""
        return find_time(log_snr, self._log_snrs.tolist())

    # -- the Gaussians -----------------------------------------------------------------------------

    def diffuse(self, x0: Tensor, t: Time, noise: Tensor) -> Tensor:
        """Return x_t = alpha_t x_0 + sigma_t eps (Ho et al. 2020, eq. 4)."""
        alpha, sigma = self.alpha_sigma(t, like=x0)
        x_t: Tensor = alpha * x0 + sigma * noise
        return x_t

    def posterior(self, x0: Tensor, x_t: Tensor, t: Time, s: Time | None = None) -> Gaussian:
        """Return q(x_s | x_t, x_0), with variance beta-tilde (Ho et al. 2020, eqs. 6 and 7).

        At s = -1 the mean is x_0. For the variance see `StepCoefficients`.
        """
        pair = self.coefficients(t, s, like=x_t)
        return Gaussian(pair.c1 * x0 + pair.c2 * x_t, pair.log_beta_tilde)

    def transition(self, x_s: Tensor, s: Time, t: Time) -> Gaussian:
        """Return q(x_t | x_s) for s < t, which adds noise to a sample at s.

        N(sqrt(alpha_bar_t / alpha_bar_s) x_s, 1 - alpha_bar_t / alpha_bar_s).
        At s = -1, x_s is clean data.
        """
        pair = self.coefficients(t, s, like=x_s)
        return Gaussian(pair.alpha / pair.alpha_s * x_s, pair.log_beta)

    def prior(self, x0: Tensor) -> Gaussian:
        """Return q(x_{T-1} | x_0), which the prior N(0, 1) approximates."""
        alpha, sigma = self.alpha_sigma(self.num_timesteps - 1, like=x0)
        return Gaussian(alpha * x0, 2 * math.log(sigma))

    # -- times -------------------------------------------------------------------------------------

    def times(
        self, n: int, spacing: str = "trailing", *, log_snr: float = -math.inf
    ) -> list[int] | list[float]:
        """Return the n times that a sampler visits, descending.

        Args:
            log_snr: the log-SNR of the first time, which is the first timestep with this log-SNR
                or a lower one, or T-1 if there is none.

        Raises:
            InvalidArgument: no such spacing, or more times than timesteps.
        """
        choose = lookup(SPACINGS, spacing, "spacing")
        levels: list[float] = self._log_snrs.tolist()
        visited = levels[: self.from_log_snr(log_snr)]
        if not 1 <= n <= len(visited):
            whole = visited == levels
            which = "the model's timesteps" if whole else "the timesteps up to the start's noise"
            raise InvalidArgument(f"must be 1 to {len(visited)}, {which}", argument="steps")
        return choose(n, visited)

    def from_log_snr(self, log_snr: float) -> int:
        """Return the number of timesteps up to the first one with at most this log-SNR."""
        above = int((self._log_snrs > log_snr).sum())
        return min(above + 1, self.num_timesteps)

    def respaced(self, times: Iterable[int | float]) -> Process:
        """Return the process over these times only, with unchanged time inputs of the network."""
        chosen = sorted(times)
        levels = self.betas.new_tensor([1.0, *map(self.alpha_bar, chosen)])
        timesteps = [self._interpolate(self.timesteps, t) for t in chosen]
        return Process(1 - levels[1:] / levels[:-1], timesteps)
