"""What images of a model are drawn with: what is given, else what its file recommends, else the
default."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from diffuse_cli.conditioning import Condition, condition
from diffuse_cli.config import SAMPLER, SAMPLING_STEPS, DrawConfig, SamplerChoice
from diffuse_cli.core.samplers import knobs
from diffuse_cli.events import Notice, Work

if TYPE_CHECKING:
    from diffuse_cli.modelfile import Model


@dataclass(frozen=True)
class DrawSettings:
    """How images are drawn, with nothing left open.

    Attributes:
        options: what the sampler takes beside, for example `eta`.
        condition: the images' classes and guidance, of a model that has them.
        taken: what of it the model file recommended, in words; empty where nothing.
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
        """The part of it that `tune` chooses."""
        return SamplerChoice(
            self.sampler, self.steps, self.condition.scale if self.condition else None
        )


def resolve(config: DrawConfig, model: Model, names: Sequence[str] = ()) -> DrawSettings:
    """The settings of a configuration for a model, of the named classes or of all in turn.

    A recommended sampler and its steps belong together: where another of one is given, the
    recommendation of the other is left out. Guidance is on its own.

    Raises:
        UsageError: classes or guidance of a model without them, or an option that the sampler has
            not.
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
        options=knobs(sampler, **config.knobs),
        condition=wanted,
        threshold=config.threshold,
        seed=config.seed,
        batch_size=config.batch_size,
        taken=", ".join(taken),
    )


def tell(settings: DrawSettings) -> Work[None]:
    """Say what the model file recommended, where it is taken."""
    if settings.taken:
        yield Notice(f"as the model file recommends: {settings.taken}")
