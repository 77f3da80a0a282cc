"""Description of a run at its start, and the commands that resume it and sample from its model."""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator

from diffuse_cli.config import options
from diffuse_cli.config.sample_options import SampleConfig
from diffuse_cli.config.train_options import TrainConfig
from diffuse_cli.core import dimensions
from diffuse_cli.core.networks import count_parameters
from diffuse_cli.data import Dataset, is_images, samples, summary
from diffuse_cli.data.metadata_columns import examples, split_vector_file
from diffuse_cli.media import MEDIA, figures, render_samples
from diffuse_cli.media.file_errors import public_name
from diffuse_cli.system import Notice, Work, files, plural, run_reader
from diffuse_cli.system.accelerator import redirect_trackers
from diffuse_cli.training.plan import Plan
from diffuse_cli.training.run_directory import RunDirectory
from diffuse_cli.training.run_events import Started
from diffuse_cli.training.trainer import Trainer
from diffuse_cli.training.training_conditions import find_pairs

TYPED_AGAIN = (
    "gradient_checkpointing", "strict", "cache", "workers", "save_every", "log", "log_every",
    "keep",
)  # fmt: skip
"""Options that a run directory does not keep, and that a resumed run needs again."""

SHEET, SHEET_SIDE = 24, 1200
"""Training samples on the contact sheet of a run, and its most pixels along a side."""

INPUTS = 16
"""The number of conditioning inputs to select from a source without single files."""


def describe_start(trainer: Trainer, run: RunDirectory, step: int) -> Started:
    """Describe the data and the configuration, with a contact sheet and the next commands."""
    plan, config, data = trainer.plan, trainer.config, trainer.plan.data
    indices = samples.select_evenly(data.train, SHEET)
    pictures = render_samples(plan.blueprint.space, data.read(indices))
    sheet = figures.shrink_image(figures.arrange_grid(pictures, SHEET // 2), SHEET_SIDE)
    pairs, (_, vectors) = find_pairs(config.given), split_vector_file(config.condition_on or ())
    arguments = [config.data, *(["--given", pairs] if pairs else [])]
    arguments += ["--condition-on", vectors] if vectors else []
    in_memory = any(name.startswith(run_reader.MEMORY) for name in arguments)
    evaluate = shlex.join(["diffuse", "eval", str(run.model), *arguments])
    return Started(
        step=step,
        steps=trainer.progress.steps,
        data=tuple(data.images.summary.lines()),
        network=describe_run(trainer),
        sheet=figures.encode_png(sheet),
        lines={
            "resume": resume_line(config),
            "sample": sample_line(plan, run.model),
            "evaluate": "" if in_memory else evaluate,
        },
        page=run.page,
    )


def begin_trackers(config: TrainConfig, accelerator: Accelerator, run: RunDirectory) -> Work[None]:
    """Start the trackers of --log with the configuration, without paths, and report how to look."""
    if config.log:
        values = {
            f.name: options.place_name(value) if spec.place and isinstance(value, str) else value
            for f, spec in options.option_fields(config)
            if isinstance(value := getattr(config, f.name), (int, float, str))
        }
        with redirect_trackers():
            accelerator.init_trackers("diffuse", config=values)
    if config.log == "tensorboard":
        line = shlex.join(["tensorboard", "--logdir", files.show(run.logs)])
        yield Notice(f"See the run in a browser with: {line}")


def describe_run(trainer: Trainer) -> str:
    """Describe the configuration in one line."""
    config, images = trainer.config, trainer.plan.data.images
    accelerator = trainer.accelerator
    processes, size = accelerator.num_processes, images.space.size
    fitted = summary.describe_fit(images.summary.sizes, size, config.fit, images.medium)
    preset = f", preset {config.preset}" if config.preset else ""
    shared = f" on {processes} processes" if processes > 1 else ""
    compiled = ", compiled" if config.compile else ""
    passes = trainer.accumulation
    parts = f" in {passes} parts" if passes > 1 else ""
    length = f"--minutes {config.minutes:g}" if config.minutes else plural(config.num_steps, "step")
    return (
        f"training {config.network}{preset}, "
        f"{count_parameters(trainer.ema.net):,} parameters; "
        f"{MEDIA[images.medium].many} at {dimensions(size)}{fitted}; "
        f"batch {config.batch_size}{parts}{shared}, learning rate {config.lr:.3g}, "
        f"{config.precision} on {accelerator.device.type}{compiled}; {length}"
    )


def resume_line(config: TrainConfig) -> str:
    """Return the command that resumes a run."""
    return run_reader.resume_line(
        config.data, config.out, options.to_arguments(config, TYPED_AGAIN)
    )


def explain_no_steps(config: TrainConfig, step: int) -> Notice:
    """Return a notice of why a resumed run takes no step, and what to do."""
    if config.stop_at is not None and config.stop_at < config.num_steps:
        text = f"--stop-at {config.stop_at:,} is not after step {step:,}, which the run has taken"
        return Notice(f"{text}: nothing to do. Remove it, or set a larger one")
    line = run_reader.extend_line(resume_line(config), config.num_steps, config.minutes)
    return Notice(f"the run is finished, at step {step:,}. To train more: {line}")


def sample_line(plan: Plan, model: Path) -> str:
    """Return a command that runs as it is, into a folder that does not exist yet.

    A conditional model gets an input and values from the training data. The result is empty if the
    data is in a program's memory, or if `sample` would read the file of inputs as a single sample.
    """
    config = plan.config
    if any((name or "").startswith(run_reader.MEMORY) for name in (config.data, config.given)):
        return ""
    given = plan.blueprint.conditions.given
    source = config.given if given and given.is_paired else config.data
    if given and not is_images(Path(source or ""), single=True):
        return ""
    arguments = [*_list_condition_options(plan), *_list_output_options()]
    return shlex.join(["diffuse", "sample", str(model), *arguments])


NOISE, INFINITE = "are not better than noise by KID", "have NaN or infinite values"
"""Flaws of the samples after the last step."""


def advise(plan: Plan, model: Path, flaw: str) -> str:
    """Return a sentence with the next command after a run, empty if `sample_line` is.

    Args:
        flaw: `NOISE`, `INFINITE` or empty.
    """
    medium, size = MEDIA[plan.data.images.medium], plan.blueprint.space.size
    if flaw == NOISE:
        resume = resume_line(plan.config)
        longer = run_reader.extend_line(resume, plan.config.num_steps, plan.config.minutes)
        usual = medium.sides.get(len(size), max(size))
        smaller = f", or start again with --size {usual}" if max(size) > usual else ""
        return f"The {medium.many} {flaw}. Train longer: {longer}{smaller}"
    if flaw:
        lower = f"for example --lr {(plan.config.lr or 0) / 4:.1g}"
        return f"The {medium.many} {flaw}. Train again with a lower learning rate, {lower}"
    line = sample_line(plan, model)
    return f"Generate {medium.many} with: {line}" if line else ""


def _list_condition_options(plan: Plan) -> Iterator[str]:
    """Yield the options that set a model's conditions."""
    conditions = plan.blueprint.conditions
    for name, value in examples(conditions.table).items():
        yield from ("--on", f"{name}={value}")
    if vectors := split_vector_file(plan.config.condition_on or ())[1]:
        yield from ("--on-vector", vectors)
    if conditions.given is None:
        return
    unseen = int([*plan.data.held_out, *plan.data.train][0])
    if conditions.given.is_paired:
        pairs, source = plan.data.pairs, plan.config.given
        assert pairs is not None
        assert source is not None
        yield from _list_input_options(source, pairs.given, int(pairs.rows[unseen]))
    else:
        yield from _list_input_options(plan.config.data, plan.data.images, unseen)
        yield "--degrade"


def _list_input_options(source: str, inputs: Dataset, index: int) -> Iterator[str]:
    """Yield the option for a sample's file, or else for the first samples of its source."""
    file = Path(source) / inputs.names[index]
    if file.is_file() and public_name(file.name) == file.name:
        yield from ("--given", str(file))
    else:
        yield from ("--given", source, "--range", f"0:{INPUTS}")


def _list_output_options() -> Iterator[str]:
    """Yield the option for an output folder if the default folder exists already."""
    name = SampleConfig.out
    if Path(name).exists():
        free = (f"{name}-{k}" for k in itertools.count(2))
        yield from ("-o", next(folder for folder in free if not Path(folder).exists()))
