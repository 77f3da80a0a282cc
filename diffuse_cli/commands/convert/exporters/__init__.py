"""Models for other programs, one program a file of this folder (see `Target`)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from diffuse_cli.config.exchange_options import ConvertConfig
from diffuse_cli.config.options import changed_flags
from diffuse_cli.core import Modules
from diffuse_cli.system import ModelFileError, OutputError, UsageError, Work, files, outputs

if TYPE_CHECKING:
    from diffuse_cli.models.model_file import ModelFile


class Target(Protocol):
    """A module of this folder.

    Attributes:
        OUT: what is written if no name is given. Every name has its suffix. A folder has none.
        PARTS: what a folder that it wrote holds, for targets that write a folder.
        MARK: one of the parts and a text in its first 64 KiB, for the same targets. Only a folder
            with this mark may be replaced.
        OPTIONS: the options of `ConvertConfig` that it takes, besides those of every target.
    """

    OUT: str
    PARTS: Collection[str]
    MARK: tuple[str, str]
    OPTIONS: Collection[str]

    def check(self, config: ConvertConfig) -> None:
        """Refuse, before the model is read, what cannot be done here.

        Raises:
            UsageError
        """
        ...

    def write(self, path: Path, file: ModelFile, config: ConvertConfig) -> Work[Mapping[str, Any]]:
        """Write a model, whole or not at all. Returns what `--json` tells of it.

        Raises:
            ModelFileError: the other program has no word for something in the model.
            UsageError: an option does not suit the model.
            OutputError: it cannot be written.
        """
        ...


TARGETS: Modules[Target] = Modules("exports", __name__, __path__)

OF_ALL = ("source", "out", "overwrite", "to", "weights")
"""The options that every target takes."""


def target_of(config: ConvertConfig) -> str | None:
    """Return the program to write for: the --to option, or from the suffix of `-o`; None for a
    model file."""
    if config.to is not None or config.out is None:
        return config.to
    suffix = Path(config.out).suffix.lower()
    return next((name for name, t in TARGETS.items() if suffix and suffix == _suffix(t)), None)


def export(config: ConvertConfig) -> Work[dict[str, Any]]:
    """Write a model of `diffuse` for another program. Returns the path, the program, and what the
    program's module says of what was written.

    Raises:
        UsageError: options that are for reading other programs' models, or do not suit the model.
        ModelFileError: SOURCE is not a model of `diffuse`, or one that the program cannot run.
        OutputError: the output exists, or cannot be written.
    """
    name = target_of(config)
    assert name is not None
    target = TARGETS[name]
    allowed = (*OF_ALL, *target.OPTIONS)
    for option, flag in changed_flags(config).items():
        if option not in allowed:
            text = f"{flag} does not suit --to {name}"
            raise UsageError(text, "Leave it out", code="options_conflict")
    with _claim_output(target, name, config) as path:
        target.check(config)
        from diffuse_cli.models import model_file

        file = yield from model_file.find(config.source)
        values = yield from target.write(path, file, config)
    return {"out": config.out or target.OUT, "to": name, **values}


def export_error(
    file: ModelFile, program: str, field: str, value: object, hint: str = ""
) -> ModelFileError:
    """Return the error for a setting of a model that another program has no word for."""
    setting = files.shorten(f"{field} = {value}")
    text = f"{files.show(file.path)}: {program} cannot say {setting}"
    return ModelFileError(text, hint, code="model_mismatch", path=file.path)


def _suffix(target: Target) -> str:
    return Path(target.OUT).suffix


@contextlib.contextmanager
def _claim_output(target: Target, name: str, config: ConvertConfig) -> Iterator[Path]:
    """Yield the output path, which is free or may be replaced. No other process writes there
    meanwhile. The path of a folder is the one that a link leads to."""
    out = Path(config.out or target.OUT)
    if suffix := _suffix(target):
        with outputs.claim_output(out, suffix, config.overwrite, read=config.source) as out:
            yield out
        return
    suffixes = (".safetensors", *filter(None, map(_suffix, TARGETS.values())))
    if out.suffix.lower() in suffixes:
        text, hint = f"--to {name} writes a folder, not {files.show(out)}", "Choose another -o"
        raise UsageError(text, hint, code="output_unsuited", option="-o", path=out)
    files.check_writable(out / target.MARK[0])
    folder = Path(os.path.realpath(out)) if out.is_symlink() else out
    with outputs.hold_output(folder):
        with files.report_errors(out):
            names = {entry.name for entry in out.iterdir()} if out.exists() else set()
        if foreign := names.difference(target.PARTS if _is_marked(folder, *target.MARK) else ()):
            text = (
                f"{files.show(out)} holds {files.show(min(foreign))}, which convert did not write"
            )
            raise OutputError(text, "Choose another -o", code="output_foreign", path=out)
        if names and not config.overwrite:
            text, hint = f"{files.show(out)} exists already", "Choose another -o, or --overwrite"
            raise OutputError(text, hint, code="output_exists", path=out)
        yield folder


def _is_marked(folder: Path, name: str, text: str) -> bool:
    """Whether a folder has the mark of a target."""
    with contextlib.suppress(OSError), (folder / name).open("rb") as file:
        return text.encode() in file.read(2**16)
    return False
