"""EMA weights: the exponential moving average, and power-function averages of any length.

A power-function average of weights theta(tau) after t updates is the mean of theta under the
profile p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1) on [0, t], whose length grows with the run
(Karras et al. 2024a, section 3.1). Its length is the profile's standard deviation as a fraction of
t. Update t keeps beta(t) = (1 - 1/t)^(gamma + 1) of the average. Training tracks two averages and
saves snapshots. The profile of any other length is a least-squares combination of the profiles in
the snapshots, divided by the sum of its coefficients, and its weights are the same combination
(appendix C).
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from diffuse_cli.models import tensor_file
from diffuse_cli.system import files
from diffuse_cli.system.descriptors import open_regular_file
from diffuse_cli.training.optimization import ProgressSchedule

KEPT_LENGTHS = (0.05, 0.10)
"""The lengths of the averages that training tracks."""


UNIFORM = 12**-0.5
"""Length of the mean of all weights of a run, which no profile exceeds."""


def gamma_of(length: float) -> float:
    """Return the exponent of the profile of a length.

    It is the largest root of the cubic length^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)).
    """
    inverse = length**-2
    roots = np.roots([1, 7, 16 - inverse, 12 - inverse])
    return float(max(root.real for root in roots if abs(root.imag) < 1e-9))


@dataclass(frozen=True)
class Profile:
    """Weights of `updates` updates in an average, proportional to tau^gamma."""

    gamma: float
    updates: float

    def dot(self, profile: Profile) -> float:
        """Return the integral of the product of two profiles."""
        a, b = (self, profile) if self.updates <= profile.updates else (profile, self)
        above: float = (a.gamma + 1) * (b.gamma + 1) * (a.updates / b.updates) ** b.gamma
        return above / ((a.gamma + b.gamma + 1) * b.updates)


@dataclass(frozen=True)
class Combination:
    """Coefficients of profiles, and the fraction of the fitted profile's norm that they miss."""

    coefficients: npt.NDArray[np.float64]
    error: float


def fit_profile(given: Sequence[Profile], profile: Profile) -> Combination:
    """Return the least-squares combination for a profile, scaled to integrate to 1.

    Least squares alone leave a sum below or above 1 (0.95 for two snapshots at length 0.12), which
    would scale all weights.
    """
    products = np.array([[a.dot(b) for b in given] for a in given])
    aims = np.array([a.dot(profile) for a in given])
    coefficients, *_ = np.linalg.lstsq(products, aims, rcond=1e-14)
    coefficients /= coefficients.sum()
    norm = profile.dot(profile)
    residual = norm - 2 * float(coefficients @ aims) + float(coefficients @ products @ coefficients)
    return Combination(coefficients, math.sqrt(max(residual, 0.0) / norm))


class PowerAverages:
    """Power-function averages of the parameters of `net`, one for each of `KEPT_LENGTHS`.

    Attributes:
        updates: the number of weight updates so far.
    """

    def __init__(self, net: nn.Module) -> None:
        self.updates = 0
        self.gammas = [gamma_of(length) for length in KEPT_LENGTHS]
        self._names = [name for name, _ in net.named_parameters()]
        self._averages = [[p.detach().clone() for p in net.parameters()] for _ in self.gammas]

    def update(self, net: nn.Module, updates: int = 1) -> None:
        """Move towards `net` after `updates` updates of its weights.

        The decays of several updates multiply to (t / (t + updates))^(gamma + 1).
        """
        if updates == 0:
            return
        ratio = self.updates / (self.updates + updates)
        now = select_parameters(net, self._names)
        with torch.no_grad():
            for gamma, average in zip(self.gammas, self._averages, strict=True):
                torch._foreach_lerp_(average, now, 1 - ratio ** (gamma + 1))
        self.updates += updates

    def tensors(self) -> dict[str, Tensor]:
        """Return the averages by length and name."""
        return {
            f"{length:.2f}/{name}": tensor
            for length, average in zip(KEPT_LENGTHS, self._averages, strict=True)
            for name, tensor in zip(self._names, average, strict=True)
        }

    def restore(self, tensors: Mapping[str, Tensor], updates: int) -> None:
        """Restore the result of `tensors` after `updates` updates."""
        with torch.no_grad():
            for name, tensor in self.tensors().items():
                tensor.copy_(tensors[name])
        self.updates = updates


def snapshot_due(step: int, progress: ProgressSchedule, count: int) -> bool:
    """Whether to save the averages after `step` steps: at most `count` times, evenly spaced."""
    return progress.crosses(-(-progress.steps // count), step) or step == progress.steps


def save_snapshot(
    folder: Path, powers: PowerAverages, step: int, progress: ProgressSchedule, count: int
) -> None:
    """Save the averages, and remove snapshots that were due for another number of steps.

    After a change of the run's length by --minutes, all earlier snapshots stay.
    """
    about = {"lengths": list(KEPT_LENGTHS), "updates": powers.updates, "step": step}
    metadata = {"diffuse.ema": json.dumps(about, sort_keys=True)}
    tensor_file.write(folder / f"step-{step:08d}.safetensors", powers.tensors(), metadata)
    for snapshot_step, path in list_snapshots(folder):
        if not progress.since and not snapshot_due(snapshot_step, progress, count):
            files.remove(path)


def list_snapshots(folder: Path) -> list[tuple[int, Path]]:
    """List the snapshots in a folder, sorted by step."""
    snapshots = [(p.stem.removeprefix("step-"), p) for p in folder.glob("step-*.safetensors")]
    return sorted((int(step), path) for step, path in snapshots if step.isdecimal())


@dataclass(frozen=True)
class Snapshot:
    """File of averages, with each profile by its prefix in the file."""

    path: Path
    step: int
    profiles: Mapping[str, Profile]


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot's metadata.

    Raises:
        OSError, ValueError: not a snapshot.
    """
    with open_regular_file(path) as file:
        text = tensor_file.read_header(file).metadata.get("diffuse.ema", "null")
    about: Any = tensor_file.parse_json(text.encode())
    try:
        updates, lengths = int(about["updates"]), [float(v) for v in about["lengths"]]
        if updates < 1 or not all(0 < v < UNIFORM for v in lengths):
            raise ValueError("it is not a snapshot of averages")
        profiles = {f"{v:.2f}/": Profile(gamma_of(v), updates) for v in lengths}
        return Snapshot(path, int(about["step"]), profiles)
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError("it is not a snapshot of averages") from error


def combine_weights(
    given: Sequence[Snapshot], combinations: Sequence[Combination]
) -> Iterator[dict[str, Tensor]]:
    """Yield the weights, float32, of each combination of all averages in the snapshots.

    Raises:
        OSError, ValueError: a snapshot cannot be read, or the networks differ.
    """
    for combination in combinations:
        sums: dict[str, Tensor] = {}
        coefficients = iter(combination.coefficients.tolist())
        for snapshot in given:
            tensors = tensor_file.read(snapshot.path)
            for prefix in snapshot.profiles:
                share = next(coefficients)
                average = {
                    n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
                }
                if sums and shapes_of(average) != shapes_of(sums):
                    raise ValueError(f"{files.show(snapshot.path)} is of another network")
                for name, tensor in average.items():
                    before = sums.get(name, torch.zeros(tensor.shape, dtype=torch.float64))
                    sums[name] = before + share * tensor.double()
        yield {name: tensor.float() for name, tensor in sums.items()}


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor by its name."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


# The average of the weights that generates samples.

POWER = 0.75
EAGER, EVERY = 64, 4
"""The average is updated after each of the first `EAGER` steps, then every `EVERY` steps."""


def decay_at(update: int, largest: float) -> float:
    """Return the decay of the n-th update: min(largest, 1 - (n + 1)^-0.75), 0 at the first.

    The memory grows: early in a run, the average forgets the random initial weights, so even a
    short run samples from sensible weights.
    """
    decay: float = 1 - (update + 1) ** -POWER
    return min(largest, decay)


def is_update_due(step: int, steps: int) -> bool:
    """Whether to update the average after `step` of `steps` steps."""
    return step <= EAGER or step % EVERY == 0 or step == steps


@dataclass(frozen=True)
class EarlyWeights:
    """EMA weights after `step` steps, on the CPU, for autoguidance.

    They are from the fraction `SHARE` of the run (benchmarks/README.md).
    """

    SHARE: ClassVar[float] = 0.125

    step: int
    weights: Mapping[str, Tensor]

    @classmethod
    def of(cls, average: EmaAverage, step: int) -> EarlyWeights:
        """Copy an average."""
        weights = average.net.state_dict()
        return cls(step, {name: tensor.detach().cpu().clone() for name, tensor in weights.items()})


def select_parameters(net: nn.Module, names: Iterable[str]) -> list[Tensor]:
    """Return the parameters of `net` with these names, in their order."""
    parameters = dict(net.named_parameters())
    return [parameters[name] for name in names]


class EmaAverage:
    """Exponential moving average of the weights of `net`. Buffers are not averaged.

    Attributes:
        net: the averaged network, without gradients.
        updates: the number of weight updates so far.
        forgotten: the number of updates before the average was last reset.
    """

    def __init__(self, net: nn.Module, largest: float) -> None:
        self.net = copy.deepcopy(net).requires_grad_(False).eval()
        self.largest = largest
        self.updates = self.forgotten = 0

    def update(self, net: nn.Module, updates: int = 1) -> None:
        """Move towards `net` after `updates` updates of its weights.

        The decays of these updates multiply, as if each had left the weights as they are now.
        """
        if updates == 0:
            return
        first = self.updates - self.forgotten
        decays = [decay_at(first + n, self.largest) for n in range(updates)]
        with torch.no_grad():
            weight = 1 - math.prod(decays)
            average = dict(self.net.named_parameters())
            torch._foreach_lerp_([*average.values()], select_parameters(net, average), weight)
        self.updates += updates
