"""What metrics read, made part by part when it is first needed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from diffuse_cli.config import EvalConfig
from diffuse_cli.core.samplers import knobs
from diffuse_cli.evaluation.bounds import Bound, joined, measure
from diffuse_cli.evaluation.cache import cached, computed
from diffuse_cli.evaluation.images import Labelled, Pixels
from diffuse_cli.evaluation.team import Team
from diffuse_cli.events import Work
from diffuse_cli.features import FeatureNetwork
from diffuse_cli.sampling import Loaded, collect, draw

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffuse_cli.conditioning import Condition

Array = npt.NDArray[Any]


@dataclass
class Evaluation:
    """An evaluation under way: what its metrics may read, made part by part when first needed."""

    config: EvalConfig
    accelerator: Accelerator
    network: FeatureNetwork
    loaded: Loaded | None
    condition: Condition | None
    real: Labelled
    fakes: Labelled | None = None
    bound: Bound | None = None
    bits: Array = field(default_factory=lambda: np.zeros((0, 3)))
    real_features: Array = field(default_factory=lambda: np.zeros((0, 0)))
    fake_features: Array = field(default_factory=lambda: np.zeros((0, 0)))
    made: set[str] = field(default_factory=set)

    @property
    def team(self) -> Team:
        """The processes of this evaluation, each of which makes its share of every part."""
        return Team.of(self.accelerator)

    def make(self, part: str) -> Work[None]:
        """Make a part of `PARTS`, once."""
        if part not in self.made:
            self.made.add(part)
            yield from PARTS[part](self)

    def can_measure(self, needs: tuple[str, ...]) -> bool:
        """Whether the parts can be made: likelihood needs a model."""
        return self.loaded is not None or "bits" not in needs

    def of_class(self, label: int) -> Evaluation:
        """The part of a finished evaluation that is of one class."""
        assert self.fakes is not None
        ours, theirs = self.real.labels == label, self.fakes.labels == label
        return replace(
            self,
            real=self.real.of_class(label),
            fakes=self.fakes.of_class(label),
            bits=self.bits[ours] if len(self.bits) else self.bits,
            real_features=self.real_features[ours],
            fake_features=self.fake_features[theirs],
        )


def _make_bits(evaluation: Evaluation) -> Work[None]:
    """The bound of each real image, on the process of the model or a respaced one."""
    config, loaded = evaluation.config, evaluation.loaded
    assert loaded is not None
    denoiser = loaded.denoiser
    if config.respaced is not None:
        denoiser = denoiser.respaced(denoiser.process.times(config.respaced))
    labels = None
    if num_classes := loaded.model.unet.num_classes:
        labels = np.where(evaluation.real.labels < 0, num_classes, evaluation.real.labels)
    own = yield from measure(
        denoiser,
        evaluation.real.pixels,
        labels,
        evaluation.team.share(len(evaluation.real), config.batch_size),
        timesteps=config.timesteps,
        seed=config.seed,
        batch_size=config.batch_size,
        device=evaluation.accelerator.device,
    )
    evaluation.bound = joined(evaluation.team.gather(own))
    evaluation.bits = evaluation.bound.parts()


def _make_features(evaluation: Evaluation) -> Work[None]:
    """Features of real and generated images; generates where there is a model."""
    if evaluation.fakes is None:
        evaluation.fakes = yield from _generate(evaluation)
    network, team = evaluation.network, evaluation.team
    evaluation.real_features = yield from cached(network, evaluation.real.pixels, team)
    evaluation.fake_features = yield from computed(network, evaluation.fakes.pixels, team)


def _generate(evaluation: Evaluation) -> Work[Labelled]:
    config, loaded = evaluation.config, evaluation.loaded
    assert loaded is not None
    own = evaluation.team.share(config.n, config.batch_size)
    mine: dict[int, Pixels] = {}
    drawings = draw(
        loaded.denoiser,
        shape=loaded.shape,
        indices=own,
        seed=config.seed,
        times=loaded.denoiser.process.times(config.steps, config.spacing),
        device=evaluation.accelerator.device,
        sampler=config.sampler,
        batch_size=config.batch_size,
        options=knobs(config.sampler, **config.knobs),
        condition=evaluation.condition,
        threshold=config.threshold,
    )
    yield from collect(drawings, len(own), mine)
    pixels = {i: image for part in evaluation.team.gather(mine) for i, image in part.items()}
    wanted = evaluation.condition
    labels = [wanted.label(i) if wanted else -1 for i in range(config.n)]
    return Labelled(np.stack([pixels[i] for i in range(config.n)]), np.array(labels, np.int64))


PARTS: dict[str, Callable[[Evaluation], Work[None]]] = {
    "bits": _make_bits,
    "features": _make_features,
}
