"""How images are drawn: by what is given, else what the model file recommends, else the default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diffuse_cli.conditioning import Condition, condition
from diffuse_cli.config import SAMPLER, SAMPLING_STEPS, DrawConfig, SamplerChoice
from diffuse_cli.core.samplers import sampler_options
from diffuse_cli.events import Notice, Work

if TYPE_CHECKING:
    from diffuse_cli.modelfile import Model


@dataclass(frozen=True)
class DrawSettings:
    """How images are drawn.

    Attributes:
        spacing: a name in `SPACINGS`.
        options: of the sampler, for example `eta`.
        condition: classes and guidance, for a model with classes.
        threshold: the percentile of dynamic thresholding; None clips x_0.
        taken: what the model file recommended and is used, in words.
    """

    sampler: str = SAMPLER
    steps: int = SAMPLING_STEPS
    spacing: str = "trailing"
    options: Mapping[str, float] = field(default_factory=dict)
    condition: Condition | None = None
    threshold: float | None = None
    seed: int = 0
    batch_size: int = 64
    taken: str = ""

    @property
    def choice(self) -> SamplerChoice:
        """The part that `tune` chooses."""
        scale = self.condition.scale if self.condition else None
        return SamplerChoice(self.sampler, self.steps, scale)


def resolve(config: DrawConfig, model: Model, names: Sequence[str] = ()) -> DrawSettings:
    """The settings of a configuration for a model: `names` are the classes to draw, all if empty.

    A recommended sampler is used with its recommended steps or not at all.

    Raises:
        UsageError: a class that the model does not have, or guidance of a model without classes.
        InvalidArgument: an option that the sampler does not take.
    """
    wanted = condition(config, model, names)
    sampler, steps = config.sampler or SAMPLER, config.steps or SAMPLING_STEPS
    taken: list[str] = []
    found = model.sampling
    if found and config.sampler in (None, found.sampler) and config.steps in (None, found.steps):
        sampler, steps = found.sampler, found.steps
        if None in (config.sampler, config.steps):
            taken.append(str(SamplerChoice(sampler, steps)))
    if wanted and found and found.guidance is not None and config.guidance is None:
        taken.append(f"guidance {wanted.scale:g}")
    return DrawSettings(
        sampler=sampler,
        steps=steps,
        spacing=config.spacing,
        options=sampler_options(sampler, **config.sampler_options),
        condition=wanted,
        threshold=config.threshold,
        seed=config.seed,
        batch_size=config.batch_size,
        taken=", ".join(taken),
    )


def tell(settings: DrawSettings) -> Work[None]:
    """Say which of the model file's recommendations are used."""
    if settings.taken:
        yield Notice(f"as the model file recommends: {settings.taken}")
