"""The pictures that a task begins with, and masks of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from diffuse_cli.core.conditions import PAIRS
from diffuse_cli.core.degradations import Degradation
from diffuse_cli.core.settings import dimensions
from diffuse_cli.data import is_images, read_images
from diffuse_cli.data.summary import fitting, skip_lines, span
from diffuse_cli.media import ALPHA, MEDIA, Asked, check_fit, like, like_mask, named
from diffuse_cli.media.file_errors import read_needed
from diffuse_cli.models.image_conditioning import Giver
from diffuse_cli.sampling.generation import Loaded
from diffuse_cli.system import files
from diffuse_cli.system.errors import DataError, UsageError, translating
from diffuse_cli.system.events import Notice, Work

if TYPE_CHECKING:
    import numpy.typing as npt

    from diffuse_cli.media import Read, Size

    Array = npt.NDArray[Any]


FAINT = 1 / 8
"""How white a mask must be to ask for something new: what is partly covered is drawn."""

THIN = 1 / 32
"""How transparent an image must be for that: less of what is behind it is not seen."""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Samples of one shape.

    Attributes:
        names: of their files.
        values: as stored, (N, C, *size).
        sizes: what they were before, (width, height) for images.
        notices: what is to be said of them, once all else is known to be right.
    """

    names: tuple[str, ...]
    values: Array
    sizes: frozenset[Size]
    notices: tuple[Notice, ...]


def read(path: str, loaded: Loaded, fit: str | None, shape: Sequence[int]) -> Work[Pictures]:
    """Read the samples of a file, a folder or a zip file, fitted to a shape (C, *size).

    Args:
        fit: a name in `FITS`; None for that of the model's training.

    Raises:
        DataError: there is none, or it is not usable.
        UsageError: a fit that the medium does not know.
    """
    medium, fit = loaded.space.medium, fit or loaded.fit
    with translating():
        check_fit(medium, fit)
    MEDIA[medium].prepare()
    channels, *size = shape
    own = {**like(loaded.space), "size": tuple(size), "channels": channels}
    if is_images(Path(path), single=True):
        found = yield from read_images(
            path, **own, background=loaded.background, fit=fit, medium=medium
        )
        lines = list(skip_lines(found.summary.skipped))
        names, values, sizes = found.names, found.stored, frozenset(found.summary.sizes)
    else:
        asked = Asked(**own, background=rgb(loaded.background), fit=fit)
        one = read_one(path, medium, asked)
        lines = [f"{files.show(path)}: {remark}" for remark in one.remarks]
        names, values, sizes = (Path(path).name,), one.values[None], frozenset([one.size])
    notices = [Notice(line, warning=True) for line in lines]
    if sizes != {tuple(size[::-1])}:
        were, changed = span(dict.fromkeys(sizes, 1)), fitting(sizes, tuple(size), fit, medium)
        kept = _larger(sizes, loaded, size)
        done = MEDIA[medium].fitted
        notices.append(Notice(f"{were}: {done} to {dimensions(size)}{changed}{kept}"))
    return Pictures(names, values, sizes, tuple(notices))


def _larger(sizes: frozenset[Size], loaded: Loaded, size: Sequence[int]) -> str:
    """Say how to keep the one size of pictures that are larger than what is drawn of them."""
    if len(sizes) > 1 or tuple(size) != loaded.space.size:
        return ""
    (own,) = sizes
    larger = all(side >= least for side, least in zip(own[::-1], size, strict=True))
    return f"; --size {'x'.join(map(str, own[::-1]))} keeps it" if larger else ""


def enlarge_size(path: str, loaded: Loaded, factor: int) -> Size | None:
    """Return the size of the one picture in a file, `factor` times larger; None if a side of that
    is less than the model's."""
    if is_images(Path(path), single=True):
        return None
    space = loaded.space
    MEDIA[space.medium].prepare()
    one = read_one(path, space.medium, Asked(**like(space)))
    size = tuple(factor * side for side in one.size[::-1])
    return size if all(s >= own for s, own in zip(size, space.size, strict=True)) else None


def rgb(color: str) -> tuple[int, ...]:
    """Return a colour's red, green and blue, 0 ... 255."""
    from PIL import ImageColor

    return ImageColor.getrgb(color)[:3]


def read_one(path: str, medium: str, asked: Asked) -> Read:
    """Read the sample of one file.

    Raises:
        DataError: there is none, or it is not usable.
    """
    kind = MEDIA[medium]
    hint = f"Give one of {', '.join(sorted(kind.extensions))}"
    with read_needed(Path(path), kind.one, hint) as data:
        return kind.read(data, asked)


def read_mask(path: str, loaded: Loaded, fit: str | None, sizes: frozenset[Size]) -> Array:
    """Read a mask as (1, 1, *size), 1 where the pictures are kept.

    Args:
        sizes: of the pictures before they were fitted; the mask is fitted as they were.

    Raises:
        DataError: not usable, of another size, or nothing is left to draw or to keep.
    """
    space, shown = loaded.space, f"--mask {files.show(path)}"
    asked = Asked(**like_mask(space), background=(0, 0, 0), fit=fit or loaded.fit)
    one = read_one(path, space.medium, asked)
    for size in sorted(sizes - {one.size}):
        own, theirs = (dimensions(each[::-1]) for each in (one.size, size))
        raise DataError(f"{shown} is {own}, the image {theirs}", "Give a mask of the image's size")
    known = _below(FAINT, one.values)
    if known.all():
        raise DataError(f"{shown} is black: nothing is to be drawn", "Paint it white where to draw")
    if not known.any():
        raise DataError(f"{shown} is white: nothing is kept", "Use diffuse sample")
    return known


def read_opaque(path: str, loaded: Loaded, fit: str | None) -> Array:
    """Return where an image is not transparent, as `read_mask` has where it is kept.

    What it looks like on white and on black differs by how transparent it is.

    Raises:
        DataError: not usable, or nothing of it is opaque.
        UsageError: not one image, or nothing of it is transparent.
    """
    if is_images(Path(path), single=True):
        raise UsageError("--mask is missing", "Only for a single image can its transparency be one")
    space, shown = loaded.space, files.show(path)
    medium = MEDIA[space.medium]
    if named(space.layout) == ALPHA:
        raise UsageError(
            "--mask is missing: the model draws transparency, which cannot say what is to be drawn",
            "Give one, white where to draw",
        )
    own = read_one(path, space.medium, Asked(space.size, 1)).size[::-1]
    white, black = (
        read_one(path, space.medium, Asked(own, 1, (level,) * 3)).values for level in (255, 0)
    )
    clear = np.where(white > black, white - black, 0).astype(white.dtype)
    clear = medium.fit(clear, Asked(space.size, 1, (0, 0, 0), fit or loaded.fit))
    known = _below(THIN, clear)
    if known.all():
        raise UsageError(
            f"--mask is missing: nothing of {shown} is transparent",
            "Give one, white where to draw, or erase in the image what is to be drawn",
        )
    if not known.any():
        raise DataError(f"{shown} is transparent: nothing is kept", "Use diffuse sample")
    return known


def _below(share: float, values: Array) -> Array:
    """(1, 1, *size), 1 where stored numbers (1, *size) are at most a share of white."""
    whole = np.iinfo(values.dtype).max if values.dtype.kind in "iu" else 1
    return (values <= whole * share)[None].astype(np.float32)


def check_apart(folder: Path, *paths: str) -> None:
    """Refuse an output folder that holds an input, which would be replaced.

    Raises:
        UsageError
    """
    for path in map(Path, paths):
        if folder.resolve() in (path.resolve(), path.resolve().parent):
            raise UsageError(
                f"-o {files.show(folder)} holds {files.show(path)} itself", "Choose another -o"
            )


# -- telling --------------------------------------------------------------------------------------

# Whether a model that was trained with --given is told what a task sees, or nothing.


def tells(loaded: Loaded, degradation: Degradation | None, flag: str) -> bool:
    """Whether the model was trained for a degradation, and so is told what it left.

    Any other is told nothing, as in a part of its training.

    Args:
        degradation: None where there is none.
        flag: what asks for it, for the message.

    Raises:
        UsageError: the model was always told what it is given, and that is something else.
    """
    giver = Giver.of(loaded.model.blueprint)
    if giver is None:
        return False
    if degradation is not None and _fits(giver, degradation):
        return True
    if giver.given.dropout == 0:
        line = f"{flag}: the model was trained {_purpose(giver)}, and cannot do without"
        raise UsageError(line, f"Use diffuse {_command(giver)}")
    return False


def _fits(giver: Giver, asked: Degradation) -> bool:
    """The same kind with the same noise, and the same value: but any mask is a mask."""
    own = giver.degradation
    if own is None or (own.NAME, own.sigma) != (asked.NAME, asked.sigma):
        return False
    return own.HIDES or own.text == asked.text


def _purpose(giver: Giver) -> str:
    what = giver.given.what
    return "on pairs" if what == PAIRS else f"for {what}"


def _command(giver: Giver) -> str:
    """Return the command line that the model was trained for."""
    own = giver.degradation
    if own is None:
        return "sample MODEL --given FILE"
    if own.HIDES and not own.sigma:
        return "inpaint MODEL IMAGE --mask FILE"
    return f"restore MODEL IMAGE --degradation {giver.given.what}"


def remark(loaded: Loaded, told: bool) -> Work[None]:
    """Say what a model of --given is told."""
    giver = Giver.of(loaded.model.blueprint)
    if giver is not None:
        said = "is told what is seen" if told else "is told nothing here"
        yield Notice(f"the model was trained {_purpose(giver)}, and {said}")


def check_class(loaded: Loaded, *, labelled: bool, told: bool) -> None:
    """Refuse to tell a model a class, or none, where its training never did.

    One draw drops class and array (`Conditions.dropped`), so that only the one that is dropped more
    often is ever missing beside the other.

    Args:
        labelled: whether it is told a class.
        told: whether it is told what it is given.

    Raises:
        UsageError
    """
    conditions = loaded.model.blueprint.conditions
    dropout, given = loaded.model.training.get("label_dropout"), conditions.given
    if not conditions.classes or dropout is None:
        return
    if labelled:
        if given and not told and given.dropout <= dropout:
            line = "--class: the model was told no class without what it is given"
            raise UsageError(line, "Leave it out")
        return
    why = ""
    if dropout == 0:
        why = "was trained with --label-dropout 0, and knows no pictures without a class"
    elif given and told and dropout <= given.dropout:
        why = "was told a class with all that it was given"
    if why:
        known = ", ".join(map(files.brief, conditions.classes[:10]))
        raise UsageError(f"--class is missing: the model {why}", f"It knows {known}")
