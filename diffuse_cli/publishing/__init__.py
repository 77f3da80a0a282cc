"""`diffuse push`: a model, its card and a picture of samples in one folder, and that on the hub."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse_cli import files, modelfile, pictures, sheets
from diffuse_cli.config import PushConfig, SampleConfig
from diffuse_cli.errors import ModelFileError, OutputError, UsageError
from diffuse_cli.events import Notice, Progress, Work
from diffuse_cli.givens import Giver
from diffuse_cli.hub.models import MODEL_FILE
from diffuse_cli.hub.pushing import check_free, pushed, upload
from diffuse_cli.inspection.model import report_on
from diffuse_cli.modelfile import Found
from diffuse_cli.outputs import check_suffix
from diffuse_cli.publishing.card import card
from diffuse_cli.runtime import machine
from diffuse_cli.stages import load_chain

CARD, SAMPLES, NUMBERS = "README.md", "samples.png", "eval.json"
OWNED = (SAMPLES, NUMBERS)
"""Files that say something of one model, and go with it."""
"""Names of the files beside the model."""

DRAWN = 16
"""Samples on the picture."""


@dataclass(frozen=True)
class Pushed:
    """What was published.

    Attributes:
        folder: where it was written, with -o.
        address: of the commit, without -o.
        files: names of the files.
        sha256: of the model file.
    """

    folder: Path | None
    address: str | None
    files: tuple[str, ...]
    sha256: str


def push(config: PushConfig) -> Work[Pushed]:
    """Make the folder of a model and publish it, or with -o leave it there.

    Raises:
        ModelFileError: not a model file.
        UsageError: TARGET is not a name, or the numbers are of another model.
        OutputError: the folder is not empty, the hub holds a model already, or refuses this one.
    """
    pushed(config.target)
    if config.samples:
        check_suffix(Path(config.samples), ".png", "--samples")
    out = None if config.out is None else Path(config.out)
    if out is not None:
        _check_empty(out, config.overwrite)
    elif not config.overwrite:
        check_free(config.target)
    found = yield from modelfile.find(config.model)
    numbers = _numbers(config, found) if config.eval else None
    picture, drawn = yield from _picture(config, found)
    with tempfile.TemporaryDirectory(prefix="diffuse-push-") as temporary:
        folder = out or Path(temporary)
        files.make_folder(folder)
        for name in OWNED:  # of another model, which was here
            files.remove(folder / name)
        with files.writing(folder / MODEL_FILE) as copy, found.path.open("rb") as own:
            shutil.copyfileobj(own, copy)
        if files.sha256(folder / MODEL_FILE) != found.sha256:
            raise ModelFileError(f"{files.show(found.path)} has changed", "Type the command again")
        if picture:
            files.write_bytes(folder / SAMPLES, picture)
        if numbers:
            files.write_text(folder / NUMBERS, json.dumps(numbers, indent=1) + "\n")
        text = card(
            report_on(found),
            pushed(config.target),
            str(config.license),
            numbers=numbers,
            samples=SAMPLES if picture else "",
            drawn=drawn,
        )
        files.write_text(folder / CARD, text)
        names = tuple(sorted(path.name for path in folder.iterdir()))
        if out is not None:
            return Pushed(out, None, names, found.sha256)
        yield Progress("pushing files", 0, len(names))
        message = f"A model of diffuse, step {found.model.step:,}"
        address = upload(
            folder, config.target, private=config.private, message=message, owned=OWNED
        )
        yield Progress("pushing files", len(names), len(names))
    return Pushed(None, address, names, found.sha256)


def _check_empty(out: Path, overwrite: bool) -> None:
    with files.reported(out):
        if out.exists() and not overwrite and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(
                f"{files.show(out)} exists already", "Choose another -o, or --overwrite"
            )


def _numbers(config: PushConfig, found: Found) -> Mapping[str, Any]:
    """What eval printed, if it measured this model.

    Raises:
        UsageError: it is something else.
    """
    name = f"--eval {files.show(str(config.eval))}"
    try:
        values = json.loads(Path(str(config.eval)).read_bytes())
        settings, counts = values["settings"], values["n"]
        measured = settings["model_sha256"], counts["real"], values["features"], values["remarks"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise UsageError(
            f"{name} is not what eval prints of a model",
            "Write one: diffuse eval MODEL DATA --json > eval.json",
        ) from error
    if measured[0] != found.sha256:
        raise UsageError(
            f"{name} is of another model, of SHA-256 {files.show(str(measured[0]), 64)}",
            "Measure this one: diffuse eval MODEL DATA --json > eval.json",
        )
    return dict(values)


def _picture(config: PushConfig, found: Found) -> Work[tuple[bytes, str]]:
    """A picture of samples as a PNG, and how they were drawn; both empty if they cannot be."""
    if config.samples:
        with files.reported(Path(config.samples)):
            return Path(config.samples).read_bytes(), ""
    if Giver.of(found.model.blueprint):
        yield Notice("the card shows no samples: the model draws from what it is given; --samples")
        return b"", ""
    own = SampleConfig(model=str(found.path), n=DRAWN)
    with machine(own.precision, own.device) as accelerator:
        chain = yield from load_chain(own, accelerator, found=found)
        wanted = chain.wanted(own)
        yield Progress("sampling", 0, len(wanted))
        drawn = dict(zip(wanted, chain.drawn(wanted, accelerator), strict=True))
        yield Progress("sampling", len(wanted), len(wanted))
    settings = chain.last.settings
    grid = sheets.arrange(drawn, chain.space, settings.condition)
    return pictures.png(grid), f"{settings.choice}, seed {settings.seed}"
