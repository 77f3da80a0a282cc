"""`diffuse push`: a model, its card and a picture of samples in one folder, and that on the hub."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffuse_cli.commands.push.card import card
from diffuse_cli.config import PushConfig, SampleConfig
from diffuse_cli.evaluation.evaluation_run import published
from diffuse_cli.media import figures
from diffuse_cli.models import model_file
from diffuse_cli.models.image_conditioning import Giver
from diffuse_cli.models.model_file import Found
from diffuse_cli.models.model_report import report_on
from diffuse_cli.sampling import generation
from diffuse_cli.sampling.cascade import load_chain
from diffuse_cli.sampling.journal import LOCK, Unfinished, holding
from diffuse_cli.system import files
from diffuse_cli.system.devices import machine
from diffuse_cli.system.errors import ModelFileError, OutputError, UsageError
from diffuse_cli.system.events import Notice, Progress, Work
from diffuse_cli.system.hub_models import MODEL_FILE, check_free, pushed, upload
from diffuse_cli.system.outputs import check_suffix

CARD, SAMPLES, NUMBERS = "README.md", "samples.png", "eval.json"
"""Names of the files beside the model."""

OWNED = (SAMPLES, NUMBERS)
"""Files that describe one model, and are removed with it."""

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
    if config.out is None and not config.overwrite:
        check_free(config.target)
    with _place(config) as folder:
        found = yield from model_file.find(config.model)
        numbers = _numbers(config, found) if config.eval else None
        picture, drawn = yield from _picture(config, found)
        begun = Unfinished(folder)
        begun.clear()
        for name in OWNED:  # of another model, which was here
            files.remove(folder / name)
        begun.add(MODEL_FILE, found.sha256)
        with files.writing(folder / MODEL_FILE) as copy, found.path.open("rb") as own:
            shutil.copyfileobj(own, copy)
        if files.sha256(folder / MODEL_FILE) != found.sha256:
            raise ModelFileError(f"{files.show(found.path)} has changed", "Type the command again")
        if picture:
            begun.write(SAMPLES, picture)
        if numbers:
            begun.write(NUMBERS, (json.dumps(numbers, indent=1) + "\n").encode())
        text = card(
            report_on(found),
            pushed(config.target),
            str(config.license),
            numbers=numbers,
            samples=SAMPLES if picture else "",
            drawn=drawn,
        )
        begun.write(CARD, text.encode())
        begun.end()
        names = tuple(sorted({path.name for path in folder.iterdir()} - {LOCK}))
        if config.out is not None:
            return Pushed(folder, None, names, found.sha256)
        yield Progress("pushing files", 0, len(names))
        message = f"A model of diffuse, step {found.model.step:,}"
        address = upload(
            folder, config.target, private=config.private, message=message, owned=OWNED
        )
        yield Progress("pushing files", len(names), len(names))
    return Pushed(None, address, names, found.sha256)


@contextlib.contextmanager
def _place(config: PushConfig) -> Iterator[Path]:
    """The folder to write: that of -o, locked, or one that goes at the end.

    Raises:
        OutputError: it cannot be written, or holds what no stopped push left there.
    """
    if config.out is None:
        with tempfile.TemporaryDirectory(prefix="diffuse-push-") as temporary:
            yield Path(temporary)
        return
    out = Path(config.out)
    files.check_writable(out / CARD)
    with holding(out, "|".join(map(re.escape, (MODEL_FILE, CARD, *OWNED)))):
        begun = Unfinished(out)
        with files.reported(out):
            others = {path.name for path in out.iterdir()} - {LOCK, begun.NAME} - begun.names()
        if others and not config.overwrite:
            raise OutputError(
                f"{files.show(out)} exists already", "Choose another -o, or --overwrite"
            )
        yield out


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
    return published(values)


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
    grid = generation.arrange(drawn, chain.space, settings.condition)
    return figures.png(grid), f"{settings.choice}, seed {settings.seed}"
