"""What is in a set of images, a model file or a run."""

from __future__ import annotations

import stat
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffuse_cli.commands._cli.console import brief, said
from diffuse_cli.config import InfoConfig
from diffuse_cli.core.gaussian_start import NAME as LOW_FREQUENCIES
from diffuse_cli.system import files, run_reader
from diffuse_cli.system.errors import DataError, UsageError
from diffuse_cli.system.events import Work
from diffuse_cli.system.files import show
from diffuse_cli.system.hub_models import is_name

if TYPE_CHECKING:
    from diffuse_cli.commands.info.reports import DataReport, RunReport
    from diffuse_cli.config import SamplerChoice
    from diffuse_cli.models.model_report import ModelReport


HINT = "PATH is a folder or an archive of images, a model file or a run directory"


def inspect(config: InfoConfig) -> Work[DataReport | ModelReport | RunReport]:
    """Describe what is at the path. Yields `Progress` and `Notice`.

    Raises:
        DataError: there is nothing, neither folder nor regular file, or no usable image.
        ModelFileError: the file is not a model file.
        UsageError: an option does not suit it.
        OutputError: the contact sheet cannot be written.
    """
    from diffuse_cli.data import is_images
    from diffuse_cli.data.sources import is_sample, mode_of

    path = Path(config.path)
    if is_images(path) or is_sample(path):
        if config.toml:
            raise UsageError(f"--toml is for model files, and {files.show(path)} holds images")
        from diffuse_cli.commands.info.reports import inspect_data

        return (yield from inspect_data(config))
    if is_name(path):
        from diffuse_cli.models.model_report import inspect_model

        return (yield from inspect_model(config))
    mode = mode_of(path, HINT)
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise DataError(f"neither a folder nor a regular file: {files.show(path)}", HINT)
    if run_reader.run_at(path) == path:
        from diffuse_cli.commands.info.reports import inspect_run

        return (yield from inspect_run(config, path))
    from diffuse_cli.models.model_report import inspect_model

    return (yield from inspect_model(config))


# -- words ----------------------------------------------------------------------------------------

# What is in a model file, as labels and texts.

MOST_LISTED = 100
"""The most settings in a table of a model file to print."""

Rows = list[tuple[str, str]]


def labelled(label: str, texts: Iterable[str]) -> Rows:
    """Lines under one label, which is on the first."""
    return [("" if i else label, text) for i, text in enumerate(texts)]


def model_rows(found: ModelReport) -> Rows:
    return [
        ("model", show(found.path)),
        ("title", brief(found.title) or "none"),
        ("file", f"{found.size_bytes:,} bytes, SHA-256 {found.sha256}"),
        ("weights", _weights(found)),
        ("parameters", f"{found.parameters:,}"),
        *labelled("network", _network(found)),
        ("process", _process(found)),
        ("classes", listed(found.classes) or "none: trained without --classes"),
        *([("given", _given(found))] if found.blueprint.conditions.given else []),
        *labelled("told", _told(found)),
        ("step", brief(f"{found.step:,}")),
        *([("distilled", _distilled(found.distilled))] if found.distilled else []),
        *(_recommended(found.sampling) if found.sampling else []),
        *labelled("data", _settings(_without_numbers(found.data))),
        *labelled("training", _settings(found.training)),
        *labelled("versions", _settings(found.versions)),
    ]


def _distilled(of: Mapping[str, Any]) -> str:
    """What it was made from, and what it follows."""
    guided = f", guided at {of['guidance']:g}" if "guidance" in of else ""
    return brief(f"from the model of SHA-256 {of['teacher']}{guided}")


def _recommended(sampling: SamplerChoice) -> Rows:
    listed = ", ".join(f"{time:g}" for time in sampling.times or ())
    return [
        ("recommended", show(str(sampling))),
        *([("times", brief(listed))] if listed else []),
    ]


def _weights(found: ModelReport) -> str:
    kinds = "averaged and raw" if found.raw else "averaged"
    if found.weak is None:
        return kinds
    return f"{kinds}; the average of step {found.weak:,}, for --guide-with self"


def _network(found: ModelReport) -> list[str]:
    from diffuse_cli.core.networks import NETWORKS
    from diffuse_cli.models.model_report import kind_of

    own, space = found.blueprint, found.blueprint.space
    count = own.conditions.num_classes
    conditional = f", conditional on {count:,} classes" if count else ""
    lines = NETWORKS[own.network].describe(own.config, space)
    return [f"{own.network}, {kind_of(space)}{conditional}", *map(show, lines)]


def _given(found: ModelReport) -> str:
    from diffuse_cli.models.image_conditioning import Giver
    from diffuse_cli.models.model_report import kind_of

    giver = Giver.of(found.blueprint)
    assert giver is not None
    own = giver.given
    noise = f", with noise of up to {own.noise:g}" if own.noise else ""
    return f"{show(own.what)}: {kind_of(giver.inputs)}; dropped from {own.dropout:.0%}{noise}"


def _told(found: ModelReport) -> list[str]:
    """The columns, for `sample --on`."""
    from diffuse_cli.data.metadata_columns import described

    table = found.blueprint.conditions.table
    return [f"{brief(c.name)}: {described(c)}" for c in table.columns] if table else []


def _process(found: ModelReport) -> str:
    diffusion = found.blueprint.diffusion
    betas = "custom betas" if diffusion.betas else f"schedule {show(diffusion.schedule)}"
    moved = f", log-SNR shifted by {diffusion.log_snr_shift:+g}" if diffusion.log_snr_shift else ""
    zero = " at zero terminal SNR" if diffusion.zero_terminal_snr else ""
    return (
        f"{betas}{moved}{zero}, {diffusion.num_timesteps:,} timesteps, "
        f"target {show(diffusion.target)}, variance {show(diffusion.variance)}"
    )


def _settings(values: Mapping[str, Any], before: str = "") -> list[str]:
    """A line for the settings, and one for each table in them."""
    tables = {name: value for name, value in values.items() if isinstance(value, Mapping)}
    single = [f"{brief(k)}={brief(said(v))}" for k, v in values.items() if k not in tables]
    lines = [f"{before}{listed(single)}"] if single else []
    for name, table in tables.items():
        lines += _settings(table, f"{before}{brief(name)}: ")
    return lines if len(lines) <= MOST_LISTED else [*lines[:MOST_LISTED], "..."]


def _without_numbers(data: Mapping[str, Any]) -> dict[str, Any]:
    """What is known of the data, without the tables of its low frequencies."""
    return {k: "measured" if k == LOW_FREQUENCIES else v for k, v in data.items()}


def listed(words: Sequence[str]) -> str:
    """The first of the words, and how many more there are."""
    return ", ".join(map(brief, words[:MOST_LISTED])) + more(len(words) - MOST_LISTED)


def more(count: int) -> str:
    return f" and {count:,} more" if count > 0 else ""
