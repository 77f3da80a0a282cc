"""Samples that were drawn: their numbers, pictures of them, and their files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from PIL.Image import Image

from diffuse_cli.core import Space
from diffuse_cli.data.sources.in_memory import SampleFile
from diffuse_cli.media import MEDIA, Array, figures, render_samples, suffix
from diffuse_cli.sampling.journal import format_file_name
from diffuse_cli.system import files


@dataclass(frozen=True, eq=False, repr=False)
class Samples(Sequence[Image]):
    """Samples that a model drew. As a sequence, pictures of them.

    Attributes:
        arrays: (N, C, *size), numbers as files have them: uint8 of images with 8 bits.
        space: what each of them is.
        start: the index of the first one, of its seed.
    """

    arrays: Array
    space: Space
    start: int = 0

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.space.shape))
        return (
            f"<Samples {self.start} to {self.start + len(self) - 1}: {shape} {self.space.medium}>"
        )

    def __len__(self) -> int:
        return len(self.arrays)

    @overload
    def __getitem__(self, index: int) -> Image: ...

    @overload
    def __getitem__(self, index: slice) -> list[Image]: ...

    def __getitem__(self, index: int | slice) -> Image | list[Image]:
        chosen = range(len(self))[index]
        if isinstance(chosen, range):
            return [self[k] for k in chosen]
        return figures.to_image(render_samples(self.space, self.arrays[[chosen]])[0])

    def images(self) -> list[Image]:
        """Return a picture of each, of 8 bits, grey or in color: of an image itself, of an array
        its channels, of a sound its waveform over its spectrogram."""
        return self[:]

    def grid(self) -> Image:
        """Return all of them in one picture."""
        return figures.arrange_grid(render_samples(self.space, self.arrays))

    def files(self) -> Iterator[SampleFile]:
        """Yield the bytes of the file of each, and its extension, as `diffuse sample` writes it."""
        for array in self.arrays:
            data = MEDIA[self.space.medium].encode(array, self.space)
            yield SampleFile(data, suffix(self.space))

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write a file of each into a folder, named after its index. Those of that name are
        replaced.

        Raises:
            OutputError: the folder cannot be written.
        """
        files.make_folder(Path(folder))
        written = []
        for k, file in enumerate(self.files(), self.start):
            written.append(Path(folder) / format_file_name(k, file.suffix))
            files.write_bytes(written[-1], file.data)
        return written

    def _repr_png_(self) -> bytes:
        """Return the grid, for notebooks."""
        return figures.encode_png(self.grid())
