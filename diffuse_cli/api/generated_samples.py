"""Generated samples: their values, their pictures and their files."""

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
    """Samples of a model. As a sequence, it contains their pictures.

    Attributes:
        arrays: the values, (N, C, *size), as in files: uint8 for images with 8 bits.
        space: medium, channels, size and levels of a sample.
        start: the index of the first sample of the seed.
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
        """Return a grey or color picture of each sample, with 8 bits.

        It is the image, the channels of an array, or the waveform and spectrogram of a sound.
        """
        return self[:]

    def grid(self) -> Image:
        """Return one picture of all samples."""
        return figures.arrange_grid(render_samples(self.space, self.arrays))

    def files(self) -> Iterator[SampleFile]:
        """Yield the content and extension of the file of each sample, as `diffuse sample` does."""
        for array in self.arrays:
            data = MEDIA[self.space.medium].encode(array, self.space)
            yield SampleFile(data, suffix(self.space))

    def save(self, folder: str | os.PathLike[str]) -> list[Path]:
        """Write each sample to a folder, in a file named after its index, and return the paths.

        Files of these names are replaced.

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
