"""A model of `diffuse sample`, and how it draws: the one that is named, or that of `--then`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diffuse_cli import files
from diffuse_cli.columns import out_of_range
from diffuse_cli.conditioning import check_columns
from diffuse_cli.config import SampleConfig
from diffuse_cli.draws import key
from diffuse_cli.errors import UsageError
from diffuse_cli.events import Notice, Work
from diffuse_cli.givens import Giver, Inputs
from diffuse_cli.guiding import equipped
from diffuse_cli.resolving import DrawSettings, resolve
from diffuse_cli.sampling import Drawing, Loaded, draw, load_denoiser, looks

if TYPE_CHECKING:
    from accelerate import Accelerator

    from diffuse_cli.sheets import Frames

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


def load_stage(
    config: SampleConfig, path: str, accelerator: Accelerator, earlier: Mapping[str, Any]
) -> Work[Stage]:
    """A model, in the precision in which earlier samples were drawn, if it is `auto`."""
    precision = config.precision
    if precision == "auto" and earlier.get("precision") in ("fp32", "bf16"):
        precision = earlier["precision"]
    loaded = yield from load_denoiser(path, config.weights, accelerator, precision)
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
        seed=key(config.seed, "then") & 0x7FFF_FFFF_FFFF_FFFF,
    )
    stage = yield from load_stage(own, config.then, accelerator, earlier)
    if stage.loaded.model.blueprint.conditions.given is None:
        raise UsageError(
            f"--then {files.show(config.then)}: the model was trained without --given",
            "Name one that draws from what the first draws, such as of --given low-res:4",
        )
    return stage
