"""The models of `diffuse sample` and how they draw: the one that is named, and that of `--then`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from diffuse_cli.config import SampleConfig
from diffuse_cli.data.metadata_columns import out_of_range
from diffuse_cli.media import looks
from diffuse_cli.models.image_conditioning import Giver, Inputs
from diffuse_cli.sampling.conditioning import check_columns
from diffuse_cli.sampling.conditioning_inputs import Offered, check_follows, from_samples, offered
from diffuse_cli.sampling.generation import Drawing, Loaded, draw, load_denoiser, stored
from diffuse_cli.sampling.guidance_model import equipped
from diffuse_cli.sampling.sampling_settings import DrawSettings, resolve, tell
from diffuse_cli.system import files
from diffuse_cli.system.errors import UsageError
from diffuse_cli.system.events import Notice, Work
from diffuse_cli.system.rng import key

if TYPE_CHECKING:
    import numpy.typing as npt
    from accelerate import Accelerator

    from diffuse_cli.core.space import Space
    from diffuse_cli.models.model_file import Found
    from diffuse_cli.sampling.generation import Frames

    Array = npt.NDArray[Any]

DESCRIBED = ("seed", "eta", "order", "threshold", "weights")
"""Options that a manifest repeats; with sampler, steps and model they decide the images."""


@dataclass(frozen=True)
class Stage:
    """A model, and how it draws."""

    loaded: Loaded
    settings: DrawSettings

    def given(self, inputs: Inputs | None, turn: int | None = None) -> Stage:
        """The same, told what its images are given.

        Args:
            turn: that of the model that drew the inputs, so that both are told the same of an
                image; None for inputs that each class is drawn of, not the k-th of the k-th alone.
        """
        if inputs is None or self.settings.condition is None:
            return self
        condition = replace(self.settings.condition, given=inputs, turn=turn or len(inputs))
        return replace(self, settings=replace(self.settings, condition=condition))

    def turning(self, first: Stage) -> Stage:
        """The same, whose labels and rows take turns as those of the model before it do."""
        own, before = self.settings.condition, first.settings.condition
        if own is None or before is None:
            return self
        condition = replace(own, turn=before.turn)
        return replace(self, settings=replace(self.settings, condition=condition))

    def draw(self, indices: range, accelerator: Accelerator) -> Iterator[Drawing]:
        """These images."""
        denoiser, space = self.loaded.denoiser, self.loaded.space
        return draw(denoiser, self.settings, indices, space=space, device=accelerator.device)

    def inputs(self, indices: Iterable[int]) -> Frames:
        """What these images are given, by index, each a list of one picture, uint8 (1 or 3, H, W);
        empty for a model that is given nothing."""
        import torch

        giver = Giver.of(self.loaded.model.blueprint)
        wanted = self.settings.condition
        if giver is None or wanted is None or wanted.given is None:
            return {}
        given, device = wanted.given, torch.device("cpu")
        return {i: [*looks(giver.shown, giver.look(given.at([i], device)))] for i in indices}

    def described(self, config: SampleConfig) -> dict[str, Any]:
        """What decides its images, for the manifest."""
        return {
            "sampler": self.settings.sampler,
            "steps": self.settings.steps,
            **self.settings.described_times(),
            **{name: getattr(config, name) for name in DESCRIBED},
            "precision": self.loaded.precision,
            "model": {"sha256": self.loaded.sha256},
            **({"distilled": dict(of)} if (of := self.loaded.model.distilled) else {}),
        }


class Moment(NamedTuple):
    """A state of a sampler on the way to some samples.

    Attributes:
        stage: the model that draws, told what it is given.
        place: of the stage in its chain.
        drawn: the samples as stored, (B, C, *size), once the stage is done.
    """

    stage: Stage
    place: int
    drawing: Drawing
    drawn: Array | None


@dataclass(frozen=True)
class Chain:
    """Models, each of which but the first draws from what the one before it drew.

    Attributes:
        offered: what the first one is given.
    """

    stages: tuple[Stage, ...]
    offered: Offered

    @property
    def last(self) -> Stage:
        """The model whose samples are wanted."""
        return self.stages[-1]

    @property
    def space(self) -> Space:
        """That of the samples."""
        return self.last.loaded.space

    def draw(self, part: range, accelerator: Accelerator) -> Iterator[Moment]:
        """Draw the samples with these indices, in one batch."""
        drawn: Array | None = None
        for place, own in enumerate(self.stages):
            stage = own if drawn is None else self._from(drawn, part)
            for drawing in stage.draw(part, accelerator):
                drawn = stored(stage.loaded.space, drawing.state.x) if drawing.done else None
                yield Moment(stage, place, drawing, drawn)

    def drawn(self, part: range, accelerator: Accelerator) -> Array:
        """The samples with these indices as stored, drawn in one batch."""
        *_, last = self.draw(part, accelerator)
        assert last.drawn is not None
        return last.drawn

    def wanted(self, config: SampleConfig) -> range:
        """The indices of the samples that a command asks for."""
        return range(*config.range) if config.range else range(config.number * self.offered.per)

    def _from(self, drawn: Array, part: range) -> Stage:
        """The last model, given what the first drew; both are told the same of a sample."""
        first, last = self.stages
        inputs = from_samples([*drawn], first.loaded.space, last.loaded, part.start)
        wanted = first.settings.condition
        return last.given(inputs, wanted.turn if wanted else 1)


def load_chain(
    config: SampleConfig,
    accelerator: Accelerator,
    before: Mapping[str, Any] = {},
    found: Found | None = None,
) -> Work[Chain]:
    """Read the models, and what the samples are given.

    Args:
        before: the manifest of earlier samples that are added to.
        found: the first model, if it is read already.

    Raises:
        ModelFileError: not a model file.
        UsageError: options that do not go together.
        DataError: what is given cannot be used.
    """
    first = before.get("first") if config.then else before
    first = first if isinstance(first, dict) else {}
    stage = yield from load_stage(config, config.model, accelerator, first, found)
    last = (yield from load_last_stage(config, accelerator, before)) if config.then else None
    given = yield from offered(config, stage.settings, stage.loaded)
    stage = stage.given(given.inputs)
    yield from tell(stage.settings)
    if last is None:
        return Chain((stage,), given)
    check_follows(stage.loaded.space, last.loaded)
    yield from tell(last.settings)
    return Chain((stage, last.turning(stage)), given)


def load_stage(
    config: SampleConfig,
    path: str,
    accelerator: Accelerator,
    earlier: Mapping[str, Any],
    found: Found | None = None,
) -> Work[Stage]:
    """A model, in the precision in which earlier samples were drawn, if it is `auto`."""
    precision = config.precision
    if precision == "auto" and earlier.get("precision") in ("fp32", "bf16"):
        precision = earlier["precision"]
    typed = precision == config.precision
    loaded = yield from load_denoiser(
        found or path, config.weights, accelerator, precision, typed=typed
    )
    conditions, first = loaded.model.blueprint.conditions, path == config.model
    classes = config.classes if conditions.classes or first else ()
    on = config.on if conditions.table or first else ()
    settings = resolve(config, loaded.model, classes, on)
    wanted, table = settings.condition, conditions.table
    check_columns(loaded.model, wanted)
    if table:
        for line in out_of_range(table, on):
            yield Notice(line, warning=True)
    if wanted and config.guidance is None and not wanted.tells(loaded.model):
        settings = replace(settings, condition=replace(wanted, scale=1.0))  # all scales are one
    return Stage(loaded, (yield from equipped(settings, loaded, accelerator)))


def load_last_stage(
    config: SampleConfig, accelerator: Accelerator, earlier: Mapping[str, Any]
) -> Work[Stage]:
    """The model of --then, which draws from other noise than the first."""
    assert config.then is not None
    own = replace(
        config,
        guide_with=None,
        weak_guidance=None,
        start=None,
        seed=key(config.seed, "then") & 0x7FFF_FFFF_FFFF_FFFF,
    )
    stage = yield from load_stage(own, config.then, accelerator, earlier)
    if stage.loaded.model.blueprint.conditions.given is None:
        raise UsageError(
            f"--then {files.show(config.then)}: the model was trained without --given",
            "Name one that draws from what the first draws, such as of --given low-res:4",
        )
    return stage
