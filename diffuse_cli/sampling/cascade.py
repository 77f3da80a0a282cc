"""Models of `diffuse sample`, MODEL and the one of `--then`, with their sampling settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from diffuse_cli.config.sample_options import IMAGES, SampleConfig
from diffuse_cli.data.metadata_columns import decode_row
from diffuse_cli.media import Array, figures, render_samples
from diffuse_cli.models.image_conditioning import ConditioningInputs
from diffuse_cli.sampling.conditioning import report_out_of_range
from diffuse_cli.sampling.conditioning_inputs import (
    SampleInputs,
    check_follows,
    from_samples,
    read_inputs,
)
from diffuse_cli.sampling.generation import BatchState, generate_batches, to_stored
from diffuse_cli.sampling.model_loading import LoadedModel, load_denoiser, load_guide
from diffuse_cli.sampling.sampling_settings import (
    SamplingSettings,
    report_settings,
    resolve_settings,
)
from diffuse_cli.system import Work
from diffuse_cli.system.rng import key

if TYPE_CHECKING:
    from accelerate import Accelerator
    from PIL.Image import Image

    from diffuse_cli.core import Space
    from diffuse_cli.models.model_file import ModelFile

    Pictures = dict[int, list[Array]]


DESCRIBED = ("seed", "eta", "order", "threshold", "weights")
"""Options that the manifest lists. With sampler, steps and model they decide the images."""


@dataclass(frozen=True)
class CascadeStage:
    """A model of a cascade, and its sampling settings."""

    loaded: LoadedModel
    settings: SamplingSettings

    def show_inputs(self, indices: Iterable[int], given: ConditioningInputs | None) -> Pictures:
        """Return the inputs of images by index, each a list of one picture, uint8 (1 or 3, H, W).

        A model without inputs has none.
        """
        import torch

        encoder = self.loaded.encoder
        if encoder is None or given is None:
            return {}
        cpu = torch.device("cpu")
        return {i: [*encoder.look(given.encode([i], cpu))] for i in indices}

    def make_grid(
        self, samples: Mapping[int, Array], inputs: Mapping[int, list[Array]] = {}, turn: int = 1
    ) -> Image:
        """Return a grid of samples by index, with a row for each input, which comes first.

        Without inputs, it has a row for each condition, or is nearly square.

        Args:
            inputs: pictures of the input of image k, by k modulo `turn`.
        """
        order = sorted(samples)
        stack = render_samples(self.loaded.space, np.stack([samples[i] for i in order]))
        condition, rows = self.settings.condition, dict[Any, list[Array]]()
        if inputs:
            rows = {i: [*inputs[i]] for i in sorted({i % turn for i in order})}
            for i, picture in zip(order, stack, strict=True):
                rows[i % turn].append(picture)
            return figures.arrange_rows(rows.values())
        if condition and (condition.labels or condition.rows):
            for i in range(max(len(condition.labels), len(condition.rows))):
                rows[condition.label(i), condition.row(i)] = []
            for i, picture in zip(order, stack, strict=True):
                rows[condition.label(i), condition.row(i)].append(picture)
        columns = max(map(len, rows.values()), default=0)
        if len(rows) < 2 or columns < 2:
            return figures.arrange_grid(stack)
        blank = np.full_like(stack[0], 255)
        filled = [cell for row in rows.values() for cell in (*row, *[blank] * (columns - len(row)))]
        return figures.arrange_grid(np.stack(filled), columns)

    def describe(self, config: Any) -> dict[str, Any]:
        """Return the settings that decide its images, for the manifest."""
        return {
            **self.settings.describe_steps(),
            **{name: getattr(config, name) for name in DESCRIBED},
            "precision": self.loaded.precision,
            "model": {"sha256": self.loaded.sha256},
            **({"distilled": dict(recipe)} if (recipe := self.loaded.model.distilled) else {}),
        }

    def describe_conditions(self, indices: Sequence[int]) -> dict[str, Any]:
        """Return the class of each image, and its metadata columns, for the manifest."""
        model, condition = self.loaded.model, self.settings.condition
        described, table = dict[str, Any](), model.blueprint.conditions.table
        if condition and condition.labels:
            described["classes"] = [model.classes[condition.label(i)] for i in indices]
        if condition and condition.rows and table:
            described["on"] = [decode_row(table, condition.row(i)) for i in indices]
        return described

    def describe_cycle(self) -> dict[str, Any]:
        """Return the conditions until they repeat, and how many images share each."""
        condition = self.settings.condition
        turn = condition.turn if condition else 1
        count = max(len(condition.labels), len(condition.rows)) if condition else 0
        return {**self.describe_conditions(range(0, count * turn, turn)), "turn": turn}


class StageState(NamedTuple):
    """A state of a sampler on the way to some samples.

    Attributes:
        place: the place of the stage in its chain.
        samples: the samples as stored, (B, C, *size), once the stage is done.
        given: inputs made from samples of the previous stage.
    """

    place: int
    drawing: BatchState
    samples: Array | None
    given: ConditioningInputs | None


@dataclass(frozen=True)
class Cascade:
    """Models, each of which is conditioned on samples of the previous model.

    Attributes:
        offered: inputs of the first model.
    """

    stages: tuple[CascadeStage, ...]
    offered: SampleInputs

    @property
    def last(self) -> CascadeStage:
        """Stage whose samples are written."""
        return self.stages[-1]

    @property
    def space(self) -> Space:
        """Space of the samples."""
        return self.last.loaded.space

    def generate_states(self, part: range, accelerator: Accelerator) -> Iterator[StageState]:
        """Generate the samples with these indices in one batch, and yield each state."""
        device = accelerator.device
        samples: Array | None = None
        given: ConditioningInputs | None = None
        for place, stage in enumerate(self.stages):
            loaded, settings = stage.loaded, stage.settings
            if samples is not None:
                space = self.stages[place - 1].loaded.space
                given = from_samples([*samples], space, loaded, part.start)
            drawings = generate_batches(
                loaded.denoiser, settings, part, space=loaded.space, device=device, given=given
            )
            for drawing in drawings:
                samples = to_stored(loaded.space, drawing.state.x) if drawing.done else None
                yield StageState(place, drawing, samples, given)

    def generate_samples(self, part: range, accelerator: Accelerator) -> Array:
        """Return the samples with these indices as stored, generated in one batch."""
        samples: Array | None = None
        for state in self.generate_states(part, accelerator):  # one at a time, to save memory
            samples = state.samples
        assert samples is not None
        return samples

    def list_indices(self, config: SampleConfig) -> range:
        """Return the indices of the samples that a command asks for."""
        if config.range:
            return range(*config.range)
        return range((config.n or IMAGES) * self.offered.per)


def load_cascade(
    config: SampleConfig,
    accelerator: Accelerator,
    before: Mapping[str, Any] = {},
    file: ModelFile | None = None,
) -> Work[Cascade]:
    """Read the models and the inputs, and resolve the settings.

    Args:
        before: the manifest of the samples to add to.
        file: the first model, if it has been read.

    Raises:
        ModelFileError: not a model file.
        UsageError: options that do not go together.
        DataError: an input cannot be used.
    """
    first = before.get("first") if config.then else before
    options = (config.weights, accelerator, config.precision)
    loaded = yield from load_denoiser(file or config.model, *options, earlier=first)
    given = yield from read_inputs(config, loaded)
    stages = [(yield from _load_stage(config, loaded, accelerator, given.inputs, given.per))]
    if config.then:
        last = yield from load_denoiser(config.then, *options, earlier=before)
        check_follows(loaded.space, last, config.then)
        conditions = last.model.blueprint.conditions
        last_config = replace(  # other noise, and the guidance and start that the model recommends
            config,
            guidance=None,
            guidance_interval=None,
            guide_with=None,
            weak_guidance=None,
            start=None,
            seed=key(config.seed, "then") & 0x7FFF_FFFF_FFFF_FFFF,
            classes=config.classes if conditions.classes else (),
            on=config.on if conditions.table else (),
        )
        stages.append((yield from _load_stage(last_config, last, accelerator, None, given.per)))
    for stage in stages:
        yield from report_settings(stage.settings)
    return Cascade(tuple(stages), given)


def _load_stage(
    config: SampleConfig,
    loaded: LoadedModel,
    accelerator: Accelerator,
    given: ConditioningInputs | None,
    turn: int,
) -> Work[CascadeStage]:
    """Read the guidance model and resolve the settings of a stage."""
    guide = yield from load_guide(config, loaded, accelerator)
    has_input = loaded.model.blueprint.conditions.given is not None
    options = (config, loaded.model, config.classes, config.on)
    settings = resolve_settings(*options, guide=guide, has_input=has_input, given=given, turn=turn)
    yield from report_out_of_range(loaded.model, config.on)
    return CascadeStage(loaded, settings)
